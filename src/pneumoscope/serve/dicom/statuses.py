"""What the status of a store operation means for what is to be done."""

from __future__ import annotations

from pneumoscope.serve.dicom.contracts import Outcome

__all__ = ["outcome_of_status"]

DUPLICATE = 0x0111
WARNINGS = range(0xB000, 0xC000)
# Not the class of the data set (A9xx), not understood (Cxxx), and no such SOP class, invalid argument, object
# or attribute value (PS3.7 C): the same data set gets the same response.
REJECTED = (range(0xA900, 0xAA00), range(0xC000, 0xD000), (0x0106, 0x0115, 0x0117, 0x0118, 0x0119, 0x0122))


def outcome_of_status(status: int) -> Outcome:
    """Return the outcome of a C-STORE status (PS3.4 B.2.3) or of a failure reason of STOW-RS.

    A status that is not known is tried again: it may pass, and a retry loses nothing.
    """
    if status == 0 or status in WARNINGS:
        return Outcome.SENT
    if status == DUPLICATE:
        return Outcome.ALREADY_THERE
    if any(status in group for group in REJECTED):
        return Outcome.FAILED
    return Outcome.RETRY

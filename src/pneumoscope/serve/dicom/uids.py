"""UIDs of result objects, derived from what they are made of."""

from __future__ import annotations

import hashlib
import json

__all__ = ["derived_uid"]


def derived_uid(*parts: str) -> str:
    """Return a UID that is the same for the same parts, and another one for any other parts.

    It is a UUID-derived UID (PS3.5 B.2), ``2.25.`` and the UUID as a decimal number. The UUID is of version 8
    (RFC 9562), made of the first 128 bits of a SHA-256.

    Parameters
    ----------
    *parts : str
        What the object is and what it is made of, such as ``"sr"``, the study and the results.
    """
    digest = hashlib.sha256(json.dumps(["pneumoscope", *parts]).encode()).digest()
    number = int.from_bytes(digest[:16], "big")
    number = number & ~(0xF << 76) | 0x8 << 76  # version
    number = number & ~(0x3 << 62) | 0x2 << 62  # variant
    return f"2.25.{number}"

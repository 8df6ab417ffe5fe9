"""DICOM lookup tables: modality, VOI and palette (PS3.3 C.11.1.1.1, C.11.2.1.1 and C.7.6.3.1.5)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pydicom

from pneumoscope.errors import Reason, UnreadableImageError
from pneumoscope.image.dicom_header import CUT_OFF, DAMAGED, element_value
from pneumoscope.image.levels import depth_of

__all__ = ["LookupTable", "optional_table", "read_palette"]

Values = npt.NDArray[np.float64]

COLORS = ("Red", "Green", "Blue")
TURN = 1 << 16  # a 16-bit value read with the wrong sign is off by this


@dataclass(frozen=True, eq=False, slots=True)
class LookupTable:
    """A modality, VOI or palette lookup table.

    Parameters
    ----------
    first : int
        The input that the first entry is for; inputs outside take the nearest entry.
    entries : ndarray of float64, shape (N,)
        Outputs.
    maximum : int
        The largest output that its number of bits allows.
    restored : bool
        `maximum` is not what the descriptor states, because the entries leave most of that range unused.
    """

    first: int
    entries: Values
    maximum: int
    restored: bool = False

    def __call__(self, values: Values) -> Values:
        """Look up values of any shape."""
        index = np.clip(np.rint(values) - self.first, 0, self.entries.size - 1)
        outputs: Values = self.entries[index.astype(np.intp)]
        return outputs

    def aligned(self, low: float, high: float) -> LookupTable:
        """Return the table with the sign of its first input that fits inputs from `low` to `high`.

        Headers state a negative first input as unsigned, or the other way round.
        """

        def overlap(first: int) -> float:
            return min(first + self.entries.size - 1, high) - max(first, low)

        # `max` keeps the stated one where others fit no better.
        return replace(self, first=max((self.first, self.first - TURN, self.first + TURN), key=overlap))


def optional_table(
    dataset: pydicom.Dataset, sequence: str, *, big_endian: bool = False
) -> LookupTable | None:
    """Return the first usable table of a sequence; None where there is none, since an image can do without.

    Parameters
    ----------
    dataset : Dataset
        With the sequence.
    sequence : str
        ``ModalityLUTSequence`` or ``VOILUTSequence``.
    big_endian : bool
        Byte order of the data set.
    """
    items = element_value(dataset, sequence)
    for item in items if isinstance(items, pydicom.Sequence) else ():
        table = _read_table(item, "LUTDescriptor", "LUTData", big_endian)
        if table is not None:
            return table
    return None


def read_palette(name: str, dataset: pydicom.Dataset, *, big_endian: bool = False) -> tuple[LookupTable, ...]:
    """Return the red, green and blue tables.

    Raises
    ------
    UnreadableImageError
        With `Reason.UNSUPPORTED_ENCODING` for segmented tables, and `Reason.CORRUPT` where one is missing.
    """
    stems = [f"{color}PaletteColorLookupTable" for color in COLORS]
    tables = [_read_table(dataset, f"{stem}Descriptor", f"{stem}Data", big_endian) for stem in stems]
    found = [table for table in tables if table is not None]
    if len(found) < len(COLORS):
        if any(f"Segmented{stem}Data" in dataset for stem in stems):
            detail = "DICOM with segmented palette lookup tables is not supported; export it as grayscale"
            raise UnreadableImageError(name, Reason.UNSUPPORTED_ENCODING, detail)
        detail = "damaged DICOM header (a colour lookup table is missing or empty); send the image again"
        raise UnreadableImageError(name, Reason.CORRUPT, detail)
    # Writers state 16 bits for entries of 8: all three tables show it.
    if max(table.entries.max() for table in found) <= 255:
        found = [replace(table, maximum=255) for table in found]
    return tuple(found)


def _read_table(item: pydicom.Dataset, descriptor: str, data: str, big_endian: bool) -> LookupTable | None:
    try:
        count, first, bits = (int(number) for number in item[descriptor].value)
        entries = _entries(item[data], count & 0xFFFF or TURN, bits, big_endian)
    except (*CUT_OFF, *DAMAGED):
        return None
    if entries.size == 0:
        return None
    maximum, restored = _maximum(int(entries.max()), bits)
    return LookupTable(first, entries, maximum, restored)


def _entries(element: pydicom.DataElement, count: int, bits: int, big_endian: bool) -> Values:
    """Return the entries: words, or bytes where they have 8 bits."""
    raw = element.value
    if not isinstance(raw, bytes):
        words = np.atleast_1d(np.asarray(raw, dtype=np.int64)) & 0xFFFF
        if bits > 8 or words.size >= count:
            return words[:count].astype(np.float64)
        raw, big_endian = words.astype("<u2").tobytes(), False
    # The descriptor may state 16 bits above entries of 8; their number shows it.
    packed = len(raw) < 2 * count if bits <= 8 else len(raw) in {count, count + 1}
    if packed:
        table = np.frombuffer(raw, np.uint8)
        if big_endian and element.VR == "OW":
            table = table[: table.size // 2 * 2].reshape(-1, 2)[:, ::-1].ravel()
    else:
        table = np.frombuffer(raw, ">u2" if big_endian else "<u2", len(raw) // 2)
    return table[:count].astype(np.float64)


def _maximum(largest: int, bits: int) -> tuple[int, bool]:
    """Return the output that stands for white, and whether it is narrower than the descriptor's."""
    narrow = (1 << depth_of(largest)) - 1
    if not 1 <= bits <= 16:
        return narrow, False
    stated = (1 << bits) - 1
    if largest > stated:  # wrong by some bits, or by one in the last entry
        return (narrow if largest > 2 * stated else largest), False
    return (narrow, True) if 4 * narrow < stated else (stated, False)

"""The logs of every node that the tests run, and of its parts, scanned for the patients that were sent.

`dicom_modality` notes what it sends, `dicom_peers` what nodes write; `scanned_logs`, a fixture of each folder
of such tests, collects what is logged within the process of the tests, in the form in which a node writes it.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from pydicom.dataset import Dataset

from pneumoscope.image.dicom import lenient_pydicom
from pneumoscope.serve.dicom.logs import JsonLines

__all__ = ["SCAN", "LogScan", "final_scan", "scanned_logs"]

NAMES = ("PatientName", "ReferringPhysicianName")
NUMBERS = ("PatientID", "AccessionNumber")
SHORTEST = 4  # characters; shorter values occur in any text


class LogScan:
    """What was sent, what was logged, and which of the one is in the other."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._values: set[str] = set()
        self._scanned = 0
        self._lock = threading.Lock()

    def sent(self, dataset: Dataset) -> None:
        """Note names, numbers and date of birth in a dataset that a test sends."""
        found: set[str] = set()
        with lenient_pydicom():
            texts = {keyword: _text(dataset, keyword) for keyword in (*NAMES, *NUMBERS, "PatientBirthDate")}
        for keyword in NAMES:
            found.update(re.findall(r"[^\W\d_]+", texts[keyword]))
        found.update(texts[keyword].strip() for keyword in NUMBERS)
        birth = texts["PatientBirthDate"].strip()
        if re.fullmatch(r"\d{8}", birth):
            year, month, day = birth[:4], birth[4:6], birth[6:]
            found.update({f"{year}-{month}-{day}", f"{day}.{month}.{year}", f"{month}/{day}/{year}"})
        found.add(birth)
        with self._lock:
            self._values.update(value for value in found if len(value) >= SHORTEST)

    def log(self, line: str) -> None:
        """Note a line that a node wrote."""
        with self._lock:
            self.lines.append(line)

    def leaks(self, *, all_lines: bool = False) -> list[str]:
        """Return the lines with a value that was sent, of those since the last call, or of all."""
        with self._lock:
            lines = self.lines[0 if all_lines else self._scanned :]
            self._scanned = len(self.lines)
            starts: dict[str, list[str]] = {}
            for one in self._values:
                starts.setdefault(one[:SHORTEST], []).append(one)
        return [line for line in lines if _contains(line, starts)]


def _contains(line: str, starts: dict[str, list[str]]) -> bool:
    """Return whether a line has one of many values, which are given by their first characters."""
    for at in range(len(line) - SHORTEST + 1):
        for one in starts.get(line[at : at + SHORTEST], ()):
            if line.startswith(one, at):
                around = line[at - 1 : at] + line[at + len(one) : at + len(one) + 1]
                # A number within a longer one, such as a hash, is another one.
                if one.isalpha() or not re.search(r"[0-9A-Za-z]", around):
                    return True
    return False


def _text(dataset: Dataset, keyword: str) -> str:
    try:
        value = dataset.get(keyword)
    except (ValueError, LookupError):  # what a test damaged on purpose
        return ""
    return "" if value is None or isinstance(value, bytes) else str(value)


class _Collector(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        SCAN.log(self.format(record))


SCAN = LogScan()
"""Of this run of the tests."""


@pytest.fixture(autouse=True)
def scanned_logs(final_scan: Any) -> Iterator[None]:
    """Fail the test that logs an attribute of a patient."""
    collector = _Collector()
    collector.setFormatter(JsonLines())
    root = logging.getLogger()
    root.addHandler(collector)
    yield
    root.removeHandler(collector)
    assert SCAN.leaks() == []


@pytest.fixture(scope="session")
def final_scan() -> Iterator[None]:
    """Scan all lines once more at the end, for what was logged before it was known as sent."""
    yield
    assert SCAN.leaks(all_lines=True) == []

"""Logs: JSON lines, and nothing of what libraries quote."""

from __future__ import annotations

import io
import json
import logging
import threading
import warnings

import pytest
from pydicom.dataset import Dataset

from log_scan import LogScan
from pneumoscope.serve.dicom.logs import JsonLines, set_up_logs


@pytest.fixture
def stream(monkeypatch):
    """Set up the logs on a stream, and take them down again."""
    root = logging.getLogger()
    handlers, level, hook = root.handlers[:], root.level, threading.excepthook
    own = logging.getLogger("pneumoscope").level
    stream = io.StringIO()
    set_up_logs("debug", stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("pneumoscope").setLevel(own)
    for name in ("pynetdicom", "pydicom"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    logging.captureWarnings(False)
    threading.excepthook = hook


def lines(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_with_its_values(stream):
    logging.getLogger("pneumoscope.serve.dicom.x").info("accepted", extra={"instance": "ab12", "how": "new"})
    (line,) = lines(stream)
    assert line["event"] == "accepted"
    assert line["instance"] == "ab12"
    assert line["level"] == "info"
    assert line["time"].endswith("+00:00")


def test_of_another_library_only_the_place_is_kept(stream):
    for name in ("pydicom", "pynetdicom.acse", "elsewhere"):
        logging.getLogger(name).critical("patient Zauberbaum^Ottokar", extra={"who": "Zauberbaum"})
    assert len(lines(stream)) == 3
    assert "Zauberbaum" not in stream.getvalue()
    assert all(line["event"].startswith("test_logs:") for line in lines(stream))


def test_warnings_and_errors_of_threads_are_not_quoted(stream):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("Zauberbaum", stacklevel=1)
    thread = threading.Thread(target=lambda: int("Zauberbaum"), name="send@Zauberbaum")
    thread.start()
    thread.join()
    assert "Zauberbaum" not in stream.getvalue()
    assert lines(stream)[-1]["error"] == "ValueError"
    assert lines(stream)[-1]["event"] == "a thread ended"


def test_an_exception_is_its_kind():
    record = logging.LogRecord("pneumoscope.x", logging.ERROR, "f", 1, "failed", (), None)
    try:
        int("Zauberbaum")
    except ValueError as error:
        record.exc_info = (type(error), error, error.__traceback__)
    line = JsonLines().format(record)
    assert json.loads(line)["error"] == "ValueError"
    assert "Zauberbaum" not in line


def test_the_scan_finds_what_was_sent():
    """Names and numbers as a whole, in any form of the date; not a number within another."""
    dataset = Dataset()
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = "M\u00fcller^Otto", "48-11", "19430612"
    dataset.AccessionNumber = "77"
    scan = LogScan()
    leaking = ["of M\u00fcller", "Mr Otto_1", '"id": "48-11"', "born 12.06.1943", "1943-06-12", "d=19430612"]
    for line in [*leaking, "148-11", "port 77", "219430612", "mull"]:
        scan.log(line)
    assert scan.leaks() == [], "nothing was sent yet"
    scan.sent(dataset)
    assert scan.leaks() == [], "no new line"
    assert scan.leaks(all_lines=True) == leaking
    scan.log(leaking[0])
    assert scan.leaks() == leaking[:1]

"""Logs as JSON lines, made so that no attribute of a patient can be in one.

A record of the node has a fixed text and named values: hashes of UIDs, AE titles, addresses, counts, reasons.
Of any other library's record only its place is kept: pydicom and pynetdicom quote what they read.
"""

from __future__ import annotations

import datetime
import json
import logging
import sys
import threading
from typing import IO

__all__ = ["JsonLines", "set_up_logs"]

STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
OWN = "pneumoscope"


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, event and the named values."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, object] = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if record.name.split(".")[0] == OWN:
            line["event"] = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
            if record.args:
                line["values"] = [str(value) for value in record.args]
            line |= {name: value for name, value in vars(record).items() if name not in STANDARD}
        else:
            line["event"] = f"{record.module}:{record.lineno}"
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
        return json.dumps(line, default=str, ensure_ascii=False)


def set_up_logs(level: str, stream: IO[str] | None = None) -> None:
    """Send all logs, warnings and errors of threads as JSON lines to a stream, standard error by default."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.ERROR)
    logging.getLogger(OWN).setLevel(level.upper())
    for name in ("pynetdicom", "pydicom"):
        library = logging.getLogger(name)
        library.handlers[:] = []
        library.propagate = True
        library.setLevel(logging.CRITICAL)
    logging.captureWarnings(True)
    threading.excepthook = _thread_ended


def _thread_ended(arguments: threading.ExceptHookArgs) -> None:
    name = arguments.thread.name if arguments.thread is not None else ""
    logging.getLogger(f"{OWN}.serve.dicom").error(
        "a thread ended", extra={"part": name.split("@")[0], "error": arguments.exc_type.__name__}
    )

"""A worker: a process of its own that reads and predicts uploads, one at a time, and can do little else.

It gets them on standard input and answers on standard output, as `frames`. Once the model is loaded it may
take no more than so much memory, write no file and leave no core dump behind.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from pneumoscope.domain import Explanation, Prediction, Radiograph
from pneumoscope.errors import PneumoscopeError, Reason
from pneumoscope.image.decode import read_radiograph
from pneumoscope.predict.calibration import decide
from pneumoscope.predict.predictor import Examination, Predictor
from pneumoscope.report.age import age_band
from pneumoscope.report.rows import to_row
from pneumoscope.serve.web.frames import read_frame, write_frame

__all__ = ["answer", "heatmap_png", "main", "preview_jpeg"]

PREVIEW_SIDE = 1024
HEATMAP_SIDE = 256
PREVIEW_QUALITY = 92


def main(arguments: Sequence[str] | None = None) -> int:
    """Load the bundle, say so, and predict until standard input ends."""
    parser = argparse.ArgumentParser(prog="pneumoscope.serve.web.worker")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--memory", type=int, required=True)
    options = parser.parse_args(arguments)
    # The server decides when a worker ends: by closing its input.
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    sys.excepthook = _say_where
    requests = sys.stdin.buffer
    # Whatever a library prints must not end up among the answers.
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        try:
            predictor = Predictor.load(options.bundle, workers=1)
        except PneumoscopeError as error:
            write_frame(answers, {"error": str(error)})
            return 1
        _confine(options.memory)
        with contextlib.suppress(EOFError, BrokenPipeError):
            write_frame(answers, {"ready": predictor.bundle.identity})
            while True:
                job, pieces = read_frame(requests)
                write_frame(answers, *answer(predictor, job, pieces[0]))
                pieces.clear()
    return 0


def answer(predictor: Predictor, job: dict[str, Any], data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Predict one upload.

    Parameters
    ----------
    predictor : Predictor
        Of the bundle that is served.
    job : dict
        ``name``; ``heatmap`` and ``preview``, whether they are wanted; ``operating_point``.
    data : bytes
        The upload.

    Returns
    -------
    tuple of dict and list of bytes
        The row, the facts, where the heat map lies; and the images, PNG for the
        heat map and JPEG for the preview, each empty if there is none.
    """
    try:
        examination = predictor.examine(data, job["name"])
        turned = Reason.INVERTED in examination.prediction.reasons
        preview = preview_jpeg(data, examination.radiograph, turned=turned) if job["preview"] else b""
    except MemoryError:
        message = "reading this image takes more memory than one upload may have; export it smaller"
        examination = Examination(stopped(job["name"], predictor.bundle.identity, message))
        preview = b""
    prediction = examination.prediction
    if prediction.p_pneumonia is not None:
        point = predictor.bundle.manifest.operating_point(job["operating_point"])
        decision = decide(prediction.p_pneumonia, point)
        prediction = replace(prediction, decision=decision, operating_point=point.name)
    explanation = examination.explanation if job["heatmap"] else None
    head = {
        "row": to_row(prediction),
        "message": prediction.message,
        "facts": None if examination.radiograph is None else _facts(examination.radiograph),
        "heatmap": explanation and {"finding": explanation.finding, "region": explanation.region},
    }
    return head, [heatmap_png(explanation) if explanation else b"", preview]


def stopped(name: str, bundle: str, message: str) -> Prediction:
    """Return the row of a file whose reading was stopped."""
    return Prediction(name, "unreadable", (Reason.READER_STOPPED,), bundle=bundle, message=message)


def heatmap_png(explanation: Explanation) -> bytes:
    """Return a heat map as 8-bit grey PNG, its longer side 256 pixels at most."""
    heatmap = explanation.heatmap
    scale = HEATMAP_SIDE / max(heatmap.shape)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    size = [max(1, round(side * scale)) for side in heatmap.shape[::-1]]
    return _encoded(".png", np.clip(cv2.resize(heatmap, size, interpolation=method), 0, 1))


def preview_jpeg(data: bytes, radiograph: Radiograph | None, *, turned: bool = False) -> bytes:
    """Return the image as 8-bit grey JPEG, its longer side 1,024 pixels at most.

    Parameters
    ----------
    data : bytes
        The file, read once more where `radiograph` is a reduced version of it.
    radiograph : Radiograph or None
        As the predictor read it.
    turned : bool
        The file is a negative, which the predictor turned.
    """
    if radiograph is None:
        return b""
    pixels = radiograph.pixels
    longer, shorter = sorted((radiograph.height, radiograph.width), reverse=True)
    if max(pixels.shape) < min(longer, PREVIEW_SIDE):
        pixels = read_radiograph(data, min_side=math.ceil(PREVIEW_SIDE * shorter / longer)).pixels
        pixels = 1 - pixels if turned else pixels
    scale = min(1.0, PREVIEW_SIDE / max(pixels.shape))
    if scale < 1:
        size = [max(1, round(side * scale)) for side in pixels.shape[::-1]]
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return _encoded(".jpg", pixels, cv2.IMWRITE_JPEG_QUALITY, PREVIEW_QUALITY)


def _encoded(suffix: str, pixels: npt.NDArray[np.float32], *options: int) -> bytes:
    _, data = cv2.imencode(suffix, np.rint(pixels * 255).astype(np.uint8), options)
    return bytes(data)


def _facts(radiograph: Radiograph) -> dict[str, Any]:
    return {
        "format": radiograph.format,
        "width": radiograph.width,
        "height": radiograph.height,
        "bits": radiograph.bits,
        "view": str(radiograph.view),
        "modality": radiograph.modality,
        "age_band": None if radiograph.age is None else age_band(radiograph.age),
    }


def _confine(memory: int) -> None:
    """Take away what reading images does not need; where the system knows no such limits, nothing."""
    try:
        import resource
    except ImportError:  # Windows: the time limit and the limit on pixels remain
        return
    with contextlib.suppress(OSError):  # if memory ends all the same, a worker shall go first
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if hasattr(signal, "SIGXFSZ"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    status = Path("/proc/self/status")
    if status.exists():  # elsewhere the data segment is not what malloc takes from
        lines = status.read_text(encoding="ascii").splitlines()
        held = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))
        resource.setrlimit(resource.RLIMIT_DATA, (held + memory, held + memory))


def _say_where(kind: type[BaseException], _error: BaseException, trace: TracebackType | None) -> None:
    """Print where an error arose, but not its text, which may quote the upload."""
    lines = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(trace)]
    print(f"pneumoscope worker ended by {kind.__name__} at {' > '.join(lines)}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())

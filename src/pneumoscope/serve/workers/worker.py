"""A worker process: reads and predicts image files, one at a time, with few permissions.

Jobs arrive on standard input and responses leave on standard output, as `frames`. Once the model is loaded
the process may allocate only a limited amount of memory, write no file and leave no core dump.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from pneumoscope.domain import Explanation, Prediction, Radiograph, age_band
from pneumoscope.errors import PneumoscopeError, Reason
from pneumoscope.image.decode import read_radiograph
from pneumoscope.predict.predictor import ExplainedPrediction, Predictor
from pneumoscope.serve.workers.frames import Job, Response, read_frame, write_frame
from pneumoscope.serve.workers.rows import prediction_row, stopped

__all__ = ["heatmap_png", "main", "preview_jpeg", "respond"]

PREVIEW_SIDE = 1024
HEATMAP_SIDE = 256
PREVIEW_QUALITY = 92


Respond = Callable[[Predictor, Any, list[bytes]], Response]


def main(arguments: Sequence[str] | None = None, respond_to: Respond | None = None) -> int:
    """Load the bundle, report that it is ready, and process jobs until standard input ends.

    Parameters
    ----------
    arguments : sequence of str, optional
        Of the process if not given.
    respond_to : callable, optional
        Makes the response to a job and its pieces; `respond` if not given.
    """
    parser = argparse.ArgumentParser(prog="pneumoscope.serve.workers.worker")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--memory", type=int, required=True)
    options = parser.parse_args(arguments)
    # The server ends a worker by closing its input.
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    sys.excepthook = _print_place
    # One process per CPU; OpenCV's own threads would compete with the other workers.
    cv2.setNumThreads(1)
    jobs = sys.stdin.buffer
    # Output that a library prints must not mix with the responses.
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as responses:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        try:
            predictor = Predictor.load(options.bundle, workers=1)
        except PneumoscopeError as error:
            write_frame(responses, {"error": str(error)})
            return 1
        _confine(options.memory)
        with contextlib.suppress(EOFError, BrokenPipeError):
            write_frame(responses, {"ready": predictor.bundle.identity})
            while True:
                job, pieces = read_frame(jobs)
                write_frame(responses, *(respond_to or _respond)(predictor, job, pieces))
                pieces.clear()
    return 0


def _respond(predictor: Predictor, job: Any, pieces: list[bytes]) -> Response:
    return respond(predictor, cast(Job, job), pieces[0])


def respond(predictor: Predictor, job: Job, data: bytes) -> Response:
    """Predict one image file.

    Parameters
    ----------
    predictor : Predictor
        Of the bundle that is served.
    job : Job
        Name, operating point, and which images to return.
    data : bytes
        Content of the file.

    Returns
    -------
    Response
        The head with ``row`` (see `pneumoscope.serve.workers.rows`), ``facts`` of the file, and ``heatmap``
        (finding and region), the last two None where there are none; then the heat map as PNG and the image
        as JPEG, empty where not requested or not available.
    """
    what = "one upload may use"
    explained, preview = explain_with_preview(predictor, data, job["name"], what, preview=job["preview"])
    prediction = decided(predictor, explained.prediction, job["operating_point"])
    explanation = explained.explanation if job["heatmap"] else None
    head = {
        "row": prediction_row(prediction),
        "facts": None if explained.radiograph is None else _facts(explained.radiograph),
        "heatmap": explanation and {"finding": explanation.finding, "region": explanation.region},
    }
    return head, [heatmap_png(explanation) if explanation else b"", preview]


def explain_with_preview(
    predictor: Predictor, data: bytes, name: str, allowed: str, *, preview: bool = True
) -> tuple[ExplainedPrediction, bytes]:
    """Predict on one file; where memory does not suffice, that is its row.

    Parameters
    ----------
    predictor : Predictor
    data : bytes
        Content of the file.
    name : str
        Of the file, for the row.
    allowed : str
        How much memory there is, in words that follow "more memory than".
    preview : bool
        Whether to make the image as JPEG, as `preview_jpeg` does; empty otherwise.
    """
    try:
        explained = predictor.explain(data, name)
        inverted = Reason.INVERTED in explained.prediction.reasons
        jpeg = preview_jpeg(data, explained.radiograph, inverted=inverted) if preview else b""
    except MemoryError:
        message = f"reading this image takes more memory than {allowed}; export it smaller"
        return ExplainedPrediction(stopped(name, predictor.bundle, message)), b""
    return explained, jpeg


def decided(predictor: Predictor, prediction: Prediction, operating_point: str | None) -> Prediction:
    """Decide at the named point of the image's population, or at its default if it has no such point."""
    if operating_point is None or prediction.p_target is None:
        return prediction
    points = predictor.bundle.manifest.calibration_for(prediction.population).operating_points
    if operating_point not in {point.name for point in points}:
        return prediction
    return predictor.decide_again(prediction, operating_point)


def heatmap_png(explanation: Explanation) -> bytes:
    """Return a heat map as 8-bit grey PNG, its longer side 256 pixels at most."""
    heatmap = explanation.heatmap
    scale = HEATMAP_SIDE / max(heatmap.shape)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    size = [max(1, round(side * scale)) for side in heatmap.shape[::-1]]
    return _encoded(".png", np.clip(cv2.resize(heatmap, size, interpolation=method), 0, 1))


def preview_jpeg(data: bytes, radiograph: Radiograph | None, *, inverted: bool = False) -> bytes:
    """Return the image as 8-bit grey JPEG, its longer side 1,024 pixels at most.

    Parameters
    ----------
    data : bytes
        The file, read once more where `radiograph` is a reduced version of it.
    radiograph : Radiograph or None
        As the predictor read it.
    inverted : bool
        The file has inverted grayscale, which the predictor corrected.
    """
    if radiograph is None:
        return b""
    pixels = radiograph.pixels
    longer, shorter = sorted((radiograph.height, radiograph.width), reverse=True)
    if max(pixels.shape) < min(longer, PREVIEW_SIDE):
        pixels = read_radiograph(data, min_side=math.ceil(PREVIEW_SIDE * shorter / longer)).pixels
        pixels = 1 - pixels if inverted else pixels
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
    """Drop permissions that reading images does not need, where the system has such limits."""
    try:
        import resource
    except ImportError:  # Windows: the time limit and the limit on pixels remain
        return
    with contextlib.suppress(OSError):  # when memory runs out, a worker is ended before the server
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if hasattr(signal, "SIGXFSZ"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    status = Path("/proc/self/status")
    if status.exists():  # on other systems malloc does not use the data segment
        lines = status.read_text(encoding="ascii").splitlines()
        held = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))
        resource.setrlimit(resource.RLIMIT_DATA, (held + memory, held + memory))


def _print_place(error_type: type[BaseException], _error: BaseException, trace: TracebackType | None) -> None:
    """Print where an error was raised, but not its text, which may quote the file."""
    lines = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(trace)]
    print(f"pneumoscope worker ended by {error_type.__name__} at {' > '.join(lines)}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())

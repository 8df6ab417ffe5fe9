"""`pneumoscope demo`: the shipped model on the sample images, with their true labels."""

from __future__ import annotations

import os
import sys
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pneumoscope.cli.common import bundle_facts, check_no_effect, make_folder, one_opencv_thread, print_json
from pneumoscope.cli.parameters import AsJson
from pneumoscope.cli.progress import show_progress
from pneumoscope.errors import require_extra

# What only an annotation needs is not imported: the overview of all commands must not wait for a runtime.
if TYPE_CHECKING:
    from pneumoscope.data.samples import Sample
    from pneumoscope.domain import Prediction, Target
    from pneumoscope.model.bundle import Bundle

__all__ = ["demo"]

SAMPLES, HEATMAPS, REPORT = "samples", "heatmaps", "report.html"  # in the folder of the demonstration
STEP = "predicting the samples"


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for images, heat maps and report.")] = Path(
        "pneumoscope-demo"
    ),
    open_report: Annotated[bool, typer.Option("--open", help="Open the report in the browser.")] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="Then serve the page and open it; stop with Ctrl-C.")
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port of the page; 8000 if not given, 0 for any free one."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Predict eight real X-rays with the shipped model; show the results beside the true labels.

    Writes the images, a heat map of each and one report. Nothing is downloaded. One child is predicted
    wrongly, on purpose: no model is right every time.
    """
    if not serve:
        check_no_effect({"--port": port}, "without --serve")
    else:
        # Before the work: it must not end in a missing package.
        with require_extra("web", "serving the page"):
            import pneumoscope.serve.web.server  # noqa: F401
    bundle, samples, predictions, heatmaps = _predict(out)
    manifest, report = bundle.manifest, out / REPORT
    if as_json:
        _print_json(out, bundle, samples, predictions, heatmaps)
    else:
        from pneumoscope.report.table import print_predictions

        labels = [sample.label for sample in samples]
        print_predictions(predictions, manifest.classes, manifest.target, true_labels=labels)
        typer.echo()
        for line in _remarks(samples, predictions, manifest.target):
            typer.echo(line)
        typer.echo(f"\nHeat maps  {out / HEATMAPS}")
        typer.echo(f"Report     {report}")
        typer.echo(f"Sources    {out / SAMPLES / 'samples.csv'}")
    if open_report:
        _browse(report.resolve().as_uri())
    if serve:
        _serve(bundle, 8000 if port is None else port)


def _predict(out: Path) -> tuple[Bundle, tuple[Sample, ...], list[Prediction], list[Path | None]]:
    """Write images, heat maps and report; return the bundle, the samples, their predictions and heat maps."""
    from pneumoscope.cli.predict_output import open_images
    from pneumoscope.data.samples import write_samples
    from pneumoscope.predict.predictor import Predictor

    one_opencv_thread()
    make_folder(out)
    samples = write_samples(out / SAMPLES)
    predictor = Predictor.load()
    predictions, heatmaps = [], []
    with (
        show_progress(keep=False, after=1.0) as progress,
        open_images(out / HEATMAPS, out / REPORT, predictor, None, None) as draw,
    ):
        progress.step(STEP)
        for one in predictor.explain_iter([out / SAMPLES / sample.path for sample in samples]):
            heatmaps.append(draw(one))
            predictions.append(one.prediction)
            progress.update(len(predictions), len(samples))
    return predictor.bundle, samples, predictions, heatmaps


def _remarks(samples: Sequence[Sample], predictions: Sequence[Prediction], target: Target) -> list[str]:
    """Return what to know about the results: rejections, cautions, wrong decisions, and how many agree."""
    lines, decided, agreeing, rejected = [], 0, 0, 0
    for sample, prediction in zip(samples, predictions, strict=True):
        if prediction.message:
            lines.append(f"{sample.path}: {prediction.message}")
        if prediction.positive is None:
            rejected += 1
            continue
        decided += 1
        right = prediction.positive == target.includes(sample.label)
        agreeing += right
        if not right:
            lines.append(f"{sample.path}: wrong. {sample.content}")
    lines.append(f"{agreeing} of {decided} decisions agree with the true labels; {rejected} images rejected.")
    return lines


def _print_json(
    out: Path,
    bundle: Bundle,
    samples: Sequence[Sample],
    predictions: Sequence[Prediction],
    heatmaps: Sequence[Path | None],
) -> None:
    from pneumoscope.report.rows import to_row

    manifest = bundle.manifest
    rows: list[dict[str, Any]] = []
    for sample, prediction, drawn in zip(samples, predictions, heatmaps, strict=True):
        row = to_row(prediction, manifest.classes, manifest.target.name)
        rows.append(row | {"true_label": sample.label, "heatmap": drawn and str(drawn)})
    print_json(
        {
            "bundle": bundle_facts(bundle),
            "report": str(out / REPORT),
            "images": len(rows),
            "predictions": rows,
        }
    )


def _serve(bundle: Bundle, port: int) -> None:
    """Serve the page to this machine and open it."""
    from pneumoscope.parallel import available_cpus
    from pneumoscope.serve.web.app import create_app
    from pneumoscope.serve.web.limits import WebLimits
    from pneumoscope.serve.web.server import Address
    from pneumoscope.serve.web.server import serve as run

    def ready(url: str) -> None:
        typer.echo(f"Page       {url}  (this machine alone can reach it; Ctrl-C stops)", err=True)
        # A browser may take its time to start, and the page must not wait for it.
        threading.Thread(target=_browse, args=(url,), daemon=True).start()

    limits = WebLimits()
    app = create_app(bundle, workers=available_cpus(), limits=limits, token=None)
    run(app, Address(port=port), limits, on_ready=ready)


def _browse(url: str) -> None:
    """Open an address in the browser; where there is no desktop, only a text browser could be meant."""
    desktop = sys.platform in {"darwin", "win32"} or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    if desktop and webbrowser.open(url):
        return
    typer.echo(f"no browser to open here; open {url}", err=True)

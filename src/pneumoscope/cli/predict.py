"""`pneumoscope predict`: predict X-rays and write the results."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pneumoscope.cli.common import (
    bundle_with,
    check_output,
    check_prevalence,
    exit_code,
    note,
    one_opencv_thread,
    standard_input,
    stops_on_sigterm,
)
from pneumoscope.cli.parameters import BundlePath, Force, PointName, PopulationName
from pneumoscope.cli.progress import show_progress

# What only an annotation needs is not imported: the overview of all commands must not wait for a runtime.
if TYPE_CHECKING:
    from pneumoscope.parallel import Progress
    from pneumoscope.predict.inputs import InputItem
    from pneumoscope.predict.predictor import ExplainedPrediction, Method, Predictor

__all__ = ["predict"]

SUMMARY_FROM = 20  # images; fewer are counted at a glance
LIST_AHEAD = 100_000  # images listed before the first is predicted, so that the bar knows the total
SHOWN_AFTER = 1.0  # seconds; a bar for less would flicker


def predict(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATHS", help="Files, folders, or manifests (.csv, .parquet); - for standard input."
        ),
    ],
    bundle: BundlePath = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the results here: .csv, .json, .jsonl or .parquet.")
    ] = None,
    heatmaps: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write an image with a heat map of each X-ray here.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write one page with all X-rays, to print.")
    ] = None,
    method: Annotated[
        Literal["cam", "occlusion"],
        typer.Option(help="How heat maps are made; occlusion takes two hundred times as long."),
    ] = "cam",
    operating_point: PointName = None,
    population: PopulationName = None,
    prevalence: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            callback=check_prevalence,
            help="Expected share of images with the finding, such as 0.05; probabilities and thresholds are "
            "shifted to it.",
        ),
    ] = None,
    force: Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as a JSON array.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads; one for each usable CPU if not given.")
    ] = None,
) -> None:
    """Predict X-rays: files, folders (with all subfolders) or a manifest.

    An unreadable or rejected image does not stop the others: it is a row with a reason, and a line on
    standard error. An interrupted run keeps the rows that it finished.

    Exit code 0: all were predicted; 3: some were rejected or unreadable; 4: none could be predicted; 130: the
    run was interrupted.
    """
    check_output(out, paths)
    if report is not None and report.suffix.lower() not in {".html", ".htm"}:
        raise typer.BadParameter(f"{report}: end the name with .html", param_hint="--report")
    explained = heatmaps is not None or report is not None
    if method != "cam" and not explained:
        raise typer.BadParameter("goes with --heatmaps or --report", param_hint="--method")
    from pneumoscope.cli.predict_output import check_name, open_images, open_notes, open_rows

    check_name(out)
    predictor = _load(bundle, operating_point, population, workers, force=force, prevalence=prevalence)
    on_terminal = sys.stdout.isatty()
    # Rows on the terminal show the progress themselves, and a bar among them would break their lines.
    after = math.inf if as_json and on_terminal else 0.0 if method == "occlusion" else SHOWN_AFTER
    tally: Counter[str] = Counter()
    with ExitStack() as bar, ExitStack() as stack:
        stack.enter_context(stops_on_sigterm())
        progress = bar.enter_context(show_progress(keep=False, after=after))
        explain = stack.enter_context(open_notes(progress, grouped=sys.stderr.isatty()))
        # Before the rows: standard output stays empty where images cannot be written.
        draw = stack.enter_context(open_images(heatmaps, report, predictor, operating_point, population))
        show = stack.enter_context(open_rows(out, predictor.bundle.manifest, as_json=as_json))
        try:
            for one in _results(predictor, _given(paths), progress, method=method if explained else None):
                tally[one.prediction.status] += 1
                explain(one.prediction)
                show(one.prediction)
                draw(one)
        finally:
            bar.close()  # before the rows and notes that are printed at the end
    if out is not None or tally.total() > SUMMARY_FROM:
        counts = ", ".join(f"{tally[status]:,} {status}" for status in ("ok", "rejected", "unreadable"))
        images = f"{tally.total():,} image{'s' if tally.total() != 1 else ''}"
        note(f"{images}: {counts}{f'; results in {out}' if out else ''}")
    if report is not None:
        note(f"report: {report}")
    raise typer.Exit(exit_code(done=tally["ok"], left_out=tally["rejected"] + tally["unreadable"]))


def _given(paths: list[str]) -> list[str | InputItem]:
    """Return the paths, with the content of standard input in place of ``-``."""
    from pneumoscope.predict.inputs import InputItem

    return [InputItem(standard_input(), "<stdin>") if path == "-" else path for path in paths]


def _load(
    path: Path | None,
    operating_point: str | None,
    population: str | None,
    workers: int | None,
    *,
    force: bool,
    prevalence: float | None,
) -> Predictor:
    """Load the bundle and the network."""
    from pneumoscope.parallel import available_cpus
    from pneumoscope.predict.predictor import Predictor

    one_opencv_thread()
    bundle = bundle_with(path, operating_point, population)
    return Predictor(
        bundle,
        operating_point,
        population=population,
        workers=workers or available_cpus(),
        force=force,
        prevalence=prevalence,
    )


def _results(
    predictor: Predictor, paths: list[str | InputItem], progress: Progress, *, method: Method | None
) -> Iterator[ExplainedPrediction]:
    """Predict, and make heat maps by `method` unless it is None."""
    from pneumoscope.predict.inputs import expand
    from pneumoscope.predict.predictor import ExplainedPrediction

    progress.step("listing files")
    # Folders are walked once: what was listed to know the total is also what is predicted.
    items = expand(paths, progress=progress)
    ahead: list[InputItem] = []
    for item in islice(items, LIST_AHEAD):
        ahead.append(item)
        progress.update(len(ahead))
    total = len(ahead) if len(ahead) < LIST_AHEAD else None
    stream = chain(ahead, items)
    progress.step("predicting")
    results = (
        map(ExplainedPrediction, predictor.predict_iter(stream))
        if method is None
        else predictor.explain_iter(stream, method=method)
    )
    for done, one in enumerate(results, start=1):
        yield one
        progress.update(done, total)

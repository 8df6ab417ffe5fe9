"""`pneumoscope predict`: predict X-rays and write the results."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pneumoscope.cli.common import (
    check_output,
    exit_code,
    how_made,
    make_folder,
    one_opencv_thread,
    point_text,
    population_text,
    standard_input,
    stops_on_sigterm,
    target_text,
    training_data_text,
)
from pneumoscope.cli.progress import show_progress
from pneumoscope.domain import ANY_POPULATION
from pneumoscope.errors import DataError
from pneumoscope.parallel import Progress

# What only an annotation needs is not imported: the overview of all commands must not wait for a runtime.
if TYPE_CHECKING:
    from pneumoscope.domain import OperatingPoint, Prediction
    from pneumoscope.model.manifest import BundleManifest
    from pneumoscope.predict.inputs import InputItem
    from pneumoscope.predict.predictor import ExplainedPrediction, Method, Predictor

__all__ = ["predict"]

PROGRESS_FROM = 20  # images; fewer are done before a bar is read
LIST_AHEAD = 100_000  # images listed before the first is predicted, so that the bar knows the total
TABLE_PAGE = 500  # rows held in memory until the widths of their columns are known
NAME_BYTES = 230  # of a heat map's name before its number and ending; file systems allow 255 in all


def predict(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATHS", help="Files, folders, or manifests (.csv, .parquet); - for standard input."
        ),
    ],
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle or run folder; the shipped bundle if not given.")
    ] = None,
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
    operating_point: Annotated[
        str | None, typer.Option(metavar="NAME", help="Operating point; the bundle's default if not given.")
    ] = None,
    population: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Population of all images; by age and view of each image if not given."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Predict images that would be rejected; the reasons stay.")
    ] = False,
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
    if not all(map(str.strip, paths)):
        raise typer.BadParameter("a path is empty; . is the current folder", param_hint="PATHS")
    check_output(out, paths)
    if report is not None and report.suffix.lower() not in {".html", ".htm"}:
        raise typer.BadParameter(f"{report}: end the name with .html", param_hint="--report")
    explained = heatmaps is not None or report is not None
    if method != "cam" and not explained:
        raise typer.BadParameter("goes with --heatmaps or --report", param_hint="--method")
    predictor = _load(bundle, operating_point, population, workers, force=force)
    with (
        stops_on_sigterm(),
        _output(out, predictor.bundle.manifest, as_json=as_json) as show,
        _images(heatmaps, report, predictor, operating_point, population) as draw,
    ):
        tally = _predict_all(
            _results(predictor, _given(paths), method=method if explained else None), show, draw
        )
    if not tally:
        raise DataError("no image was given; name files, or a folder or manifest with images")
    if out is not None or tally.total() > PROGRESS_FROM:
        counts = ", ".join(f"{tally[status]} {status}" for status in ("ok", "rejected", "unreadable"))
        typer.echo(f"{tally.total()} images: {counts}{f'; results in {out}' if out else ''}", err=True)
    if report is not None:
        typer.echo(f"report: {report}", err=True)
    raise typer.Exit(exit_code(done=tally["ok"], left_out=tally["rejected"] + tally["unreadable"]))


def _predict_all(
    results: Iterator[ExplainedPrediction],
    show: Callable[[Prediction], None],
    draw: Callable[[ExplainedPrediction], None],
) -> Counter[str]:
    """Pass on each result, with a line on standard error for each that has reasons; return the statuses."""
    tally: Counter[str] = Counter()
    for one in results:
        prediction = one.prediction
        tally[prediction.status] += 1
        if prediction.reasons:
            reasons = ", ".join(prediction.reasons)
            typer.echo(f"{prediction.path}: {prediction.message} [{reasons}]", err=True)
        show(prediction)
        draw(one)
    return tally


def _given(paths: list[str]) -> list[str | InputItem]:
    """Return the paths, with the content of standard input in place of ``-``."""
    from pneumoscope.predict.inputs import InputItem

    return [InputItem(standard_input(), "<stdin>") if path == "-" else path for path in paths]


class _Messages(Progress):
    """Writes messages to standard error, and nothing else."""

    def message(self, line: str) -> None:
        typer.echo(line, err=True)


def _load(
    path: Path | None,
    operating_point: str | None,
    population: str | None,
    workers: int | None,
    *,
    force: bool,
) -> Predictor:
    """Load the bundle; a name that it does not have is wrong use."""
    from pneumoscope.model.bundle import load_bundle
    from pneumoscope.parallel import available_cpus
    from pneumoscope.predict.predictor import Predictor

    one_opencv_thread()
    bundle = load_bundle(path, allow_draft=False)
    calibrations = bundle.manifest.calibrations
    populations = [calibration.population for calibration in calibrations]
    if population is not None:
        _check_name(population, populations, "--population")
        calibrations = (bundle.manifest.calibration_for(population),)
    if operating_point is not None:
        common = [
            point.name
            for point in calibrations[0].operating_points
            if all(point.name in {one.name for one in other.operating_points} for other in calibrations)
        ]
        _check_name(operating_point, common, "--operating-point")
    return Predictor(
        bundle, operating_point, population=population, workers=workers or available_cpus(), force=force
    )


def _check_name(name: str, known: list[str], option: str) -> None:
    if name not in known:
        raise typer.BadParameter(f"this bundle has no {name!r}; it has {', '.join(known)}", param_hint=option)


def _results(
    predictor: Predictor, paths: list[str | InputItem], *, method: Method | None
) -> Iterator[ExplainedPrediction]:
    """Predict, and make heat maps by `method` unless it is None; show progress for more than a few images."""
    from pneumoscope.predict.inputs import expand
    from pneumoscope.predict.predictor import ExplainedPrediction

    # Folders are walked once: what was listed to know the total is also what is predicted.
    items = expand(paths, progress=_Messages())
    ahead = list(islice(items, LIST_AHEAD))
    total = len(ahead) if len(ahead) < LIST_AHEAD else None
    stream = chain(ahead, items)
    results = (
        map(ExplainedPrediction, predictor.predict_iter(stream))
        if method is None
        else predictor.explain_iter(stream, method=method)
    )
    if total is not None and total <= PROGRESS_FROM:
        yield from results
        return
    with show_progress(keep=False) as progress:
        progress.step("predicting")
        for done, one in enumerate(results, start=1):
            yield one
            progress.update(done, total)


@contextmanager
def _output(
    out: Path | None, manifest: BundleManifest, *, as_json: bool
) -> Iterator[Callable[[Prediction], None]]:
    """Choose where results go: a file, JSON, a table on a terminal, tab-separated lines otherwise."""
    from pneumoscope.report.writers import RESULT_SUFFIXES, json_array, open_results

    if out is not None and out.suffix.lower() not in RESULT_SUFFIXES:
        known = ", ".join(RESULT_SUFFIXES)
        raise typer.BadParameter(f"{out}: end the name with one of {known}", param_hint="--out")
    classes, target = manifest.classes, manifest.target.name
    with ExitStack() as stack:
        sinks = []
        if out is not None:
            stack.enter_context(_says_where(out))
            sinks.append(stack.enter_context(open_results(out, classes=classes, target=target)))
        if as_json:
            sinks.append(stack.enter_context(json_array(sys.stdout, classes=classes, target=target)))
        elif out is None:
            printed = _table if sys.stdout.isatty() else _lines
            sinks.append(stack.enter_context(printed(classes, target)))

        def show(prediction: Prediction) -> None:
            for sink in sinks:
                sink(prediction)

        yield show


@contextmanager
def _says_where(out: Path) -> Iterator[None]:
    """Say where the finished rows are if the work ends early."""
    from pneumoscope.report.writers import unfinished_path

    kept = unfinished_path(out)
    before = kept.stat().st_mtime_ns if kept.exists() else None
    complete = False
    try:
        yield
        complete = True
    finally:
        if not complete and kept.exists() and kept.stat().st_mtime_ns != before:
            typer.echo(f"ended early; the finished rows are in {kept}", err=True)


@contextmanager
def _table(classes: tuple[str, ...], target: str) -> Iterator[Callable[[Prediction], None]]:
    """Print tables of at most `TABLE_PAGE` rows."""
    from rich.console import Console

    from pneumoscope.report.rows import as_table

    console = Console()
    page: list[Prediction] = []

    def show(prediction: Prediction) -> None:
        page.append(prediction)
        if len(page) >= TABLE_PAGE:
            console.print(as_table(page, classes, target))
            page.clear()

    yield show
    if page:
        console.print(as_table(page, classes, target))


@contextmanager
def _lines(classes: tuple[str, ...], target: str) -> Iterator[Callable[[Prediction], None]]:
    """Print a header and one tab-separated line per image."""
    from pneumoscope.report.rows import tsv_header, tsv_line

    typer.echo(tsv_header(classes, target))
    yield lambda prediction: typer.echo(tsv_line(prediction, classes, target))


@contextmanager
def _images(
    folder: Path | None,
    report: Path | None,
    predictor: Predictor,
    operating_point: str | None,
    population: str | None,
) -> Iterator[Callable[[ExplainedPrediction], None]]:
    """Open where images go: a folder, a page, both or neither."""
    with ExitStack() as stack:
        sinks: list[Callable[[ExplainedPrediction], None]] = []
        if folder is not None:
            sinks.append(_drawing(folder, predictor))
        if report is not None:
            from pneumoscope.report.html import open_report

            about = _about(predictor, operating_point, population)
            target = predictor.bundle.manifest.target.name
            add = stack.enter_context(open_report(report, target=target, about=about))
            sinks.append(
                lambda one: add(one.prediction, one.radiograph, one.explanation, _point(predictor, one))
            )

        def draw(one: ExplainedPrediction) -> None:
            for sink in sinks:
                sink(one)

        yield draw


def _point(predictor: Predictor, one: ExplainedPrediction) -> OperatingPoint | None:
    """Return the operating point that was used for an image; None without a prediction."""
    return predictor.point_of(one.prediction) if one.prediction.operating_point else None


def _about(predictor: Predictor, operating_point: str | None, population: str | None) -> dict[str, str]:
    """Return the facts on the model that a report states."""
    from pneumoscope import __version__

    manifest = predictor.bundle.manifest
    made = manifest.provenance
    facts = {
        "Model": predictor.bundle.identity,
        "Classes": ", ".join(manifest.classes),
        "Target": target_text(manifest.target),
    }
    for calibration in manifest.calibrations:
        if population not in {None, calibration.population}:
            continue
        suffix = "" if calibration.population == ANY_POPULATION else f", {calibration.population}"
        point = manifest.operating_point(operating_point, calibration.population)
        facts[f"Operating point{suffix}"] = f"{point.name}: {point_text(point, manifest.target.name)}"
        fitted = calibration.calibrator
        if fitted.fitted_on:
            facts[f"Calibration{suffix}"] = f"{fitted.method} scaling, fitted on {fitted.fitted_on}"
    facts |= {
        "Gate": "overridden" if predictor.force else "images outside of its limits are rejected",
        "Trained on": "; ".join(map(training_data_text, made.data)),
        "Evaluated on": "; ".join(map(population_text, manifest.validated)),
        "Made by": how_made(made),
        "Created": made.created,
        "Intended use": manifest.intended_use,
        **{f"sha256 of {name}": digest for name, digest in sorted(manifest.files.items())},
        "Software": f"Pneumoscope {__version__}",
    }
    return {name: fact for name, fact in facts.items() if fact}


def _drawing(folder: Path, predictor: Predictor) -> Callable[[ExplainedPrediction], None]:
    """Make the folder and return a function that writes an image of each prediction into it."""
    from pneumoscope.data.walk import is_own_output
    from pneumoscope.report.overlay import draw_prediction, write_png

    make_folder(folder)
    taken: set[str] = set()

    def is_free(name: str) -> bool:
        path = folder / f"{name}.heatmap.png"
        return name not in taken and (not path.exists() or is_own_output(path))

    def draw(one: ExplainedPrediction) -> None:
        if one.radiograph is None:
            return
        # Images in different folders may have the same name; the second of them gets a number.
        stem = _short(Path(one.prediction.path).stem)
        names = chain([stem], (f"{stem}-{number}" for number in count(2)))
        name = next(filter(is_free, names))
        taken.add(name)
        image = draw_prediction(one.prediction, one.radiograph, one.explanation, _point(predictor, one))
        write_png(image, folder / f"{name}.heatmap.png")

    return draw


def _short(stem: str) -> str:
    """Return the beginning of a name that leaves space for a number and an ending."""
    name = os.fsencode(stem)
    return stem if len(name) <= NAME_BYTES else name[:NAME_BYTES].decode(errors="ignore")

"""`pneumoscope predict`: predict X-rays and write down the answers."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pneumoscope.cli.exit_codes import exit_code
from pneumoscope.cli.folders import make_folder
from pneumoscope.errors import DataError

# What only an annotation needs is not imported: the overview of all commands must not wait for a runtime.
if TYPE_CHECKING:
    from pneumoscope.domain import Prediction
    from pneumoscope.predict.predictor import Examination, Method, Predictor

__all__ = ["predict"]

PROGRESS_FROM = 20  # files; fewer are done before a bar is read
TABLE_PAGE = 500  # rows held in memory until the widths of their columns are known


def predict(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATHS", help="Files, folders, or manifests (.csv, .parquet).")
    ],
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle or run folder; the shipped bundle if not given.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the answers here: .csv, .json, .jsonl or .parquet.")
    ] = None,
    heatmaps: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw a image of each answer into this folder.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write one page with all images, for print.")
    ] = None,
    method: Annotated[
        Literal["cam", "occlusion"],
        typer.Option(help="How heat maps are made; occlusion takes two hundred times as long."),
    ] = "cam",
    operating_point: Annotated[
        str | None, typer.Option(metavar="NAME", help="Operating point; the bundle's default if not given.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Predict images that would be rejected; the reasons stay.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answers as a JSON array.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads; one for each usable CPU if not given.")
    ] = None,
) -> None:
    """Predict X-rays: files, folders (with all subfolders) or a manifest.

    One bad image never stops the others: it is a row with a reason, and a line on standard error.

    Exit code 0: all were predicted; 3: some were rejected or unreadable; 4: none could be predicted.
    """
    tally: Counter[str] = Counter()
    if report is not None and report.suffix.lower() not in {".html", ".htm"}:
        raise typer.BadParameter(f"{report}: end the name with .html", param_hint="--report")
    explained = heatmaps is not None or report is not None
    if method != "cam" and not explained:
        raise typer.BadParameter("add --heatmaps or --report, or no map is made", param_hint="--method")
    predictor = _load(bundle, operating_point, workers, force=force)
    with _output(out, as_json=as_json) as show, _images(heatmaps, report, predictor) as draw:
        examinations = _examinations(predictor, paths, method=method if explained else None)
        for examination in _with_progress(examinations, paths):
            prediction = examination.prediction
            tally[prediction.status] += 1
            if prediction.reasons:
                reasons = ", ".join(prediction.reasons)
                typer.echo(f"{prediction.path}: {prediction.message} [{reasons}]", err=True)
            show(prediction)
            draw(examination)
    if not tally:
        raise DataError("there is no image in what was given; name files, or a folder that holds some")
    if out is not None or tally.total() > PROGRESS_FROM:
        counts = ", ".join(f"{tally[status]} {status}" for status in ("ok", "rejected", "unreadable"))
        typer.echo(f"{tally.total()} images: {counts}{f'; answers in {out}' if out else ''}", err=True)
    if report is not None:
        typer.echo(f"report: {report}", err=True)
    raise typer.Exit(exit_code(done=tally["ok"], left_out=tally["rejected"] + tally["unreadable"]))


def _load(path: Path | None, operating_point: str | None, workers: int | None, *, force: bool) -> Predictor:
    from pneumoscope.model.bundle import load_bundle
    from pneumoscope.parallel import available_cpus
    from pneumoscope.predict.predictor import Predictor

    bundle = load_bundle(path)
    names = [point.name for point in bundle.manifest.operating_points]
    if operating_point is not None and operating_point not in names:
        raise typer.BadParameter(
            f"this bundle has no {operating_point!r}; it has {', '.join(names)}",
            param_hint="--operating-point",
        )
    point = bundle.manifest.operating_point(operating_point)
    return Predictor(bundle, point, workers=workers or available_cpus(), force=force)


def _examinations(predictor: Predictor, paths: list[str], *, method: Method | None) -> Iterator[Examination]:
    """Examine where images are drawn; predict, which is cheaper, where not."""
    from pneumoscope.predict.predictor import Examination

    if method is not None:
        yield from predictor.examine_iter(paths, method=method)
    else:
        yield from map(Examination, predictor.predict_iter(paths))


@contextmanager
def _output(out: Path | None, *, as_json: bool) -> Iterator[Callable[[Prediction], None]]:
    """Choose where answers go: a file, JSON, a table for people, tab-separated lines for programs."""
    from pneumoscope.report.writers import RESULT_SUFFIXES, json_array, open_results

    if out is not None and out.suffix.lower() not in RESULT_SUFFIXES:
        known = ", ".join(RESULT_SUFFIXES)
        raise typer.BadParameter(f"{out}: end the name with one of {known}", param_hint="--out")
    with ExitStack() as stack:
        sinks = []
        if out is not None:
            sinks.append(stack.enter_context(open_results(out)))
        if as_json:
            sinks.append(stack.enter_context(json_array(sys.stdout)))
        elif out is None:
            sinks.append(stack.enter_context(_table() if sys.stdout.isatty() else _lines()))

        def show(prediction: Prediction) -> None:
            for sink in sinks:
                sink(prediction)

        yield show


@contextmanager
def _table() -> Iterator[Callable[[Prediction], None]]:
    """Print rich tables of at most `TABLE_PAGE` rows."""
    from rich.console import Console

    from pneumoscope.report.table import as_table

    console = Console()
    page: list[Prediction] = []

    def show(prediction: Prediction) -> None:
        page.append(prediction)
        if len(page) >= TABLE_PAGE:
            console.print(as_table(page))
            page.clear()

    yield show
    if page:
        console.print(as_table(page))


@contextmanager
def _lines() -> Iterator[Callable[[Prediction], None]]:
    """Print a header and one tab-separated line a image."""
    from pneumoscope.report.rows import tsv_header, tsv_line

    typer.echo(tsv_header())
    yield lambda prediction: typer.echo(tsv_line(prediction))


@contextmanager
def _images(
    folder: Path | None, report: Path | None, predictor: Predictor
) -> Iterator[Callable[[Examination], None]]:
    """Open what images go into: a folder, a page, both or neither."""
    with ExitStack() as stack:
        sinks: list[Callable[[Examination], None]] = []
        if folder is not None:
            sinks.append(_drawing(folder, predictor))
        if report is not None:
            from pneumoscope.report.html import open_report

            about, point = _identity(predictor), predictor.operating_point
            add = stack.enter_context(open_report(report, about=about, operating_point=point))
            sinks.append(lambda one: add(one.prediction, one.radiograph, one.explanation))

        def draw(examination: Examination) -> None:
            for sink in sinks:
                sink(examination)

        yield draw


def _identity(predictor: Predictor) -> dict[str, str]:
    """Say which model answers, and how: what a page is signed with."""
    from pneumoscope import __version__

    manifest, point = predictor.bundle.manifest, predictor.operating_point
    made, calibrator = manifest.provenance, manifest.calibrator
    reached = ", ".join(
        f"{name} {value:.1%}"
        for name, value in (("sensitivity", point.sensitivity), ("specificity", point.specificity))
        if value is not None
    )
    facts = {
        "Model": predictor.bundle.identity,
        "Findings": ", ".join(manifest.findings),
        "Operating point": f"{point.name}: pneumonia from {point.threshold:.4f} on"
        + (f" ({reached} where it was chosen)" if reached else ""),
        "Calibration": f"{calibrator.method}, fitted on {calibrator.fitted_on}"
        if calibrator.fitted_on
        else "",
        "Gate": "overridden" if predictor.force else "images that the model cannot predict are rejected",
        "Trained on": "; and ".join(filter(None, (made.data_description, made.also_description))),
        "Made": made.created,
        "Intended use": manifest.intended_use,
        **{f"sha256 of {name}": digest for name, digest in sorted(manifest.files.items())},
        "Software": f"Pneumoscope {__version__}",
    }
    return {name: fact for name, fact in facts.items() if fact}


def _drawing(folder: Path, predictor: Predictor) -> Callable[[Examination], None]:
    """Make the folder and return a function that draws an examination into it."""
    from pneumoscope.report.overlay import draw_answer, write_png

    make_folder(folder)
    taken: set[str] = set()

    def draw(examination: Examination) -> None:
        prediction, radiograph = examination.prediction, examination.radiograph
        if radiograph is None:
            return
        # Images of one name may lie in several folders; the second of them gets a number.
        stem = Path(prediction.path).stem
        names = chain([stem], (f"{stem}-{number}" for number in count(2)))
        name = next(one for one in names if one not in taken)
        taken.add(name)
        image = draw_answer(prediction, radiograph, examination.explanation, predictor.operating_point)
        write_png(image, folder / f"{name}.heatmap.png")

    return draw


def _with_progress(examinations: Iterator[Examination], paths: list[str]) -> Iterator[Examination]:
    """Show a progress bar on a terminal where there are more than a few images."""
    if not sys.stderr.isatty():
        yield from examinations
        return
    from pneumoscope.predict.inputs import expand

    total = sum(1 for _ in expand(paths))
    if total <= PROGRESS_FROM:
        yield from examinations
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as progress:
        yield from progress.track(examinations, total=total)

"""Where the results of `pneumoscope predict` go: rows, notes for people, heat maps and a report."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pneumoscope.cli.common import (
    how_made,
    make_folder,
    note,
    point_text,
    target_text,
    training_data_text,
)
from pneumoscope.cli.options import shown
from pneumoscope.domain import ANY_POPULATION

if TYPE_CHECKING:
    from pneumoscope.domain import OperatingPoint, Prediction
    from pneumoscope.model.manifest import BundleManifest, Calibration
    from pneumoscope.parallel import Progress
    from pneumoscope.predict.predictor import ExplainedPrediction, Predictor
    from pneumoscope.report.html import AddPrediction

__all__ = ["check_name", "open_images", "open_notes", "open_rows"]

TABLE_PAGE = 500  # rows held in memory until the widths of their columns are known
NAMES_IN_A_NOTE = 3
NAME_BYTES = 230  # of a heat map's name before its number and ending; file systems allow 255 in all


def check_name(out: Path | None) -> None:
    """Stop with a usage message where no table can be written under a name."""
    from pneumoscope.report.writers import RESULT_SUFFIXES

    if out is not None and out.suffix.lower() not in RESULT_SUFFIXES:
        known = ", ".join(RESULT_SUFFIXES)
        raise typer.BadParameter(f"{out}: end the name with one of {known}", param_hint="--out")


@contextmanager
def open_rows(
    out: Path | None, manifest: BundleManifest, *, as_json: bool
) -> Iterator[Callable[[Prediction], None]]:
    """Open where rows go: a file, JSON, a table on a terminal, tab-separated lines otherwise."""
    from pneumoscope.report.writers import json_array, open_results

    classes, target = manifest.classes, manifest.target.name
    with ExitStack() as stack:
        sinks = []
        if out is not None:
            stack.enter_context(_says_where(out))
            sinks.append(stack.enter_context(open_results(out, classes=classes, target=target)))
        if as_json:
            sinks.append(stack.enter_context(json_array(sys.stdout, classes=classes, target=target)))
        elif out is None:
            printed = _table(manifest) if sys.stdout.isatty() else _lines(classes, target)
            sinks.append(stack.enter_context(printed))

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
            note(f"ended early; the finished rows are in {kept}")


@contextmanager
def _table(manifest: BundleManifest) -> Iterator[Callable[[Prediction], None]]:
    """Print tables of at most `TABLE_PAGE` rows."""
    from pneumoscope.report.table import print_predictions

    page: list[Prediction] = []

    def show(prediction: Prediction) -> None:
        page.append(prediction)
        if len(page) >= TABLE_PAGE:
            print_predictions(page, manifest.classes, manifest.target)
            page.clear()

    try:
        yield show
    finally:  # an interrupted run shows what it has
        if page:
            print_predictions(page, manifest.classes, manifest.target)


@contextmanager
def _lines(classes: tuple[str, ...], target: str) -> Iterator[Callable[[Prediction], None]]:
    """Print a header and one tab-separated line per image."""
    from pneumoscope.report.rows import tsv_header, tsv_line

    typer.echo(tsv_header(classes, target))
    yield lambda prediction: typer.echo(tsv_line(prediction, classes, target))


@contextmanager
def open_notes(progress: Progress, *, grouped: bool) -> Iterator[Callable[[Prediction], None]]:
    """Open where the reasons of images go, in words: a line for each, or at the end one for each reason.

    Parameters
    ----------
    progress : Progress
        Receives the lines.
    grouped : bool
        For a terminal, where whole paths would fill the screen; the rows have them.
    """
    names: defaultdict[str, list[str]] = defaultdict(list)
    counts: defaultdict[str, int] = defaultdict(int)

    def add(prediction: Prediction) -> None:
        if not prediction.reasons or shown().quiet:
            return
        if not grouped:
            reasons = ", ".join(prediction.reasons)
            progress.message(f"{prediction.path}: {prediction.message} [{reasons}]")
            return
        counts[prediction.message] += 1
        if len(names[prediction.message]) < NAMES_IN_A_NOTE:
            names[prediction.message].append(prediction.path)

    try:
        yield add
    finally:  # an interrupted run says what it has seen
        if counts:
            _print_notes(names, counts)


def _print_notes(names: dict[str, list[str]], counts: dict[str, int]) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    from pneumoscope.report.table import printable, shorten

    console = Console(stderr=True, highlight=False)
    console.print()
    for message, paths in names.items():
        console.print(Text(message, "yellow"))
        shortened = [shorten(printable(Path(path).name), console.width // 3) for path in paths]
        more = counts[message] - len(paths)
        listed = ", ".join(shortened) + (f" and {more:,} more" if more else "")
        console.print(Padding(Text(listed), (0, 0, 0, 4)))


@contextmanager
def open_images(
    folder: Path | None,
    report: Path | None,
    predictor: Predictor,
    operating_point: str | None,
    population: str | None,
) -> Iterator[Callable[[ExplainedPrediction], Path | None]]:
    """Open where images go: a folder, a page, both or neither; adding one returns its file in the folder."""
    with ExitStack() as stack:
        add: AddPrediction | None = None
        write = None if folder is None else _drawing(folder, predictor)
        if report is not None:
            from pneumoscope.report.html import open_report

            about = _about(predictor, operating_point, population)
            target = predictor.bundle.manifest.target.name
            add = stack.enter_context(open_report(report, target=target, about=about))

        def draw(one: ExplainedPrediction) -> Path | None:
            if add is not None:
                add(one.prediction, one.radiograph, one.explanation, _point(predictor, one))
            return None if write is None else write(one)

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
        facts[f"Calibration{suffix}"] = _calibration(calibration)
    facts |= {
        "Gate": "overridden" if predictor.force else "images outside of its limits are rejected",
        "Trained on": "; ".join(map(training_data_text, made.data)),
        "Evaluated on": "; ".join(one.describe_with_counts() for one in manifest.validated),
        "Made by": how_made(made),
        "Created": made.created,
        "Intended use": manifest.intended_use,
        **{f"sha256 of {name}": digest for name, digest in sorted(manifest.files.items())},
        "Software": f"Pneumoscope {__version__}",
    }
    return {name: fact for name, fact in facts.items() if fact}


def _calibration(calibration: Calibration) -> str:
    """Return how probabilities were calibrated, and the prevalence that they were shifted to."""
    from pneumoscope.predict.calibration import assumed_prevalence

    fitted = calibration.calibrator
    parts = [f"{fitted.method} scaling, fitted on {fitted.fitted_on}"] if fitted.fitted_on else []
    if fitted.prior_shift:
        assumed = assumed_prevalence(calibration)
        parts.append(f"probabilities and thresholds shifted to a prevalence of {assumed:.3g}")
    return "; ".join(parts)


def _drawing(folder: Path, predictor: Predictor) -> Callable[[ExplainedPrediction], Path | None]:
    """Make the folder; return a function that writes an image of a prediction and returns its path."""
    from pneumoscope.data.walk import is_own_output
    from pneumoscope.image.lungs import image_stem
    from pneumoscope.report.overlay import draw_prediction, write_png

    make_folder(folder)
    taken: set[str] = set()

    def is_free(name: str) -> bool:
        path = folder / f"{name}.heatmap.png"
        # Of two names that differ in case alone, some file systems keep one.
        return name.casefold() not in taken and (not path.exists() or is_own_output(path))

    def draw(one: ExplainedPrediction) -> Path | None:
        if one.radiograph is None:
            return None
        # Images in different folders may have the same name; the second of them gets a number.
        # "<stdin>" is no name that Windows allows.
        stem = _short(image_stem(Path(one.prediction.path.strip("<>"))))
        names = chain([stem], (f"{stem}-{number}" for number in count(2)))
        name = next(filter(is_free, names))
        taken.add(name.casefold())
        image = draw_prediction(one.prediction, one.radiograph, one.explanation, _point(predictor, one))
        path = folder / f"{name}.heatmap.png"
        write_png(image, path)
        return path

    return draw


def _short(stem: str) -> str:
    """Return the beginning of a name that leaves space for a number and an ending."""
    name = os.fsencode(stem)
    return stem if len(name) <= NAME_BYTES else name[:NAME_BYTES].decode(errors="ignore")

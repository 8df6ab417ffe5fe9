"""What several commands share: exit codes, folders for results, and facts of a bundle in words."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from pneumoscope.cli.options import shown
from pneumoscope.errors import DataError
from pneumoscope.parallel import launched_as

if TYPE_CHECKING:
    from pneumoscope.domain import OperatingPoint, Target
    from pneumoscope.model.bundle import Bundle
    from pneumoscope.model.manifest import Provenance, TrainingData

__all__ = [
    "INTERRUPTED",
    "NOTHING_DONE",
    "SOME_LEFT_OUT",
    "WRONG_USE",
    "bundle_facts",
    "bundle_with",
    "check_cache",
    "check_data",
    "check_no_effect",
    "check_no_run",
    "check_output",
    "check_outside",
    "check_prevalence",
    "check_weights",
    "exit_code",
    "folder_of_cache",
    "how_made",
    "make_folder",
    "note",
    "one_opencv_thread",
    "point_text",
    "print_json",
    "says_how_to_continue",
    "standard_input",
    "stops_on_sigterm",
    "target_text",
    "training_data_text",
]

WRONG_USE = 2  # which typer ends with, too
SOME_LEFT_OUT = 3
NOTHING_DONE = 4
INTERRUPTED = 130

CODING_SCHEMES = {"SCT": "SNOMED CT", "RADLEX": "RadLex"}


def note(line: str) -> None:
    """Write a line for people to standard error, unless the command is quiet."""
    if not shown().quiet:
        typer.echo(line, err=True)


def print_json(value: Any) -> None:
    """Print the result of a command as JSON, in the form that all commands share."""
    from pneumoscope.report.writers import is_utf8

    typer.echo(json.dumps(value, indent=2, ensure_ascii=not is_utf8(sys.stdout)))


def bundle_facts(bundle: Bundle) -> dict[str, str]:
    """Return how every command names a bundle in JSON."""
    return {"identity": bundle.identity, "path": str(bundle.path)}


def bundle_with(path: Path | None, operating_point: str | None, population: str | None) -> Bundle:
    """Load a bundle; an operating point or a population that it does not have is wrong use."""
    from pneumoscope.model.bundle import load_bundle

    bundle = load_bundle(path, allow_draft=False)
    calibrations = bundle.manifest.calibrations
    if population is not None:
        _check_name(population, [one.population for one in calibrations], "--population")
        calibrations = (bundle.manifest.calibration_for(population),)
    if operating_point is not None:
        common = [
            point.name
            for point in calibrations[0].operating_points
            if all(point.name in {one.name for one in other.operating_points} for other in calibrations)
        ]
        _check_name(operating_point, common, "--operating-point")
    return bundle


def _check_name(name: str, known: list[str], option: str) -> None:
    if name not in known:
        raise typer.BadParameter(f"this bundle has no {name!r}; it has {', '.join(known)}", param_hint=option)


def exit_code(*, done: int, left_out: int) -> int:
    """Return the exit code of a batch: 0, or 3 if some inputs were left out, or 4 if nothing was done."""
    if done == 0:
        return NOTHING_DONE
    return SOME_LEFT_OUT if left_out else 0


def check_output(out: Path | None, inputs: Iterable[str | Path | None], option: str = "--out") -> None:
    """Stop with a usage message where a file to write is one of those to read, under any of its names."""
    if out is None or not out.exists():
        return
    for given in inputs:
        try:
            same = given is not None and out.samefile(given)
        except (OSError, ValueError):  # no such file: reading it gives the reason
            continue
        if same:
            raise typer.BadParameter(
                f"{out} is one of the inputs and would be overwritten; name another file", param_hint=option
            )


def check_outside(out: Path, data: Path, option: str = "--out") -> None:
    """Stop with a usage message where a folder for results lies in a folder of X-rays, or is that folder."""
    place = out.resolve()
    if data.is_dir() and data.resolve() in (place, *place.parents):
        raise typer.BadParameter(
            f"{out} lies in the data; name a folder outside of {data}, so that no plot is taken for an X-ray",
            param_hint=option,
        )


def check_no_run(out: Path, option: str = "--out") -> None:
    """Stop with a usage message where a folder for results is that of a run, which has its own."""
    # Names of the package that makes runs, which needs torch.
    if any((out / name).exists() for name in ("recipe.yaml", "inputs.json")):
        raise typer.BadParameter(
            f"{out} is a run folder, whose own report or bundle would be replaced; name another folder",
            param_hint=option,
        )


def check_no_effect(given: Mapping[str, object], why: str) -> None:
    """Stop with a usage message where an option is given, and is not None or False, that has no effect.

    Parameters
    ----------
    given : mapping of str to object
        By the name of each option, its value.
    why : str
        What it has no effect with, or without, such as ``with --leave-out``.
    """
    for option, value in given.items():
        if value is not None and value is not False:
            raise typer.BadParameter(f"has no effect {why}", param_hint=option)


def check_weights(pretrained: bool | None, weights: Path | None) -> None:
    """Stop with a usage message where two options exclude each other."""
    if pretrained is False and weights is not None:
        raise typer.BadParameter("--weights and --no-pretrained exclude each other")


def check_cache(cache: Path | None, *, no_cache: bool) -> None:
    """Stop with a usage message where two options exclude each other."""
    if no_cache:
        check_no_effect({"--cache": cache}, "with --no-cache")


def check_data(data: Path) -> None:
    """Notice absent data before the training libraries are loaded, which takes seconds.

    Not where ``torchrun`` started several processes: the data need to be on the machine of the first only,
    and its error ends them all.

    Raises
    ------
    DataError
        As `pneumoscope.data.load` does.
    """
    if launched_as().processes == 1 and not data.exists():
        from pneumoscope.data import load

        load(data)


def folder_of_cache(cache: Path | None, *, no_cache: bool) -> Path | None:
    """Return where prepared images are kept, or None where they are not, by the options of a command."""
    from pneumoscope.predict.cache import default_cache_folder

    return None if no_cache else cache or default_cache_folder()


def check_prevalence(value: float | None) -> float | None:
    """Let an option be a share above 0 and below 1, by at least `LEAST_PREVALENCE`."""
    if value is None:
        return None
    from pneumoscope.predict.calibration import LEAST_PREVALENCE

    if not LEAST_PREVALENCE <= value <= 1 - LEAST_PREVALENCE:
        raise typer.BadParameter(f"must be above 0 and below 1, by at least {LEAST_PREVALENCE:g}")
    return value


def standard_input() -> bytes:
    """Return the content of standard input, up to one byte more than the largest file that is read."""
    from pneumoscope.image.limits import DEFAULT_LIMITS

    if sys.stdin is None or sys.stdin.isatty():
        raise typer.BadParameter("- reads standard input; pipe an image into it", param_hint="PATHS")
    return sys.stdin.buffer.read(DEFAULT_LIMITS.max_bytes + 1)


@contextmanager
def stops_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the work as Ctrl-C does, so that what is done is kept; for the main thread."""

    def stop(number: int, _frame: object) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def says_how_to_continue(out: Path, how: str = "the same command") -> Iterator[None]:
    """Say what continues the work in a folder where it is interrupted, as by Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        if out.exists() and launched_as().rank == 0:
            note(f"interrupted; {how} continues, what is finished is in {out}")
        raise


def make_folder(path: Path) -> None:
    """Make a folder for results before the work begins.

    Raises
    ------
    DataError
        If it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path}: cannot make this folder ({error.strerror}); name another one") from error


def one_opencv_thread() -> None:
    """Keep OpenCV to one thread in this process: the images themselves are processed in parallel."""
    import cv2

    cv2.setNumThreads(1)


def target_text(target: Target) -> str:
    """Return a target in words: its name, its classes and its code."""
    parts = [target.name]
    if target.classes != (target.name,):
        parts[0] += f" ({' or '.join(target.classes)})"
    if target.code is not None:
        parts.append(f"{CODING_SCHEMES.get(target.code.scheme, target.code.scheme)} {target.code.value}")
    return ", ".join(parts)


def point_text(point: OperatingPoint, target: str) -> str:
    """Return an operating point in words: threshold, criterion, and what it reached where."""
    from pneumoscope.evaluation.tables import with_interval
    from pneumoscope.report.rows import threshold_text

    parts = [f"{target} at {threshold_text(point.threshold, percent=False)} or more", point.criterion]
    for name, estimate in (("sensitivity", point.sensitivity), ("specificity", point.specificity)):
        if estimate is not None and estimate.value is not None:
            parts.append(f"{name} {with_interval(estimate, digits=4)}")
    patients = f" ({point.patients:,} patients)" if point.patients is not None else ""
    if point.chosen_on or patients:
        parts.append(f"chosen on {point.chosen_on or 'images'}{patients}")
    return "; ".join(part for part in parts if part)


def training_data_text(data: TrainingData) -> str:
    """Return a data set that a model was trained on in words: name, population, hospital, licence."""
    described = data.description
    population = described.population
    parts = [described.name or "a data set without a description"]
    if population.is_stated:
        parts.append(population.describe())
    if described.hospital and described.hospital != population.hospital:
        parts.append(described.hospital)
    if data.images is not None:
        parts.append(f"{data.images:,} images")
    if described.licence:
        parts.append(described.licence)
    return ("additional: " if data.additional else "") + ", ".join(parts)


def how_made(made: Provenance) -> str:
    """Return how a model was made: its recipe, or its steps where there were several."""
    if made.steps:
        steps = (f"({number}) {step.rstrip('.')}" for number, step in enumerate(made.steps, start=1))
        return "; ".join(steps)
    return f"recipe {made.recipe}" if made.recipe else ""

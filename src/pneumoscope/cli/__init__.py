"""The command line: one module per command, imported only when that command is called.

Exit codes: 0 done; 2 wrong use; 3 some inputs were rejected or unreadable, the rest done; 4 nothing could be
done; 130 interrupted.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from pneumoscope import __version__
from pneumoscope.cli.common import INTERRUPTED, NOTHING_DONE, WRONG_USE
from pneumoscope.cli.completion import PROGRAM, called_words, set_up_completion
from pneumoscope.cli.options import add_shared_options, start
from pneumoscope.errors import OtherProcessError, PneumoscopeError

__all__ = ["COMMANDS", "Command", "main"]


class Command(NamedTuple):
    """Module and attribute of a command, and its line in the overview."""

    module: str
    attribute: str
    help: str


COMMANDS: dict[str, Command] = {
    "predict": Command("pneumoscope.cli.predict", "predict", "Predict X-rays: files, folders or a manifest."),
    "demo": Command("pneumoscope.cli.demo", "demo", "Predict the sample images that come with the program."),
    "samples": Command("pneumoscope.cli.samples", "samples", "Write the sample images into a folder."),
    "train": Command("pneumoscope.cli.train", "train", "Train a model with a recipe and evaluate it."),
    "train-lungs": Command(
        "pneumoscope.cli.train_lungs", "train_lungs", "Train the lung segmenter on images and masks."
    ),
    "cross-validate": Command(
        "pneumoscope.cli.cross_validate",
        "cross_validate",
        "Evaluate a recipe on patients it was not trained on.",
    ),
    "tune": Command("pneumoscope.cli.tune", "tune", "Search for better values of a recipe."),
    "evaluate": Command("pneumoscope.cli.evaluate", "evaluate", "Evaluate a bundle on labelled X-rays."),
    "recalibrate": Command(
        "pneumoscope.cli.recalibrate", "recalibrate", "Fit a bundle's probabilities and thresholds to a site."
    ),
    "data": Command(
        "pneumoscope.cli.data", "app", "Download, draw, audit, split, join and summarise data sets."
    ),
    "export": Command("pneumoscope.cli.export", "export", "Write a run as a bundle, or for another runtime."),
    "serve": Command("pneumoscope.cli.serve", "serve", "Serve the web page and the REST interface."),
    "dicom": Command("pneumoscope.cli.dicom", "app", "Run a DICOM node: receive, predict, send results."),
    "batch": Command(
        "pneumoscope.cli.batch", "batch", "Predict an archive of any size, on one machine or many."
    ),
    "info": Command("pneumoscope.cli.info", "info", "Show a bundle, its card, versions and formats."),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end with `SystemExit`.

    Parameters
    ----------
    arguments : sequence of str, optional
        Arguments of the process if not given.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    _open_closed_output()
    shown = start()
    _write_any_name()
    try:
        _run(words, of_process=arguments is None)
    except PneumoscopeError as error:
        if shown.debug:
            raise
        if not isinstance(error, OtherProcessError):  # that process has said why
            typer.echo(f"error: {_in_one_line(str(error))}", err=True)
        raise SystemExit(NOTHING_DONE) from error
    except OSError as error:  # of no part that could say more, as where a disk is full
        if shown.debug:
            raise
        if not isinstance(error, BrokenPipeError):  # whoever reads the output has left, as `head` does
            place = f"{error.filename}: " if error.filename else ""
            typer.echo(f"error: {place}{error.strerror or error} (--debug shows where)", err=True)
        _end_output()
        raise SystemExit(NOTHING_DONE) from error
    except KeyboardInterrupt as error:
        raise SystemExit(INTERRUPTED) from error


def _open_closed_output() -> None:
    """Give a process whose output is closed, as some schedulers start it, one that is discarded."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, io.TextIOWrapper(io.FileIO(os.devnull, "w"), encoding="utf-8"))


def _in_one_line(text: str) -> str:
    """Return a message without line breaks; spaces inside a line may be those of a file name."""
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _run(words: list[str], *, of_process: bool) -> None:
    """Run a command; standard output that could not be written to its end is an `OSError`."""
    try:
        if set_up_completion(words):
            raise SystemExit(0)
        command = _application(called_words(words))
        _check_empty(words)
        # None: those of the process, in which wildcards are resolved on Windows, whose shells do not.
        command(args=None if of_process else words, prog_name=PROGRAM)
    except SystemExit as left:
        if isinstance(closed := left.__context__, BrokenPipeError):  # which typer ends with 1
            raise closed from None
        if sys.stdout is not None:
            sys.stdout.flush()
        raise


def _check_empty(words: Sequence[str]) -> None:
    """Stop at an empty word, as of a variable that is not set: taken as a path it would be this folder."""
    for before, word in zip(("", *words), words, strict=False):
        option, equals, value = word.partition("=")
        if not word.strip():
            what = f"what follows {before}" if before.startswith("-") else "an argument"
        elif option.startswith("--") and equals and not value.strip():
            what = option
        else:
            continue
        typer.echo(
            f"Try '{PROGRAM} --help' for help.\n\nError: {what} is empty, as where a variable is not set; "
            "give a value, or leave it out (. is the current folder)",
            err=True,
        )
        raise SystemExit(WRONG_USE)


def _end_output() -> None:
    """Drop what standard output does not take, on which the end of the process would fail once more."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        with Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())


def _write_any_name() -> None:
    """Let a file name that the terminal's encoding does not have be written as escapes, not end the work."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _application(words: Sequence[str]) -> Any:
    """Build the application: the called command in full, the others as one line of help each."""
    app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.callback()(_root)
    called = next((word for word in words if not word.startswith("-")), None)
    for name, command in COMMANDS.items():
        target = _load(name, command) if name == called else _not_called
        if isinstance(target, typer.Typer):
            app.add_typer(target, name=name, help=command.help)
        else:
            app.command(name, short_help=command.help)(target)
    group = typer.main.get_command(app)
    add_shared_options(group)
    return group


def _load(name: str, command: Command) -> Any:
    try:
        return getattr(import_module(command.module), command.attribute)
    except ModuleNotFoundError as error:
        if error.name != command.module:
            raise
        raise PneumoscopeError(f"the command '{name}' is not part of this installation") from error


def _not_called() -> None:
    """Placeholder for a command that is only listed."""


def _show_version(requested: bool) -> None:
    if requested:
        typer.echo(f"pneumoscope {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Detect pneumonia, or another finding, in chest X-rays. For research; not a medical device."""

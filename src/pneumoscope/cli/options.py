"""The options that every command has, and what they decide: notes, progress and tracebacks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import typer

__all__ = ["Shown", "add_shared_options", "shown", "start"]


@dataclass(slots=True)
class Shown:
    """How much a command shows beside its results.

    Parameters
    ----------
    quiet : bool
        Errors and warnings only: no progress, no notes.
    verbose : bool
        Log lines, and how long each step took.
    debug : bool
        The traceback of an error.
    """

    quiet: bool = False
    verbose: bool = False
    debug: bool = False


_shown = Shown()


def shown() -> Shown:
    """Return what the present command shows."""
    return _shown


def start() -> Shown:
    """Return what a new command shows before its options are read: the default."""
    global _shown  # noqa: PLW0603 one command runs in a process at a time
    _shown = Shown()
    return _shown


def add_shared_options(command: Any) -> None:
    """Give a command, and each of its subcommands, the options that all commands have."""
    template = typer.Typer(add_completion=False)
    template.command()(_template)
    shared = [one for one in typer.main.get_command(template).params if one.name != "help"]
    for one in _with_subcommands(command):
        own = {name for parameter in one.params for name in parameter.opts}
        one.params += [parameter for parameter in shared if not own & set(parameter.opts)]


def _with_subcommands(command: Any) -> Iterator[Any]:
    yield command
    for one in getattr(command, "commands", {}).values():
        yield from _with_subcommands(one)


def _quiet(requested: bool) -> None:
    _shown.quiet |= requested
    _check()


def _verbose(requested: bool) -> None:
    _shown.verbose |= requested
    _check()


def _check() -> None:
    if _shown.quiet and _shown.verbose:
        raise typer.BadParameter("--quiet and --verbose exclude each other")


def _debug(requested: bool) -> None:
    _shown.debug |= requested


def _template(
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", "-q", callback=_quiet, expose_value=False, help="Show no progress and no notes."
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            callback=_verbose,
            expose_value=False,
            help="Show log lines, and the time that each step took.",
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", callback=_debug, expose_value=False, help="Show the traceback of an error."),
    ] = False,
) -> None:
    """Carry the options; it is never called."""

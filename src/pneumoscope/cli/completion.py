"""Completion of commands, options and their values in bash, zsh, fish and PowerShell."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

from pneumoscope.errors import PneumoscopeError

__all__ = [
    "PROGRAM",
    "called_words",
    "complete_bundle",
    "complete_operating_point",
    "complete_population",
    "complete_recipe",
    "set_up_completion",
]

PROGRAM = "pneumoscope"
VARIABLE = "_PNEUMOSCOPE_COMPLETE"  # set by the shell's script, which typer writes
SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")
INSTALL, SHOW = "--install-completion", "--show-completion"

# Read without the packages that know them: a completion must come at once.
PACKAGE = Path(__file__).resolve().parent.parent
SHIPPED_BUNDLE = PACKAGE / "bundles" / "default"
BUNDLE_FILE = "bundle.json"
RUN_BUNDLE = "bundle"  # folder of the bundle in a run folder


def called_words(words: Sequence[str]) -> list[str]:
    """Return the words of the command line: the given ones, or those that a shell wants to complete."""
    if VARIABLE not in os.environ:
        return list(words)
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or ""
    return line.split()[1:]


def set_up_completion(words: Sequence[str]) -> bool:
    """Install or show completion where the words ask for it, for the named shell or this one.

    Returns
    -------
    bool
        Whether they asked for it.

    Raises
    ------
    PneumoscopeError
        If the shell is not known, or its files cannot be written.
    """
    if not words or words[0] not in {INSTALL, SHOW} or "--help" in words:
        return False
    if len(words) > 2:
        raise PneumoscopeError(f"{words[0]} takes nothing but the name of a shell: {', '.join(SHELLS)}")
    shell = words[1] if len(words) == 2 else _present_shell()
    if shell not in SHELLS:
        known = ", ".join(SHELLS)
        raise PneumoscopeError(f"no completion for the shell {shell!r}; name one of {known}: {words[0]} bash")
    if words[0] == SHOW:
        typer.echo(_script(shell))
        return True
    from typer._completion_shared import install

    try:
        _, path = install(shell=shell, prog_name=PROGRAM, complete_var=VARIABLE)
        if shell == "zsh":
            path.write_text(f"{_script(shell)}\n", encoding="utf-8")
    except OSError as error:
        raise PneumoscopeError(
            f"{error.filename or Path.home()}: cannot be written ({error.strerror}); "
            f"add the output of '{PROGRAM} {SHOW} {shell}' to the start file of your shell yourself"
        ) from error
    typer.echo(f"completion for {shell} is in {path}; open a new terminal to use it", err=True)
    return True


def _script(shell: str) -> str:
    """Return the script that makes a shell ask this program for completions."""
    from typer._completion_shared import get_completion_script

    script: str = get_completion_script(prog_name=PROGRAM, complete_var=VARIABLE, shell=shell)
    if shell == "zsh":
        # It reads the file when the first completion is wanted, and must then make that one too.
        script += f'\n[[ $zsh_eval_context[-1] == loadautofunc ]] && _{PROGRAM}_completion "$@"'
    return script


def _present_shell() -> str:
    """Return the shell that started this process, or the user's own."""
    import shellingham

    try:
        return str(shellingham.detect_shell()[0])
    except shellingham.ShellDetectionFailure:
        return Path(os.environ.get("SHELL", "")).name


def complete_recipe(incomplete: str) -> list[str]:
    """Return the shipped recipes that begin so."""
    names = sorted(path.stem for path in (PACKAGE / "recipes").glob("*.yaml"))
    return [name for name in names if name.startswith(incomplete)]


def complete_bundle(incomplete: str) -> list[str]:
    """Return the bundles and run folders that begin so; none where there are only other folders."""
    base = incomplete[: incomplete.rfind("/") + 1]
    try:
        folders = sorted(Path(base or ".").expanduser().iterdir())
    except (OSError, RuntimeError):  # RuntimeError: the home of a user that there is not
        return []
    return [
        f"{base}{folder.name}"
        for folder in folders
        if folder.name.startswith(incomplete[len(base) :]) and _bundle_file(folder) is not None
    ]


def complete_operating_point(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the operating points of the bundle that is named on the command line, or of the shipped one."""
    points = (point for one in _calibrations(ctx) for point in one["operating_points"])
    return _names((str(point["name"]) for point in points), incomplete)


def complete_population(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the populations that this bundle has calibrations for."""
    return _names((str(one["population"]) for one in _calibrations(ctx)), incomplete)


def _names(names: Iterator[str], incomplete: str) -> list[str]:
    try:
        return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]
    except (OSError, ValueError, LookupError, TypeError, RuntimeError):  # damaged, older, or nowhere
        return []


def _calibrations(ctx: typer.Context) -> Iterator[dict[str, Any]]:
    named = ctx.params.get("bundle")
    path = _bundle_file(Path(named).expanduser() if named else SHIPPED_BUNDLE)
    if path is not None:
        yield from json.loads(path.read_bytes())["calibrations"]


def _bundle_file(folder: Path) -> Path | None:
    for place in (folder, folder / RUN_BUNDLE):
        if os.path.isfile(place / BUNDLE_FILE):  # noqa: PTH113 also where a folder is closed
            return place / BUNDLE_FILE
    return None

"""Run the commands of README and tutorial that show an output, and write what they print into the pages.

A block of commands (``console``, lines with ``$``) that is followed at once by a block of output (``text`` or
``json``), and a block of Python that is, are run as a reader would: in one folder for each page, from top to
bottom, on a terminal. ``make tutorial`` calls this; the tests run the same and compare.
"""

from __future__ import annotations

import errno
import os
import pty
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from build_page import screen

REPOSITORY = Path(__file__).parents[1]
TUTORIAL = REPOSITORY / "docs" / "tutorial"
PAGES = (REPOSITORY / "README.md", *sorted(set(TUTORIAL.glob("*.md")) - {TUTORIAL / "walkthrough.md"}))

COLUMNS = 110
TIMEOUT = 280  # seconds for one command
EXAMPLE = re.compile(
    r"^```(?P<kind>console|python)\n(?P<code>(?:(?!```).*\n)*)```\n\n"
    r"```(?:text|json)\n(?P<output>(?:(?!```).*\n)*)```$",
    re.MULTILINE,
)
# A number that a processor or the time of day may change a little: with a fraction, or before a unit of time.
DECIMAL = re.compile(r"\d+\.\d+")
DURATION = re.compile(r"\d+:\d\d(?::\d\d)?|\d+(?:\.\d+)? (?=(?:s|min|h)\b)")
TOLERANCE = 0.05


@dataclass(frozen=True)
class Example:
    """Commands, or Python code, and the output that a page shows for them.

    Parameters
    ----------
    kind : str
        ``console`` or ``python``.
    code : str
        The block as on the page.
    output : str
        What is shown below it.
    span : tuple of int
        Where the output begins and ends on the page.
    """

    kind: str
    code: str
    output: str
    span: tuple[int, int]

    @property
    def commands(self) -> list[list[str]]:
        """What is run, as lists of words; `pip` and `make` are left to the tests of the installation."""
        if self.kind == "python":
            return [[sys.executable, "-c", self.code]]
        lines = [line[2:] for line in self.code.splitlines() if line.startswith("$ ")]
        return [shlex.split(line) for line in lines if line.startswith("pneumoscope ")]


def examples(page: str) -> list[Example]:
    """Return what a page shows with its output, in order."""
    return [
        Example(found["kind"], found["code"], found["output"], found.span("output"))
        for found in EXAMPLE.finditer(page)
    ]


def run(example: Example, folder: Path) -> str:
    """Return what an example prints on a terminal, in a folder that holds what it names."""
    return "".join(f"{on_terminal(command, folder)}\n" for command in example.commands)


def on_terminal(command: list[str], folder: Path) -> str:
    """Run a command on a terminal of `COLUMNS` columns, and return the screen that it leaves.

    Raises
    ------
    RuntimeError
        If the command could do nothing; that some inputs are rejected is no failure.
    """
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {
        "PATH": commands,
        "COLUMNS": str(COLUMNS),
        "TERM": "xterm",
        "NO_COLOR": "1",
    }
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        printed = b"".join(_read(ours))
        os.close(ours)
        code = process.wait(TIMEOUT)
    shown = screen(printed.decode().replace("\r\n", "\n"))
    if code not in {0, 3}:
        raise RuntimeError(f"{shlex.join(command)}: exit code {code}\n{shown}")
    return shown


def _read(terminal: int) -> Iterator[bytes]:
    """Yield what is written to a terminal until its last writer is gone."""
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError as error:
            if error.errno != errno.EIO:  # how Linux ends it
                raise
            return
        if not data:
            return
        yield data


def prepare(folder: Path) -> None:
    """Put what a clone holds into the folder of a run."""
    (folder / "data").symlink_to(REPOSITORY / "data")


def differences(shown: str, printed: str) -> list[str]:
    """Return the lines of a page that a run does not confirm.

    Decimal numbers may differ by `TOLERANCE`, times by any amount; everything else must be equal.
    """
    pairs = zip(_lines(shown), _lines(printed), strict=False)
    found = [f"shown {a!r}, printed {b!r}" for a, b in pairs if not _agree(a, b)]
    if len(_lines(shown)) != len(_lines(printed)):
        found.append(f"shown {len(_lines(shown))} lines, printed {len(_lines(printed))}")
    return found


def _lines(text: str) -> list[str]:
    return text.strip("\n").splitlines()


def _agree(shown: str, printed: str) -> bool:
    shown, printed = DURATION.sub("0 ", shown), DURATION.sub("0 ", printed)
    if DECIMAL.sub("#", shown) != DECIMAL.sub("#", printed):
        return False
    numbers = zip(DECIMAL.findall(shown), DECIMAL.findall(printed), strict=True)
    return all(abs(float(a) - float(b)) <= TOLERANCE for a, b in numbers)


def with_outputs(page: str, folder: Path) -> str:
    """Return a page with what its examples print now."""
    outputs = [(example.span, run(example, folder)) for example in examples(page)]
    for (begin, end), output in reversed(outputs):
        page = f"{page[:begin]}{output}{page[end:]}"
    return page


def main() -> None:
    """Write the outputs of every page."""
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            prepare(folder)
            path.write_text(with_outputs(page, folder), encoding="utf-8")
        print(f"{path.relative_to(REPOSITORY)}: {len(examples(page))} outputs")


if __name__ == "__main__":
    main()

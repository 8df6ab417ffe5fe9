"""Predictions as a table for people: one line per image, the folder once above it, fitted to the terminal."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

from pneumoscope.domain import ANY_POPULATION, Prediction, Target
from pneumoscope.report.rows import decision_text, plain_text, reason_text, shown_reasons

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

__all__ = ["predictions_table", "print_predictions", "printable", "shared_folder", "shorten"]

SHORTEST_NAME = 20  # characters of a file name that stay where a table is narrow
NARROWEST_REMARKS = 24  # characters, of the longest caution; more remarks go on further lines
GAP = 2  # spaces between columns
ELLIPSIS = "…"
UNLIMITED = 100_000  # characters in a line of a file

# What a file name may hold and a terminal would obey: controls, line separators, directions of writing.
UNSAFE_CATEGORIES = {"Cc", "Cs", "Zl", "Zp"}
BIDI_CONTROLS = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

DECISION_STYLES = {True: "bold red", False: "green", None: "yellow"}


def print_predictions(
    predictions: Sequence[Prediction],
    classes: Sequence[str],
    target: Target,
    *,
    true_labels: Sequence[str] | None = None,
    file: IO[str] | None = None,
) -> None:
    """Print predictions as a table, in colour and fitted to its width on a terminal.

    Where the output is no terminal, names are whole, lines are as long as they must be, and there is no
    colour. Colour also goes by ``NO_COLOR`` and ``FORCE_COLOR``.

    Parameters
    ----------
    predictions : sequence of Prediction
    classes : sequence of str
        Classes of the bundle, in order.
    target : Target
        Its target finding.
    true_labels : sequence of str, optional
        The label of each image, for a column beside the results.
    file : text file, optional
        Standard output if not given.
    """
    from rich.console import Console

    console = Console(file=file, highlight=False)
    if console.is_terminal:
        console.print(
            predictions_table(predictions, classes, target, width=console.width, true_labels=true_labels)
        )
        return
    console.width = UNLIMITED
    table = predictions_table(predictions, classes, target, width=None, true_labels=true_labels)
    with console.capture() as captured:
        console.print(table)
    # The last column is filled up with spaces, which a file would keep.
    console.file.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def predictions_table(
    predictions: Sequence[Prediction],
    classes: Sequence[str],
    target: Target,
    *,
    width: int | None,
    true_labels: Sequence[str] | None = None,
) -> RenderableType:
    """Return predictions as a table of the library rich: the folder they share, and a line for each.

    Columns are the image, the probability of the target, those of its subtypes and of other classes where
    there is room, the population where there is one, the result, the true label if given, and remarks:
    reasons, cautions and uncertainty, where there are any.

    Parameters
    ----------
    predictions, classes, target, true_labels
        As of `print_predictions`.
    width : int or None
        Characters in a line; names are shortened in the middle to fit. None for as many as it takes.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    folder, names = shared_folder([one.path for one in predictions])
    before, after = _columns(predictions, classes, target, true_labels)
    room = _room_for_names(names, before, after, width)
    if room < min(SHORTEST_NAME, max(map(_cells, names), default=0)):
        before = before[:1]
        room = max(SHORTEST_NAME, _room_for_names(names, before, after, width))
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    table.add_column("image", no_wrap=True)
    for column in before:
        table.add_column(Text(column[0].plain), justify="right", no_wrap=True)
    for column in after:
        table.add_column(Text(column[0].plain), overflow="fold")
    for row, name in enumerate(names, start=1):
        table.add_row(Text(shorten(name, room)), *(column[row] for column in (*before, *after)))
    if not folder:
        return table
    shown = folder if width is None else shorten(folder, width)
    return Group(Text(shown, "dim", no_wrap=True), table)


Column = list["Text"]  # the heading, and a cell for each image


def _columns(
    predictions: Sequence[Prediction],
    classes: Sequence[str],
    target: Target,
    true_labels: Sequence[str] | None,
) -> tuple[list[Column], list[Column]]:
    """Return the columns of probabilities, the target's first, and those of text."""
    from rich.text import Text

    rest = [name for name in classes if name not in target.classes]
    # One class beside the target has what is left to 1, and needs no column.
    shown = [name for name in target.classes if name != target.name] + (rest if len(rest) > 1 else [])
    numbers = [[Text(target.name), *(_number(one.p_target) for one in predictions)]]
    numbers += [
        [Text(name), *(_number(one.probabilities.get(name)) for one in predictions)] for name in shown
    ]
    texts = []
    populations = [one.population or "" for one in predictions]
    if set(populations) - {"", ANY_POPULATION}:
        texts.append([Text("population"), *map(Text, populations)])
    texts.append([Text("result"), *map(_result, predictions)])
    if true_labels is not None:
        texts.append([Text("true label"), *map(Text, true_labels)])
    remarks = [_remarks(one) for one in predictions]
    if any(remarks):
        texts.append([Text("remarks"), *remarks])
    return numbers, texts


def _number(value: float | None) -> Text:
    """Return a probability; 0 and 1, which no model can be sure of, as the bounds that they round from."""
    from rich.text import Text

    if value is None:
        return Text()
    shown = f"{value:.3f}"
    return Text({"1.000": ">0.999", "0.000": "<0.001"}.get(shown, shown))


def _result(prediction: Prediction) -> Text:
    from dataclasses import replace

    from rich.text import Text

    # Uncertainty is a remark of its own, which keeps this column narrow.
    return Text(decision_text(replace(prediction, uncertain=False)), DECISION_STYLES[prediction.positive])


def _remarks(prediction: Prediction) -> Text:
    from rich.text import Text

    parts = ["uncertain"] if prediction.uncertain else []
    return Text(", ".join([*parts, *map(reason_text, shown_reasons(prediction))]), "yellow")


def _room_for_names(
    names: Sequence[str], before: Sequence[Column], after: Sequence[Column], width: int | None
) -> int:
    """Return how wide the column of names may be beside the others, of which remarks may be narrowed."""
    longest = max(map(_cells, ("image", *names)))
    if width is None:
        return longest
    widths = [max(text.cell_len for text in column) for column in (*before, *after)]
    left = width - sum(widths) - GAP * len(widths)
    if after[-1][0].plain == "remarks":
        left += min(max(0, longest - left), max(0, widths[-1] - NARROWEST_REMARKS))
    return min(longest, left)


def shared_folder(paths: Sequence[str]) -> tuple[str, list[str]]:
    """Return the folder that all files are in, and their paths from there, safe to print.

    Without such a folder, or where it is the root, it is empty and the paths are whole.
    """
    try:
        folder = os.path.commonpath([os.path.dirname(path) for path in paths])  # noqa: PTH120
    except ValueError:  # no path, relative beside absolute ones, or several drives
        folder = ""
    if folder in {"", os.curdir} or os.path.dirname(folder) == folder:  # noqa: PTH120
        return "", list(map(printable, paths))
    return printable(folder), [printable(os.path.relpath(path, folder)) for path in paths]


def printable(name: str) -> str:
    """Return a file name without what a terminal would obey: control characters become escapes."""
    unsafe = {
        one for one in set(name) if one in BIDI_CONTROLS or unicodedata.category(one) in UNSAFE_CATEGORIES
    }
    return "".join(
        one.encode("unicode_escape").decode() if one in unsafe else one for one in plain_text(name)
    )


def shorten(name: str, width: int) -> str:
    """Return a name in at most `width` columns of a terminal; what is too much goes from the middle.

    The end stays longer than the beginning: it has the number and the suffix of the file.
    """
    if _cells(name) <= width:
        return name
    left = max(0, width - 1)
    head = left // 3
    return f"{_start(name, head)}{ELLIPSIS}{_start(name[::-1], left - head)[::-1]}"


def _start(name: str, width: int) -> str:
    """Return as many of the first characters as fit."""
    taken = 0
    for at, character in enumerate(name):
        taken += _cells(character)
        if taken > width:
            return name[:at]
    return name


def _cells(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)

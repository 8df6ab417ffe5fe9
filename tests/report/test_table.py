"""The table of predictions, as a terminal of any width and a file show it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from pneumoscope.domain import Prediction, Target
from pneumoscope.errors import CAUTIONS, Reason
from pneumoscope.report.rows import reason_text
from pneumoscope.report.table import (
    predictions_table,
    print_predictions,
    printable,
    shared_folder,
    shorten,
)
from predictions import BUNDLES, SUBTYPES, Example

FOLDER = "/data/hospital/2026"
NAMES = st.text(st.characters(codec=None), min_size=1, max_size=60)
WIDTHS = [60, 80, 100, 120, 200]


def target_of(example: Example) -> Target:
    return Target(example.target, example.target_classes)


def positive(path: str, example: Example = SUBTYPES, **fields: object) -> Prediction:
    return example.prediction(path, example.positive, **fields)


def lines(
    predictions: Sequence[Prediction],
    width: int = 80,
    example: Example = SUBTYPES,
    true_labels: Sequence[str] | None = None,
) -> list[str]:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    table = predictions_table(
        predictions, example.classes, target_of(example), width=width, true_labels=true_labels
    )
    with console.capture() as captured:
        console.print(table)
    return captured.get().splitlines()


def printed(predictions: Sequence[Prediction], **options: object) -> str:
    file = io.StringIO()
    print_predictions(predictions, SUBTYPES.classes, target_of(SUBTYPES), file=file, **options)
    return file.getvalue()


@given(st.lists(NAMES, min_size=1, max_size=4), st.sampled_from(WIDTHS), st.booleans())
def test_any_name_is_one_line_that_fits(names, width, deep):
    paths = [f"{FOLDER}/{'a/' * 30 if deep else ''}{name}" for name in names]
    text = lines([positive(path) for path in paths], width)
    folder = shared_folder(paths)[0]
    assert len(text) == len(names) + 1 + bool(folder)
    assert max(map(cell_len, text)) <= width


@given(NAMES, st.integers(1, 40))
def test_a_shortened_name_keeps_its_beginning_and_its_end(name, width):
    name = printable(name)
    short = shorten(name, width)
    assert cell_len(short) <= width
    if short != name:
        kept = len(short) - 1
        assert any(
            short == f"{name[:head]}…{name[len(name) - kept + head :]}" for head in range(kept // 2 + 1)
        )


def test_what_is_too_long_goes_from_the_middle():
    assert shorten("person1000_bacteria_2931.jpeg", 20) == "person…ria_2931.jpeg"
    assert shorten("a.png", 20) == "a.png"
    assert cell_len(shorten("日本語の胸部写真.png", 12)) <= 12


@given(NAMES)
def test_a_name_cannot_control_the_terminal(name):
    shown = printable(name)
    assert not set(shown) & {"\x1b", "\n", "\r", "\x07", "\u202e", "\u2028"}
    shown.encode("utf-8")


def test_the_folder_stands_once_above_the_table():
    text = lines([positive(f"{FOLDER}/a.png"), positive(f"{FOLDER}/sub/b.png")])
    assert text[0].rstrip() == FOLDER
    assert [line.split()[0] for line in text[1:]] == ["image", "a.png", "sub/b.png"]


@pytest.mark.parametrize(
    "paths",
    [["a.png", "b.png"], ["/a.png", "/b.png"], ["/x/a.png", "b.png"], ["./a.png"], ["<stdin>"]],
)
def test_without_a_folder_in_common_paths_stay(paths):
    folder, names = shared_folder(paths)
    assert (folder, names) == ("", paths)


def test_a_folder_that_is_too_long_is_shortened_too():
    text = lines([positive(f"/{'very-long-folder/' * 20}a.png")])
    assert len(text) == 3
    assert cell_len(text[0].rstrip()) == 80


@pytest.mark.parametrize("width", [80, 120])
def test_each_reason_and_caution_is_whole_and_on_the_line_of_its_image(width):
    for reason in Reason:
        if reason in CAUTIONS:
            one = positive(f"{FOLDER}/person1000_bacteria_2931.jpeg", reasons=(reason.value,))
        else:
            one = Prediction(f"{FOLDER}/person1000_bacteria_2931.jpeg", "rejected", (reason.value,))
        row = lines([one], width)[-1]
        assert reason_text(reason) in row
        assert "2931.jpeg" in row


def test_a_rejected_image_shows_why_and_not_the_cautions():
    one = Prediction("hand.dcm", "rejected", ("body_part_mismatch", "not_a_chest_radiograph"))
    row = lines([one])[-1]
    assert row.split() == ["hand.dcm", "rejected", "not", "a", "chest", "radiograph"]


def test_results_are_in_words():
    rows = [positive("a.png"), SUBTYPES.prediction("b.png", SUBTYPES.negative)]
    rows += [Prediction("c.png", "unreadable", ("corrupt",)), replace(rows[0], path="d.png", uncertain=True)]
    text = lines(rows, 120)
    for line, words in zip(
        text[1:],
        ("pneumonia suspected", "no pneumonia detected", "could not be read", "uncertain"),
        strict=True,
    ):
        assert words in line


@pytest.mark.parametrize(
    ("value", "shown"), [(0.99999, ">0.999"), (0.00001, "<0.001"), (0.5, "0.500"), (0.9994, "0.999")]
)
def test_no_probability_is_0_or_1(value, shown):
    row = lines([replace(positive("a.png"), p_target=value)])[-1]
    assert row.split()[1] == shown


def test_columns_are_the_target_its_subtypes_and_more_than_one_other_class():
    for example in BUNDLES:
        heading = lines([positive("a.png", example)], 120, example)[0].split()
        subtypes = [name for name in example.target_classes if name != example.target]
        rest = [name for name in example.classes if name not in example.target_classes]
        assert heading == ["image", example.target, *subtypes, *(rest if len(rest) > 1 else []), "result"]


def test_many_classes_leave_room_for_the_file():
    many = Example(tuple(f"class-{n}" for n in range(12)), "disease", ("class-3",))
    text = lines([many.prediction("a.png", [1 / 12] * 12)], 80, many)
    assert "a.png" in text[-1]
    assert "class-3" not in text[0]


def test_populations_have_a_column_where_there_are_any():
    children = positive("a.png", population="children")
    assert "population" in lines([children])[0]
    assert "children" in lines([children])[1]
    assert "population" not in lines([positive("a.png", population="any")])[0]


def test_true_labels_stand_beside_the_results():
    text = lines([positive("a.png"), positive("b.png")], true_labels=["viral", "normal"])
    assert text[0].split()[-2:] == ["true", "label"]
    assert [line.split()[-1] for line in text[1:]] == ["viral", "normal"]


def test_a_file_gets_whole_names_and_no_colour(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    path = f"{FOLDER}/{'long-name-' * 20}.png"
    text = printed([positive(path, reasons=("inverted",))])
    assert f"{'long-name-' * 20}.png" in text
    assert "\x1b" not in text
    assert all(line == line.rstrip() for line in text.splitlines())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("no_colour", "coloured"), [("", True), ("1", False)])
def test_a_terminal_gets_colour_unless_NO_COLOR_is_set(monkeypatch, no_colour, coloured):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", no_colour)
    monkeypatch.setenv("COLUMNS", "80")
    file = Terminal()
    print_predictions([positive("a.png")], SUBTYPES.classes, target_of(SUBTYPES), file=file)
    assert ("31mpneumonia suspected" in file.getvalue()) is coloured


def test_no_prediction_is_a_heading():
    assert lines([])[0].split()[0] == "image"

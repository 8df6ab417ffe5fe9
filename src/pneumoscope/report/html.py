"""Predictions as one self-contained HTML page, to read, keep and print.

Made with the standard library's templates, so that it works in the base install. Images are written to a
draft beside the page as they come and sorted at the end, so that memory holds one line of the worklist for
each and no more.
"""

from __future__ import annotations

import base64
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import IO

import cv2

from pneumoscope.data.drafts import draft_of, rename, unwritable
from pneumoscope.domain import (
    ANY_POPULATION,
    Explanation,
    OperatingPoint,
    Prediction,
    Radiograph,
    ViewPosition,
    age_band,
)
from pneumoscope.errors import CAUTIONS
from pneumoscope.report.overlay import CONTOUR_AT, METHODS, Canvas, colour_at, overlay
from pneumoscope.report.rows import (
    NO_CLASS,
    decision_text,
    outcome_text,
    percent_text,
    plain_text,
    reason_text,
    threshold_text,
    tone,
)

__all__ = ["AddPrediction", "open_report"]

AddPrediction = Callable[
    [Prediction, Radiograph | None, Explanation | None, OperatingPoint | None],
    None,
]
"""Adds a prediction with its image, heat map and operating point, each None where there is none."""

IMAGE_SIDE, THUMBNAIL_SIDE = 640, 112  # pixels on the longer side
JPEG_QUALITY = 85
WORKLIST_PLACE, IMAGES_PLACE = "<!--worklist-->", "<!--images-->"


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of the worklist, and where its row and its article lie in the draft."""

    number: int
    name: str
    decision: str
    p_target: float | None
    row: tuple[int, int]
    article: tuple[int, int]

    @property
    def rank(self) -> tuple[bool, float, int]:
        """Without a prediction first, since these need a reader; then the most suspicious."""
        return (self.p_target is not None, -(self.p_target or 0.0), self.number)


@contextmanager
def open_report(path: Path, *, target: str, about: Mapping[str, str]) -> Iterator[AddPrediction]:
    """Write a page, prediction by prediction; it replaces `path` when the block ends without an error.

    Parameters
    ----------
    path : Path
        The page to write or replace; its folder must exist.
    target : str
        Name of the target finding of the bundle.
    about : mapping of str to str
        Facts on the model, name to value, in their order.

    Yields
    ------
    callable
        Adds a prediction.

    Raises
    ------
    DataError
        If no file can be written there, or the disk is full.
    """
    lines: list[_Line] = []
    with draft_of(path, "w") as (page, file), _parts(path) as draft:

        def add(
            prediction: Prediction,
            radiograph: Radiograph | None = None,
            explanation: Explanation | None = None,
            point: OperatingPoint | None = None,
        ) -> None:
            number = len(lines) + 1
            name = plain_text(Path(prediction.path).name)
            article = _article(number, prediction, radiograph, explanation, point)
            try:
                places = [_append(draft, text) for text in (_row(number, prediction, radiograph), article)]
            except OSError as error:
                raise unwritable(path, error) from error
            lines.append(_Line(number, name, decision_text(prediction), prediction.p_target, *places))

        yield add
        try:
            _write_page(file, draft, lines, _page(lines, target, about), target)
            file.close()
        except OSError as error:
            raise unwritable(path, error) from error
        rename(page, path)


def _parts(path: Path) -> IO[bytes]:
    """Open a file without a name for the parts of a page, on the disk that the page is for."""
    try:
        return tempfile.TemporaryFile(dir=path.parent)
    except OSError as error:
        raise unwritable(path, error) from error


def _write_page(file: IO[str], draft: IO[bytes], lines: list[_Line], page: str, target: str) -> None:
    """Write the page with the parts in the draft in the order of the worklist."""
    lines.sort(key=lambda line: line.rank)
    head, middle, tail = re.split(f"{WORKLIST_PLACE}|{IMAGES_PLACE}", page)
    file.write(head)
    if len(lines) > 1:
        file.write(_worklist_head(target))
        for line in lines:
            file.write(_read(draft, line.row))
        file.write("</tbody></table></div></section>\n")
    file.write(middle)
    for line in lines:
        file.write(_read(draft, line.article))
    file.write(tail)


def _append(draft: IO[bytes], text: str) -> tuple[int, int]:
    """Write a part of the page and return where it begins, and its length in bytes."""
    start = draft.tell()
    return start, draft.write(text.encode("utf-8"))


def _read(draft: IO[bytes], place: tuple[int, int]) -> str:
    start, length = place
    draft.seek(start)
    return draft.read(length).decode("utf-8")


def _page(lines: list[_Line], target: str, about: Mapping[str, str]) -> str:
    counts = Counter(line.decision for line in lines)
    single = len(lines) == 1
    title = f"Chest X-ray: {lines[0].name}" if single else f"{len(lines):,} X-rays"
    totals = ", ".join(f"{words}: {count:,}" for words, count in counts.most_common())
    order = "Images without a prediction come first, then the most suspicious."
    template = Template(resources.files(__package__).joinpath("page.html").read_text("utf-8"))
    return template.substitute(
        title=escape(title),
        summary="" if single else escape(f"{_capital(totals)}. {order}"),
        about=_facts(about),
        target=escape(target),
        ramp=", ".join(_css_colour(step / 8) for step in range(9)),
        contour=f"calc({CONTOUR_AT:.0%} - 1px)",
        level="half" if CONTOUR_AT == 0.5 else f"{CONTOUR_AT:.0%}",
    )


def _worklist_head(target: str) -> str:
    return (
        '<section><h2>Worklist</h2><div class="card table" role="group" aria-label="Worklist" tabindex="0">'
        '<table><thead><tr><th scope="col">Image</th><th scope="col">Result</th>'
        f'<th scope="col" class="number">{escape(_capital(target))}</th></tr></thead><tbody>\n'
    )


def _row(number: int, prediction: Prediction, radiograph: Radiograph | None) -> str:
    """Return the image's row of the worklist, with a thumbnail where it could be read."""
    name = escape(plain_text(Path(prediction.path).name))
    drawn = ""
    if radiograph is not None:
        drawn = f'<img src="{_data_uri(overlay(radiograph, None, side=THUMBNAIL_SIDE))}" alt="">'
    shown = "" if prediction.p_target is None else escape(percent_text(prediction.p_target))
    return (
        f'<tr><td><a class="image" href="#image-{number}"><span class="thumbnail">{drawn}</span>'
        f'<span>{name}</span></a></td><td class="{tone(prediction)}">{escape(outcome_text(prediction))}</td>'
        f'<td class="number">{shown}</td></tr>\n'
    )


def _article(
    number: int,
    prediction: Prediction,
    radiograph: Radiograph | None,
    explanation: Explanation | None,
    point: OperatingPoint | None,
) -> str:
    name = escape(plain_text(Path(prediction.path).name))
    parts = [
        f'<article class="card" id="image-{number}"><h3>{name}</h3>',
        f'<p class="decision {tone(prediction)}">{escape(outcome_text(prediction))}</p>',
    ]
    if prediction.message:
        parts.append(f"<p>{escape(_capital(plain_text(prediction.message)))}</p>")
    if prediction.p_target is not None:
        parts.append(_bars(prediction, point))
    if radiograph is not None:
        parts.append(_images(name, radiograph, explanation))
    parts.append(f"<dl>{_facts(_header(prediction, radiograph, point))}</dl></article>\n")
    return "\n".join(parts)


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:]


def _bars(prediction: Prediction, point: OperatingPoint | None) -> str:
    classes = {name: p for name, p in prediction.probabilities.items() if name != prediction.target}
    rows = []
    for name, value in ({prediction.target: prediction.p_target or 0.0} | classes).items():
        mark = ""
        if name == prediction.target and point is not None:
            mark = f'<i style="left:calc({point.threshold:.2%} - 1px)"></i>'
        rows.append(
            f'<span>{escape(name)}</span><span class="bar" aria-hidden="true">'
            f'<b style="width:{value:.2%}"></b>{mark}</span><span>{escape(percent_text(value))}</span>'
        )
    return f'<div class="bars">{"".join(rows)}</div>'


def _images(name: str, radiograph: Radiograph, explanation: Explanation | None) -> str:
    plain = _data_uri(overlay(radiograph, None, side=IMAGE_SIDE))
    figures = [f'<figure><img src="{plain}" alt="X-ray {name}"><figcaption>Image</figcaption></figure>']
    if explanation is not None:
        drawn = _data_uri(overlay(radiograph, explanation, side=IMAGE_SIDE))
        finding = escape(explanation.finding)
        figures.append(
            f'<figure><img src="{drawn}" alt="Heat map for {finding} over the X-ray {name}"><figcaption>'
            f"Evidence for {finding}, by {METHODS[explanation.method]}"
            '<span class="scale" aria-hidden="true"><i></i></span><span class="ends" aria-hidden="true">'
            "<span>none</span><span>strongest</span></span></figcaption></figure>"
        )
    return f'<div class="images{"" if explanation else " single"}">{"".join(figures)}</div>'


def _header(
    prediction: Prediction, radiograph: Radiograph | None, point: OperatingPoint | None
) -> dict[str, str]:
    facts = {"File": prediction.path}
    if radiograph is not None:
        facts["Image"] = (
            f"{radiograph.width:,} × {radiograph.height:,} pixels, {radiograph.bits} bits, "
            f"{radiograph.format.upper()}"
        )
        if radiograph.view is not ViewPosition.UNKNOWN:
            facts["View"] = f"{radiograph.view.words}, from the header"
        if radiograph.age is not None:
            facts["Age"] = age_band(radiograph.age)
    if prediction.prediction_set:
        facts["Not ruled out"] = ", ".join(prediction.prediction_set)
    elif prediction.uncertain:
        facts["Not ruled out"] = NO_CLASS
    if prediction.p_target is not None and point is not None:
        population = "" if point.population == ANY_POPULATION else f", for the population {point.population}"
        facts["Operating point"] = (
            f"{point.name}: {prediction.target} at {threshold_text(point.threshold)} or more{population}"
        )
    if prediction.reasons:
        reasons = ", ".join(map(reason_text, prediction.reasons))
        cautions = all(reason in CAUTIONS for reason in prediction.reasons)
        lead = "passed, with caution: " if cautions else "overridden: "
        facts["Reason" if prediction.status == "unreadable" else "Gate"] = (
            f"{lead}{reasons}" if prediction.status == "ok" else reasons
        )
    elif prediction.status == "ok":
        facts["Gate"] = "passed"
    return facts


def _facts(facts: Mapping[str, str]) -> str:
    return "".join(
        f"<dt>{escape(plain_text(name))}</dt><dd>{escape(plain_text(fact))}</dd>"
        for name, fact in facts.items()
    )


def _data_uri(image: Canvas) -> str:
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")


@cache
def _css_colour(evidence: float) -> str:
    blue, green, red = colour_at(evidence)
    return f"rgb({red} {green} {blue})"

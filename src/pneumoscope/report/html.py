"""Answers as one self-contained page: to be read, kept, and printed.

Made with the standard library's templates, so that it works in the base install. Images are written to a
draft as they come and put in order at the end, so memory holds a line of the worklist for each, no more.
"""

from __future__ import annotations

import base64
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

from pneumoscope.domain import Explanation, OperatingPoint, Prediction, Radiograph, ViewPosition
from pneumoscope.errors import CAUTIONS
from pneumoscope.report.age import age_band
from pneumoscope.report.overlay import CONTOUR_AT, Canvas, colour_at, overlay
from pneumoscope.report.rows import NO_CLASS, plain_text
from pneumoscope.report.writers import replacing

__all__ = ["AddAnswer", "open_report"]

AddAnswer = Callable[[Prediction, Radiograph | None, Explanation | None], None]
"""Adds one answer, with the image and the heat map as far as there are any."""

IMAGE_SIDE = 640  # pixels on the longer side
JPEG_QUALITY = 85
PLACE = "<!--images-->"
METHODS = {"cam": "class activation map", "occlusion": "occlusion sensitivity"}
VIEWS = {
    ViewPosition.PA: "PA",
    ViewPosition.AP: "AP",
    ViewPosition.LATERAL: "lateral",
    ViewPosition.OTHER: "other",
}


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of the worklist, and where its image lies in the draft."""

    number: int
    name: str
    status: str
    words: str
    tone: str
    p_pneumonia: float | None
    start: int
    length: int

    @property
    def rank(self) -> tuple[bool, float, int]:
        """Most suspicious first; what was not predicted comes before, since nobody has looked at it."""
        return (self.p_pneumonia is not None, -(self.p_pneumonia or 0.0), self.number)


@contextmanager
def open_report(
    path: Path, *, about: Mapping[str, str], operating_point: OperatingPoint | None = None
) -> Iterator[AddAnswer]:
    """Write a page, answer by answer; it takes its name when the block ends well.

    Parameters
    ----------
    path : Path
        The page to make or replace; its folder must exist.
    about : mapping of str to str
        Facts on the model, name to value, in their order.
    operating_point : OperatingPoint, optional
        Its threshold is marked on the bar of pneumonia.

    Yields
    ------
    callable
        Adds an answer.

    Raises
    ------
    DataError
        If no file can be made there.
    """
    lines: list[_Line] = []
    with replacing(path) as file, tempfile.TemporaryFile() as draft:

        def add(
            prediction: Prediction,
            radiograph: Radiograph | None = None,
            explanation: Explanation | None = None,
        ) -> None:
            number = len(lines) + 1
            article = _article(number, prediction, radiograph, explanation, operating_point).encode("utf-8")
            words, tone = _decision(prediction)
            name = plain_text(Path(prediction.path).name)
            p, start = prediction.p_pneumonia, draft.tell()
            lines.append(_Line(number, name, prediction.status, words, tone, p, start, len(article)))
            draft.write(article)

        yield add
        lines.sort(key=lambda line: line.rank)
        head, tail = _page(lines, about).split(PLACE)
        file.write(head)
        for line in lines:
            _copy(draft, line, file)
        file.write(tail)


def _copy(draft: IO[bytes], line: _Line, file: IO[str]) -> None:
    draft.seek(line.start)
    file.write(draft.read(line.length).decode("utf-8"))


def _page(lines: list[_Line], about: Mapping[str, str]) -> str:
    counts = Counter(line.words for line in lines)
    single = len(lines) == 1
    title = f"Chest X-ray: {lines[0].name}" if single else f"{len(lines):,} chest X-rays"
    said = ", ".join(f"{count:,} {words}" for words, count in counts.most_common())
    order = "What was not predicted comes first, then the most suspicious."
    template = Template(resources.files(__package__).joinpath("page.html").read_text("utf-8"))
    return template.substitute(
        title=escape(title),
        summary="" if single else escape(f"{said}. {order}"),
        worklist="" if single else _worklist(lines),
        about=_facts(about),
        ramp=", ".join(_css_colour(step / 8) for step in range(9)),
        contour=f"calc({CONTOUR_AT:.0%} - 1px)",
        level="half" if CONTOUR_AT == 0.5 else f"{CONTOUR_AT:.0%}",
    )


def _worklist(lines: list[_Line]) -> str:
    rows = "\n".join(
        f'<tr><td><a href="#image-{line.number}">{escape(line.name)}</a></td>'
        f'<td class="{line.tone}">{escape(line.words)}</td>'
        f'<td class="number">{"" if line.p_pneumonia is None else f"{line.p_pneumonia:.1%}"}</td></tr>'
        for line in lines
    )
    return (
        '<section><h2>Worklist</h2><div class="card table"><table><thead><tr><th scope="col">Image</th>'
        '<th scope="col">Answer</th><th scope="col" class="number">Pneumonia</th></tr></thead>'
        f"<tbody>\n{rows}\n</tbody></table></div></section>"
    )


def _article(
    number: int,
    prediction: Prediction,
    radiograph: Radiograph | None,
    explanation: Explanation | None,
    point: OperatingPoint | None,
) -> str:
    name = escape(plain_text(Path(prediction.path).name))
    words, tone = _decision(prediction)
    parts = [
        f'<article class="card" id="image-{number}"><h3>{name}</h3>',
        f'<p class="decision {tone}">{escape(words)}</p>',
    ]
    if prediction.message:
        parts.append(f"<p>{escape(plain_text(prediction.message))}</p>")
    if prediction.p_pneumonia is not None:
        parts.append(_bars(prediction, point))
    if radiograph is not None:
        parts.append(_images(name, radiograph, explanation))
    parts.append(f"<dl>{_facts(_header(prediction, radiograph, point))}</dl></article>\n")
    return "\n".join(parts)


def _decision(prediction: Prediction) -> tuple[str, str]:
    """Say the answer in plain words, with the tone that colours it."""
    if prediction.status == "unreadable":
        return "could not be read", "doubt"
    if prediction.status == "rejected":
        return "not predicted", "doubt"
    if prediction.uncertain:
        leaning = "towards" if prediction.decision == "pneumonia" else "away from"
        return f"uncertain, leaning {leaning} pneumonia", "doubt"
    if prediction.decision == "pneumonia":
        return "pneumonia suspected", "alarm"
    return "no pneumonia seen", "calm"


def _bars(prediction: Prediction, point: OperatingPoint | None) -> str:
    rows = []
    for name in ("pneumonia", "bacterial", "viral", "normal"):
        value = getattr(prediction, f"p_{name}")
        if value is None:
            continue
        mark = ""
        if name == "pneumonia" and point is not None:
            mark = f'<i style="left:calc({point.threshold:.2%} - 1px)"></i>'
        rows.append(
            f'<span>{name}</span><span class="bar" aria-hidden="true"><b style="width:{value:.2%}"></b>{mark}'
            f"</span><span>{value:.1%}</span>"
        )
    return f'<div class="bars">{"".join(rows)}</div>'


def _images(name: str, radiograph: Radiograph, explanation: Explanation | None) -> str:
    plain = _data_uri(overlay(radiograph, None, side=IMAGE_SIDE))
    figures = [f'<figure><img src="{plain}" alt="X-ray {name}"><figcaption>As read</figcaption></figure>']
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
        if radiograph.view in VIEWS:
            facts["View"] = f"{VIEWS[radiograph.view]}, as its header states"
        if radiograph.age is not None:
            facts["Age"] = age_band(radiograph.age)
    if prediction.prediction_set:
        facts["Not ruled out"] = ", ".join(prediction.prediction_set)
    elif prediction.uncertain:
        facts["Not ruled out"] = NO_CLASS
    if prediction.p_pneumonia is not None and point is not None:
        facts["Operating point"] = f"{point.name}: pneumonia from {point.threshold:.1%} on"
    if prediction.reasons:
        reasons = ", ".join(reason.replace("_", " ") for reason in prediction.reasons)
        cautions = all(reason in CAUTIONS for reason in prediction.reasons)
        lead = "passed, with caution: " if cautions else "overridden: "
        facts["Gate"] = f"{lead}{reasons}" if prediction.status == "ok" else reasons
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

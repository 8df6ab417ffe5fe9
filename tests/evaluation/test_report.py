from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest

from html_page import Page
from pneumoscope.data.walk import is_own_output, walk
from pneumoscope.domain import Prediction, Target
from pneumoscope.errors import DataError, MissingExtraError
from pneumoscope.evaluation import evaluate_scores, worst_mistakes
from pneumoscope.evaluation.report import write_report
from pneumoscope.evaluation.tables import summary

HISTORY = """epoch,phase,lr,train_loss,val_loss,val_auroc,val_accuracy,seconds
1,1,0.001,0.9,0.8,0.7,0.6,3
2,2,0.0001,0.7,0.7,0.8,0.7,3
"""


def written(tmp_path, scored, evaluated_on="made-up scores, test split", **changes):
    metrics = evaluate_scores(scored, threshold=0.5, n_boot=20)
    given = {
        "metrics": metrics.model_copy(update={"evaluated_on": evaluated_on}),
        "not_evaluated": [],
        "threshold": 0.5,
        "points": {"balanced": 0.5},
        "root": tmp_path,
        "title": "A title",
        "about": {"Recipe": "default"},
    }
    given.update(changes)
    path = write_report(tmp_path / "out", scored, **given)
    return path, Page(path.read_text(encoding="utf-8"))


def test_the_page_stands_alone(draw, tmp_path):
    history = tmp_path / "history.csv"
    history.write_text(HISTORY)
    scored = draw(n=80)
    for mistake in worst_mistakes(scored, 0.5)[:2]:
        ramp = np.tile(np.linspace(0, 65535, 600, dtype=np.uint16), (400, 1))
        cv2.imwrite(str(tmp_path / mistake.path), ramp)
    path, page = written(tmp_path, scored, history=history)
    assert not page.open
    assert len(page.ids) == len(set(page.ids))
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert {address[1:] for address in page.addresses if address[0] == "#"} <= set(page.ids)
    assert sum(address.startswith("data:image/jpeg") for address in page.addresses) == 2
    text = path.read_text(encoding="utf-8")
    assert text.count("<script") == 2  # the explorer and its data
    assert set(re.findall(r"url\(([^)]*)\)", text)) <= {f"#{name}" for name in page.ids}
    assert text.count("<svg") == 8
    assert page.text.count("Not a medical device") == 1


def test_the_page_shows_what_was_measured(draw, tmp_path):
    scored = draw(n=80)
    _, page = written(tmp_path, scored)
    auroc = evaluate_scores(scored, threshold=0.5, n_boot=20).detection.auroc
    for expected in (
        "made-up scores, test split",
        "Recipe",
        f"{auroc.value:.3f}",
        f"{auroc.low:.3f} to {auroc.high:.3f}",
        worst_mistakes(scored, 0.5)[0].path,
        "every image was read and evaluated",
    ):
        assert expected in page.text


def test_a_report_inside_a_data_set_adds_no_image_to_it(draw, tmp_path):
    path, _ = written(tmp_path, draw(n=20))
    assert is_own_output(path.parent / "confusion_matrix.png")
    assert not list(walk(tmp_path))


def test_files_beside_the_page(draw, tmp_path):
    history = tmp_path / "history.csv"
    history.write_text(HISTORY)
    rejected = [
        Prediction("a.png", "unreadable", ("truncated",)),
        Prediction("b.png", "rejected", ("inverted", "too_small", "over_exposed")),  # the first: a caution
        Prediction("c.png", "rejected", ("too_small",)),
    ]
    scored = draw(n=40)
    path, page = written(tmp_path, scored, not_evaluated=rejected, history=history)
    content = json.loads((path.parent / "metrics.json").read_text(encoding="utf-8"))
    assert content["not_evaluated"] == {
        "rejected": 2,
        "unreadable": 1,
        "reasons": {"too_small": 2, "over_exposed": 1, "truncated": 1},
    }
    assert content["evaluated_on"] == "made-up scores, test split"
    assert content["detection"]["auroc"]["value"] is not None
    assert "1 unreadable and 2 rejected" in page.text
    assert "c.png" in page.text
    for name in ("confusion_matrix.png", "plot.jpg"):
        assert cv2.imread(str(path.parent / name)).std() > 5


@pytest.mark.parametrize("only", [0, 1])
def test_a_set_of_one_class_still_has_its_page(draw, tmp_path, only):
    scored = draw(n=60)
    _, page = written(tmp_path, scored.select(scored.labels == only))
    assert "needs images with and without pneumonia" in page.text


def test_a_set_without_mistakes_says_so(draw, tmp_path):
    scored = draw(n=60)
    scored = scored.select((scored.p_target >= 0.5) == scored.is_positive)
    _, page = written(tmp_path, scored)
    assert "None at this threshold." in page.text


def test_the_page_names_the_classes_and_the_target_of_the_bundle(draw, tmp_path):
    target = Target("infiltrate", ("lobar", "diffuse"))
    scored = draw(n=120, classes=("lobar", "clear", "diffuse"), target=target)
    scored = replace(scored, sources=("ward",) * 120)
    path, page = written(tmp_path, scored)
    for expected in ("Detection of infiltrate", "clear", "lobar vs diffuse, AUROC", "Missed infiltrate"):
        assert expected in page.text
    body = page.text[page.text.index("Measured on") :].lower()  # the style sheet comes before
    assert not [word for word in ("pneumonia", "normal", "bacterial") if word in body]
    assert "pneumonia" not in path.read_text(encoding="utf-8").lower()


def test_names_that_the_font_of_plots_lacks_are_replaced_there_alone(draw, tmp_path):
    target = Target("肺炎", ("肺炎", "$x_1$ and $y$"))
    scored = draw(n=60, classes=("нормальный", "肺炎", "$x_1$ and $y$"), target=target)
    path, page = written(tmp_path, scored)
    assert "Detection of 肺炎" in page.text
    assert "in the plots class 2 is 肺炎." in " ".join(page.text.split())
    drawn = set(re.findall(r"<!-- (.*?)  ?(?:[01]\.\d+)? ?-->", path.read_text(encoding="utf-8")))
    assert {"class 2", "no class 2", "нормальный"} <= drawn
    assert not any("肺" in text for text in drawn)


def test_names_cannot_break_the_page(draw, tmp_path):
    rejected = [Prediction("<script>alert(1)</script>\udcff.png", "rejected", ("too_small",))]
    path, _ = written(
        tmp_path,
        draw(n=40),
        not_evaluated=rejected,
        title="<b>&",
        about={"<i>": "</dl>"},
        evaluated_on='"<u>',
    )
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"<script>alert|<b>&|<i>|<u>", text)
    assert text.count("</dl>") == 1


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"epoch,phase,lr\nx,1,2\n", b"\xff\xfe\x00"])
def test_a_wrong_history_is_named(draw, tmp_path, content):
    history = tmp_path / "history.csv"
    history.write_bytes(content)
    with pytest.raises(DataError, match=r"history\.csv"):
        written(tmp_path, draw(n=40), history=history)


def test_an_absent_history_is_named(draw, tmp_path):
    with pytest.raises(DataError, match="gone"):
        written(tmp_path, draw(n=40), history=tmp_path / "gone.csv")


def test_without_jinja_the_extra_is_named(draw, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"\.\[evaluate\]"):
        written(tmp_path, draw(n=40))


def test_importing_the_package_needs_no_extra():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('scipy', 'sklearn', 'matplotlib', 'jinja2')))\n"
        "import pneumoscope.evaluation.report, pneumoscope.evaluation.card"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_real_images_are_shown(draw, shared_data, tmp_path):
    folder = shared_data / "kermany-original"
    images = sorted(folder.rglob("*.jpeg"))[:40]
    made = draw(n=40)
    scored = type(made)(
        made.classes,
        made.labels,
        made.probabilities,
        made.patients,
        tuple(str(path.relative_to(folder)) for path in images),
        made.sources,
        target=made.target,
    )
    path, page = written(tmp_path, scored, root=folder)
    shown = sum(address.startswith("data:image/jpeg") for address in page.addresses)
    assert shown == len(worst_mistakes(scored, 0.5)) > 0
    assert path.stat().st_size < 2_000_000


def test_thresholds_near_0_are_told_from_it(draw, tmp_path):
    scored = draw(n=40)
    _, page = written(tmp_path, scored, points={"balanced": 0.00004})
    assert "0.000040" in page.text
    metrics = evaluate_scores(scored, threshold=0.00004, n_boot=0)
    assert summary(metrics).startswith("At a threshold of 0.000040, ")

"""Findings, decisions and uncertainty on the page, for bundles with other classes and populations."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import pytest

from bundles import make_bundle
from pneumoscope.domain import Target
from pneumoscope.report.rows import columns

playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
pytest.importorskip("axe_playwright_python.sync_playwright", reason="the browser tests need axe")
pytest.importorskip("httpx", reason="the browser tests need httpx")
pytest.importorskip("fastapi", reason="the page needs the extra [web]")

from page_driver import (  # noqa: E402  what it imports may be absent
    WIDE,
    change_responses,
    drawn,
    give,
    percent,
    predictions_of,
    serving,
    upload,
)

expect = playwright.expect

PNEUMONIA = re.compile("pneumonia|bacterial|viral", re.IGNORECASE)


def test_a_threshold_near_0_or_1_has_the_digits_that_tell(open_page: Any) -> None:
    words = """async (thresholds) => {
        const { pointWords } = await import("/static/words.js");
        return thresholds.map((threshold) => pointWords({ threshold, sensitivity: null, specificity: null }));
    }"""
    shown = open_page().evaluate(words, [0, 3e-300, 0.0000012, 0.0005, 0.25, 0.999999, 1])
    expected = ("0.0%", "3.0e-298%", "0.00012%", "0.050%", "25.0%", "99.99990%", "100.0%")
    assert shown == [f"suspected at {one} or more" for one in expected]


def test_findings_are_named_by_the_bundle(open_page: Any, tmp_path: Path) -> None:
    """Columns, bars, words, CSV and report of a model for another finding."""
    classes, target = ("clear", "lobar", "diffuse"), Target("infiltrate", ("lobar", "diffuse"))
    bundle = make_bundle(tmp_path / "bundle", classes=classes, target=target, seed=4)
    with serving(bundle.path) as address:
        files = [upload(f"{seed}.jpeg", drawn(seed)) for seed in range(3)]
        expected = {one["path"]: one for one in predictions_of(address, *files)}
        page = open_page(address=address, viewport=WIDE)
        expect(page.locator(".promises")).to_contain_text("Probability of infiltrate (lobar, diffuse)")
        assert not PNEUMONIA.search(page.content())
        give(page, *files)
        heads = page.get_by_role("columnheader").all_inner_texts()
        assert [head.strip() for head in heads] == ["Image", "Prediction", "Infiltrate", "Lobar", "Diffuse"]
        name = page.locator(".result .file-name").inner_text()
        shown = expected[name]
        suspected = shown["decision"] == "infiltrate"
        title = "Infiltrate suspected" if suspected else "No infiltrate detected"
        expect(page.locator(".outcome")).to_contain_text(title)
        expect(page.locator("#canvas")).to_have_attribute(
            "aria-label", re.compile("Probability of infiltrate")
        )
        bars = page.locator(".bars .bar")
        assert bars.locator("dt").all_inner_texts() == ["Infiltrate", "Lobar", "Diffuse"]
        values = (shown["p_target"], shown["probabilities"]["lobar"], shown["probabilities"]["diffuse"])
        assert bars.locator("b").all_inner_texts() == [percent(value) for value in values]
        assert not PNEUMONIA.search(page.content())
        with page.expect_download() as waiting:
            page.get_by_role("button", name="Export CSV").click()
        text = Path(waiting.value.path()).read_text("utf-8")
        assert tuple(next(csv.reader(io.StringIO(text)))) == columns(classes, "infiltrate")
        with page.expect_download() as waiting:
            page.get_by_role("button", name="Save report").click()
        report = Path(waiting.value.path()).read_text("utf-8")
        for words in ("Infiltrate", "Lobar", "Diffuse", "Clear", title):
            assert words in report
        assert not PNEUMONIA.search(text + report)


def test_a_target_that_is_a_class_is_shown_once(open_page: Any, tmp_path: Path) -> None:
    bundle = make_bundle(
        tmp_path / "bundle", classes=("normal", "other", "covid"), target=Target("covid", ("covid",)), seed=4
    )
    with serving(bundle.path) as address:
        page = open_page(address=address)
        give(page, upload("1.jpeg", drawn(1)), upload("2.jpeg", drawn(2)))
        heads = page.get_by_role("columnheader").all_inner_texts()
        assert [head.strip() for head in heads] == ["Image", "Prediction", "Covid"]
        assert page.locator(".bars dt").all_inner_texts() == ["Covid", "Normal", "Other"]
        with page.expect_download() as waiting:
            page.get_by_role("button", name="Export CSV").click()
        text = Path(waiting.value.path()).read_text("utf-8")
        assert tuple(next(csv.reader(io.StringIO(text)))) == columns(("normal", "other", "covid"), "covid")


def test_each_population_has_its_own_thresholds(open_page: Any) -> None:
    """The page decides again with the points of the population that the row names."""
    page = open_page()

    def two_populations(response: Any) -> None:
        populations = response["populations"]
        strict = [point | {"threshold": 1.0} for point in populations[0]["operating_points"]]
        populations.append({"population": "elderly", "operating_points": strict, "prediction_sets": False})

    def of_the_elderly(body: Any) -> None:
        two_populations(body["bundle"])
        body["predictions"][0]["population"] = "elderly"

    def facts(body: Any) -> None:
        two_populations(body["facts"])

    change_responses(page, "**/v1/bundle", facts)
    change_responses(page, "**/v1/predictions*", of_the_elderly)
    page.reload()
    give(page, upload("one.jpeg", drawn(1)))
    expect(page.locator(".outcome")).to_contain_text("Pneumonia suspected")  # as the server decided
    page.get_by_label("Operating point").select_option("high")
    expect(page.locator(".outcome")).to_contain_text("No pneumonia detected")
    page.get_by_label("Operating point").select_option("low")
    expect(page.locator(".point")).to_contain_text("Suspected at 100.0% or more")
    expect(page.locator(".side")).to_contain_text("Thresholds for the population: elderly")


def test_an_uncertain_prediction_is_shown_as_such_whatever_the_decision(open_page: Any) -> None:
    page = open_page()

    def doubt(body: Any) -> None:
        body["predictions"][0] |= {"uncertain": True, "prediction_set": ["normal", "viral"]}

    change_responses(page, "**/v1/predictions*", doubt)
    give(page, upload("one.jpeg", drawn(1)))
    expect(page.locator(".outcome")).to_contain_text("Uncertain: normal and pneumonia are both possible")
    expect(page.locator(".side")).to_contain_text("Not ruled out: normal, viral.")
    expect(page.locator(".detail")).to_contain_text("reaches the operating point")
    page.get_by_label("Operating point").select_option("high")
    expect(page.locator(".detail")).to_contain_text("is below the operating point")


def test_an_image_without_a_probable_class_is_uncertain_too(open_page: Any) -> None:
    page = open_page()

    def doubt(body: Any) -> None:
        body["predictions"][0] |= {"uncertain": True, "prediction_set": []}

    def with_sets(body: Any) -> None:
        body["facts"]["populations"][0]["prediction_sets"] = True

    change_responses(page, "**/v1/bundle", with_sets)
    change_responses(page, "**/v1/predictions*", doubt)
    page.reload()
    give(page, upload("one.jpeg", drawn(1)))
    expect(page.locator(".outcome")).to_contain_text("Uncertain: no class is sufficiently probable")
    expect(page.locator(".side")).to_contain_text("No class is sufficiently probable")

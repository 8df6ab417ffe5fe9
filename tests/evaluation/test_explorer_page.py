"""The threshold explorer of a report, in a real browser, from a file."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pneumoscope.evaluation import ScoredSet, evaluate_scores
from pneumoscope.evaluation.report import write_report
from pneumoscope.evaluation.tables import span, value

pytest.importorskip("matplotlib", reason="the report needs the extra [evaluate]")
playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
pytest.importorskip("axe_playwright_python.sync_playwright", reason="the browser tests need axe")

from page_driver import DESK, PHONE, serious, watched_pages  # noqa: E402  what it imports may be absent

expect = playwright.expect
MEASURES = ("sensitivity", "specificity", "ppv", "npv")
POINTS = {"screening": 0.31, "balanced": 0.6, "rule-in": 0.905}


def written(folder: Path, scored: ScoredSet, points: dict[str, float]) -> tuple[str, Any]:
    threshold = points["balanced"]
    metrics = evaluate_scores(scored, threshold=threshold, points=points, n_boot=60)
    path = write_report(
        folder,
        scored,
        metrics=metrics,
        not_evaluated=[],
        threshold=threshold,
        points=points,
        root=folder,
        title="A title",
        about={},
    )
    return path.as_uri(), metrics


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, draw: Any) -> tuple[str, Any]:
    """Address of a report on made-up scores, and what it was made from."""
    scored = draw(n=240, per_patient=2)
    adults = np.arange(240) % 3 > 0
    population = tuple(np.where(adults, "adults", "any").tolist())
    sex = tuple("MF"[i % 2] for i in range(240))
    scored = replace(scored, attributes={"population": population, "sex": sex})
    return written(tmp_path_factory.mktemp("report"), scored, POINTS)


@pytest.fixture
def open_report(browser: Any, report: tuple[str, Any]) -> Any:
    with watched_pages(browser, report[0]) as opener:
        yield opener


def shown(page: Any, *names: str) -> list[str]:
    return [page.locator(f"#explorer-{name}").inner_text() for name in names]


def choose(page: Any, point: str) -> None:
    page.get_by_role("button", name=point).click()


def test_the_operating_points_show_the_numbers_of_the_tables(open_report: Any, report: Any) -> None:
    metrics = report[1]
    page = open_report()
    table = page.locator("#operating-points tbody tr")
    for index, (name, measured) in enumerate(metrics.operating_points.items()):
        choose(page, name)
        expect(page.locator("#explorer-setting")).to_contain_text(f"Threshold {POINTS[name]:.3f} ({name})")
        for rate in ("sensitivity", "specificity"):
            estimate = getattr(measured, rate)
            assert shown(page, rate) == [value(estimate)]
            assert shown(page, f"{rate}-interval") == [f"95% interval {span(estimate)}"]
        cells = table.nth(index).locator("td").all_inner_texts()[2:]
        numbers = [cell.split("\n")[0] for cell in cells]
        assert numbers[:4] == shown(page, *MEASURES)
        intervals = [f"95% interval {cell.split(chr(10))[1]}" for cell in cells[:4]]
        assert intervals == shown(page, *(f"{name}-interval" for name in MEASURES))
        assert numbers[4:] == [f"{float(n):.0f}" for n in shown(page, "referred", "missed")]
    choose(page, "balanced")
    detection = metrics.detection
    assert shown(page, "ppv", "npv") == [value(detection.ppv), value(detection.npv)]
    (cleared, alarms), (missed, found) = detection.confusion
    assert shown(page, "tp", "fn", "fp", "tn") == [f"{n:,}" for n in (found, missed, alarms, cleared)]


def test_bands_are_drawn_though_the_ends_have_no_interval(open_report: Any) -> None:
    page = open_report()
    drawn = page.locator("#explorer-curves :is(.band, .line)")
    shapes = drawn.evaluate_all("all => all.map((one) => one.getAttribute('d'))")
    assert len(shapes) == 4
    assert all(shape.startswith("M") for shape in shapes)


def test_subgroups_show_the_numbers_of_their_table(open_report: Any, report: Any) -> None:
    page = open_report()
    for name, subgroup in (("sex: F", report[1].by_sex["F"]), ("source: IM", report[1].by_source["IM"])):
        page.get_by_label("Images", exact=True).select_option(name)
        expect(page.locator("#explorer-setting")).to_contain_text(f"{name}: {subgroup.images}")
        for rate in MEASURES:
            assert shown(page, rate) == [value(getattr(subgroup, rate))]
    page.get_by_label("Images", exact=True).select_option("population: adults")
    expect(page.locator("#explorer-setting")).to_contain_text("160 images of")


def test_the_slider_is_moved_by_keys_and_trades_missed_for_referred(open_report: Any) -> None:
    page = open_report()
    slider = page.get_by_role("slider", name="Threshold")
    slider.focus()
    page.keyboard.press("Home")
    expect(slider).to_have_attribute("aria-valuetext", "0.0001")
    assert shown(page, "fn", "tn") == ["0", "0"]
    page.keyboard.press("End")
    expect(slider).to_have_attribute("aria-valuetext", "0.9999")
    assert shown(page, "tp", "fp") == ["0", "0"]
    assert shown(page, "ppv") == ["–"]
    page.keyboard.press("ArrowLeft")
    expect(slider).to_have_attribute("aria-valuetext", "0.9995")
    missed = []
    for name in POINTS:
        choose(page, name)
        missed.append(float(shown(page, "missed")[0]))
    assert missed == sorted(missed)
    expect(page.locator("#explorer-status")).to_contain_text("Sensitivity", timeout=10_000)


def test_the_prevalence_changes_predictive_values_and_patients_alone(open_report: Any, report: Any) -> None:
    page = open_report()
    before = shown(page, "sensitivity", "specificity", "tp", "fp")
    field = page.get_by_label("Prevalence of pneumonia")
    field.fill("2")
    detection = report[1].detection
    hits = 0.02 * detection.sensitivity.value
    alarms = 0.98 * (1 - detection.specificity.value)
    assert float(shown(page, "ppv")[0]) == pytest.approx(hits / (hits + alarms), abs=6e-4)
    low, high = map(float, re.findall(r"0\.\d+", shown(page, "ppv-interval")[0]))
    assert low < float(shown(page, "ppv")[0]) < high
    assert float(shown(page, "missed")[0]) == pytest.approx(20 - 1000 * hits, abs=0.06)
    assert float(shown(page, "referred")[0]) == pytest.approx(1000 * (hits + alarms), abs=0.6)
    assert shown(page, "sensitivity", "specificity", "tp", "fp") == before
    for wrong in ("", "0", "100"):
        field.fill(wrong)
        expect(field).to_have_attribute("aria-invalid", "true")
        expect(page.locator("#explorer-prevalence-note")).to_contain_text("0.1 to 99.9%")
    page.get_by_role("button", name="as in these images").click()
    assert shown(page, "ppv") == [value(detection.ppv)]
    expect(page.locator("#explorer-setting")).to_contain_text("that of these images")


@pytest.mark.parametrize(("viewport", "theme"), [(DESK, "light"), (PHONE, "dark")])
def test_axe_finds_nothing_serious(open_report: Any, viewport: dict[str, int], theme: str) -> None:
    page = open_report(viewport=viewport, theme=theme)
    assert serious(page) == []
    card = page.locator("#explorer")
    assert card.evaluate("one => one.scrollWidth <= one.clientWidth")


def test_it_prints_the_numbers_without_the_controls(open_report: Any) -> None:
    page = open_report()
    choose(page, "screening")
    page.emulate_media(media="print")
    expect(page.locator("#explorer-setting")).to_contain_text("Threshold 0.310 (screening)")
    expect(page.locator("#explorer-sensitivity")).to_be_visible()
    for name in ("threshold", "group", "prevalence", "points"):
        expect(page.locator(f"#explorer-{name}")).to_be_hidden()


def test_a_threshold_next_to_0_is_drawn_and_shown(browser: Any, tmp_path: Path, draw: Any) -> None:
    address, _ = written(tmp_path, draw(n=40), {"balanced": 3e-300})
    with watched_pages(browser, address) as opener:
        expect(opener().locator("#explorer-setting")).to_contain_text("Threshold 3.0e-300 (balanced)")


def test_every_table_fits_the_width_of_a_printed_page(open_report: Any) -> None:
    # A4 within the margins of 16 mm, at 96 pixels an inch.
    page = open_report(viewport={"width": 673, "height": 1000})
    page.emulate_media(media="print")
    tables = page.locator(".card.table")
    assert tables.count() > 3
    assert tables.evaluate_all("all => all.filter(one => one.scrollWidth > one.clientWidth).length") == 0


def test_without_javascript_the_table_remains(browser: Any, report: Any) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(report[0])
        expect(page.locator("#explorer")).to_be_hidden()
        expect(page.locator("#operating-points tbody tr")).to_have_count(9)
        expect(page.locator("#operating-points")).to_contain_text("screening")


def test_the_policy_of_the_page_allows_no_other_script(browser: Any, report: Any) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(report[0])
        page.evaluate("""() => {
            const script = document.createElement("script");
            script.textContent = "window.injected = true";
            document.body.append(script);
        }""")
        assert page.evaluate("() => window.injected ?? null") is None
        assert page.evaluate("() => document.querySelector('#explorer').hidden") is False
        policy = page.locator("meta[http-equiv]").get_attribute("content")
        assert "default-src 'none'" in policy
        assert "unsafe-inline" not in policy.partition("script-src")[2]


def test_a_threshold_near_0_is_told_from_it(browser: Any, draw: Any, tmp_path: Any) -> None:
    scored, points = draw(n=40), {"balanced": 0.00002}
    path = write_report(
        tmp_path,
        scored,
        metrics=evaluate_scores(scored, threshold=0.00002, points=points, n_boot=0),
        not_evaluated=[],
        threshold=0.00002,
        points=points,
        root=tmp_path,
        title="A title",
        about={},
    )
    with watched_pages(browser, path.as_uri()) as opened:
        expect(opened().locator("#explorer-setting")).to_contain_text("Threshold 0.000020 (balanced)")

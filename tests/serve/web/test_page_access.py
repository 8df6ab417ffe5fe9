"""Accessibility of the page: axe, the accessibility tree, small screens and dark ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
pytest.importorskip("axe_playwright_python.sync_playwright", reason="the browser tests need axe")
pytest.importorskip("httpx", reason="the browser tests need httpx")
pytest.importorskip("fastapi", reason="the page needs the extra [web]")

from page_driver import DESK, PHONE, drawn, give, serious, upload  # noqa: E402  what it imports may be absent

expect = playwright.expect


def test_the_print_command_of_the_browser_prints_what_is_on_show(open_page: Any) -> None:
    page = open_page()
    page.emulate_media(media="print")
    expect(page.get_by_role("heading", name="Drop chest X-rays here")).to_be_visible()
    page.emulate_media(media="screen")
    give(page, upload("one.jpeg", drawn(1)))
    page.emulate_media(media="print")
    expect(page.locator(".outcome")).to_be_visible()


def test_axe_finds_nothing_serious(open_page: Any) -> None:
    page = open_page()
    assert serious(page) == []
    give(
        page,
        upload("one.jpeg", drawn(1)),
        upload("broken.jpeg", b"\xff\xd8 no"),
        upload("two.jpeg", drawn(2)),
    )
    assert serious(page) == []
    page.emulate_media(color_scheme="dark", reduced_motion="reduce")
    assert serious(page) == []
    page.get_by_role("button", name="Keyboard help").click()
    assert serious(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_button_can_be_read_while_it_is_pressed_and_under_the_mouse(open_page: Any, scheme: str) -> None:
    page = open_page()
    page.emulate_media(color_scheme=scheme)
    give(page, upload("one.jpeg", drawn(1)))
    for name in ("Heat map", "Invert"):
        button = page.get_by_role("button", name=name)
        button.hover()
        if button.get_attribute("aria-pressed") == "false":
            button.click()
        expect(button).to_have_attribute("aria-pressed", "true")
        # Its two colours change together: a background that fades behind its text is unreadable on the way.
        expect(button).to_have_css("transition-duration", "0s")
        assert serious(page) == []


def test_the_accessibility_tree_has_the_whole_prediction(open_page: Any) -> None:
    page = open_page()
    give(page, upload("one.jpeg", drawn(1)), upload("two.jpeg", drawn(2)))
    expect(page.locator("body")).to_match_aria_snapshot(
        """
        - banner:
          - heading "Pneumoscope" [level=1]
          - paragraph: Research use only. Not for diagnosis.
          - button "Add X-rays"
          - button "Export CSV"
          - button "Print report"
          - button "Save report"
          - button "Clear"
          - link /Model card/
          - button "Keyboard help"
          - button /Theme/
        - main:
          - region "Worklist":
            - paragraph: /2 images/
            - table:
              - rowgroup:
                - row:
                  - columnheader /Image/
                  - columnheader /Prediction/
                  - columnheader /Pneumonia/
              - rowgroup
          - region "X-ray":
            - group /X-ray viewer/:
              - img /X-ray .*jpeg\\. .*Probability of pneumonia/
            - group "View":
              - button "Heat map" [pressed]
              - slider "Opacity"
              - button "Invert"
              - button "Zoom out"
              - button "Zoom in"
              - button "Reset"
              - slider "Window"
              - slider "Level"
          - region "Prediction":
            - heading "Prediction" [level=2]
            - region "Probabilities":
              - heading "Probability" [level=3]
          - region "Details":
            - heading "Details" [level=2]
            - paragraph:
              - combobox /Operating point/
        """
    )


def test_the_focus_stays_while_other_images_are_read(open_page: Any) -> None:
    page = open_page()
    waiting: list[Any] = []

    def hold(route: Any) -> None:
        waiting.append(route)

    page.route("**/v1/predictions*", hold)
    page.locator("#picker").set_input_files([upload(f"{seed}.jpeg", drawn(seed)) for seed in range(10)])
    with page.expect_request("**/v1/predictions*"):  # the third, after a response to one of the first two
        expect(page.locator("#progress")).to_have_attribute("max", "10")
        waiting.pop(0).continue_()
    point = page.locator("#operating-point")
    point.focus()
    element = point.element_handle()
    waiting.pop(0).continue_()
    expect(page.locator("#rows tr[data-tone=reading]")).to_have_count(2)
    expect(page.locator("#rows .thumbnail canvas")).to_have_count(10)
    assert element.evaluate("select => select.isConnected && select === document.activeElement")

    point.select_option("high")
    expect(page.locator(".point")).to_contain_text("Suspected at 99.0% or more")
    expect(point).to_be_focused()
    waiting.pop(0).abort()
    expect(page.locator("#rows tr[data-tone=failed]")).to_have_count(2)
    expect(point).to_be_focused()  # also where the most suspicious image has taken the place of the first
    page.locator("#rows tr[data-tone=failed] button").first.click()
    again = page.get_by_role("button", name="Try again")
    again.press("Enter")
    expect(page.locator("#result")).to_be_focused()
    expect(again).to_be_hidden()
    page.get_by_role("button", name="Remove this image").press("Enter")
    expect(page.locator("#rows tr")).to_have_count(9)
    expect(page.locator("#result")).to_be_focused()


@pytest.mark.parametrize(("viewport", "theme"), [(PHONE, "light"), (DESK, "dark")])
def test_nothing_runs_over_the_side(open_page: Any, viewport: dict[str, int], theme: str) -> None:
    page = open_page(viewport=viewport, theme=theme)
    wide = "() => document.documentElement.scrollWidth - window.innerWidth"
    assert page.evaluate(wide) <= 0
    give(page, upload("a-rather-long-name-" * 6 + ".jpeg", drawn(1)), upload("two.jpeg", drawn(2)))
    assert page.evaluate(wide) <= 0
    # The image is read on a dark ground in either theme.
    assert page.locator("#frame").evaluate("one => getComputedStyle(one).backgroundColor") == "rgb(8, 11, 13)"


NARROW = {"width": 320, "height": 640}  # also a window of 1,280 pixels enlarged to 400%
OVER = "() => document.documentElement.scrollWidth - window.innerWidth"
CUT_OFF = "one => one.scrollHeight > one.clientHeight || one.scrollWidth > one.clientWidth"
LONG_WORD = """() => {
    const word = document.createElement("p");
    word.textContent = "0123456789abcdef".repeat(8);
    document.querySelector("main").append(word);
}"""


def _style(page: Any, selector: str, name: str) -> str:
    value: str = page.locator(selector).first.evaluate("(one, name) => getComputedStyle(one)[name]", name)
    return value


def test_names_and_headings_of_a_narrow_worklist_can_be_read(open_page: Any) -> None:
    page = open_page(viewport=NARROW)
    long = "a-rather-long-name-" * 6 + "12.jpeg"
    give(page, upload(long, drawn(1)), upload("two.jpeg", drawn(2)))
    names = page.locator("#rows .name")
    assert names.filter(has_text="two.jpeg").bounding_box()["height"] < 60
    for cell in (*names.all(), *page.locator("#heads .heading:visible").all()):
        assert not cell.evaluate(CUT_OFF), cell.inner_text()


def test_the_outline_of_a_focused_button_is_not_cut_off_on_a_narrow_screen(open_page: Any) -> None:
    page = open_page(viewport=NARROW)
    give(page, upload("one.jpeg", drawn(1)))
    page.locator("#add").focus()
    for _ in range(5):
        button = page.locator(".actions :focus").bounding_box()
        row = page.locator(".actions").bounding_box()
        assert row["y"] <= button["y"] - 5
        assert row["y"] + row["height"] >= button["y"] + button["height"] + 5
        assert row["x"] <= button["x"] - 5
        page.keyboard.press("Tab")


def test_keyboard_help_begins_at_its_beginning_on_a_small_screen(open_page: Any) -> None:
    page = open_page(viewport=NARROW)
    page.keyboard.press("?")
    expect(page.get_by_role("heading", name="Keyboard help")).to_be_in_viewport()


def test_state_is_seen_with_forced_colours(open_page: Any) -> None:
    page = open_page()
    page.emulate_media(forced_colors="active")
    give(page, upload("one.jpeg", drawn(1)), upload("two.jpeg", drawn(2)))
    expect(page.locator("#heat")).to_have_attribute("aria-pressed", "true")
    background = "backgroundColor"
    assert _style(page, "#heat", background) != _style(page, "#invert", background)
    assert _style(page, "#rows tr.chosen", background) != _style(page, "#rows tr:not(.chosen)", background)
    for part in (".fill", ".threshold"):
        assert _style(page, part, background) != _style(page, ".track", background)
    assert _style(page, "#frame", background) == "rgb(8, 11, 13)"


def test_paper_is_white_whatever_the_theme(open_page: Any) -> None:
    page = open_page()
    give(page, upload("one.jpeg", drawn(1)))
    for theme in ("light", "dark"):
        page.get_by_role("button", name="Theme").click()
        expect(page.locator("html")).to_have_attribute("data-theme", theme)
    page.emulate_media(media="print")
    for part in (".result .file-name", ".bars dt", ".legend span"):
        channels = _style(page, part, "color").removeprefix("rgb(").rstrip(")").split(",")
        assert max(map(int, channels)) < 128, f"{part} is light"
    assert _style(page, "html", "backgroundColor") == "rgb(243, 245, 246)"
    assert _style(page, ".fill", "printColorAdjust") == "exact"  # browsers print no backgrounds by themselves
    expect(page.locator(".controls, .actions").first).to_be_hidden()


def test_a_saved_report_can_be_read_on_any_screen(browser: Any, open_page: Any, tmp_path: Path) -> None:
    page = open_page()
    give(page, upload("a-rather-long-name-" * 6 + ".jpeg", drawn(1)), upload("two.jpeg", drawn(2)))
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Save report").click()
    saved = tmp_path / "report.html"
    waiting.value.save_as(saved)
    with browser.new_context(viewport=DESK) as context:
        report = context.new_page()
        report.goto(saved.as_uri())
        row = report.get_by_role("rowheader", name="two.jpeg")
        row.locator("img").evaluate("image => image.decode()")
        assert row.locator("img").bounding_box()["x"] - row.bounding_box()["x"] < 2
        assert row.bounding_box()["height"] < 60
        report.set_viewport_size(NARROW)
        assert report.evaluate(OVER) <= 0
        assert serious(report) == []


def test_long_words_of_a_model_card_stay_on_the_screen(open_page: Any, site: str) -> None:
    page = open_page(viewport=NARROW)
    page.goto(f"{site}/card")
    page.evaluate(LONG_WORD)
    assert page.evaluate(OVER) <= 0

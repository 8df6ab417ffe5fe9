"""Many images, a server that fails, and commands given twice, on the page in a real browser."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
pytest.importorskip("axe_playwright_python.sync_playwright", reason="the browser tests need axe")
pytest.importorskip("httpx", reason="the browser tests need httpx")
pytest.importorskip("fastapi", reason="the page needs the extra [web]")

from page_driver import change_responses, drawn, give, upload  # noqa: E402  what it imports may be absent

expect = playwright.expect

# Every request gets, after a moment and without the server, the prediction of the first image.
INSTANT = """([bundle, prediction]) => {
    const { fetch } = window;
    window.fetch = async (address, options) => {
        if (!String(address).includes("v1/predictions")) return fetch(address, options);
        await new Promise((done) => setTimeout(done, 60));
        const predictions = options.body.getAll("files").map(() => prediction);
        return new Response(JSON.stringify({ bundle, predictions }));
    };
    window.counted = [];
    const note = () => window.counted.push(performance.now());
    new MutationObserver(note).observe(document.getElementById("counts"), { childList: true });
}"""

# Rows in which anything was written, but for the order of the rows.
WATCH_ROWS = """() => {
    window.written = new Set();
    const note = (records) => {
        for (const { target } of records) {
            const row = target.closest("tr");
            if (row) window.written.add(row);
        }
    };
    const all = { attributes: true, childList: true, subtree: true };
    new MutationObserver(note).observe(document.getElementById("rows"), all);
}"""


def test_choosing_an_image_writes_its_row_and_the_one_before_only(open_page: Any) -> None:
    """The browser lays out every row that is written to, also where nothing in it has changed."""
    page = open_page()
    give(page, *(upload(f"{seed}.jpeg", drawn(seed)) for seed in range(6)))
    expect(page.locator("#rows .thumbnail canvas")).to_have_count(6)
    page.evaluate(WATCH_ROWS)
    page.keyboard.press("j")
    expect(page.locator("#rows tr").nth(1)).to_have_class("chosen")
    assert page.evaluate("() => window.written.size") == 2


def test_a_long_list_is_drawn_less_often(open_page: Any, site: str) -> None:
    page = open_page()
    with page.expect_response("**/v1/predictions*") as waiting:
        give(page, upload("first.jpeg", drawn(0)))
    body = waiting.value.json()
    prediction = body["predictions"][0] | {"preview": None, "heatmap": None}
    page.evaluate(INSTANT, [body["bundle"], prediction])
    count = 250
    page.locator("#picker").set_input_files([upload(f"{index}.dcm", b"x") for index in range(count)])
    expect(page.locator("#counts")).to_contain_text(f"{count + 1} images")
    expect(page.locator("#rows tr[data-tone=reading]")).to_have_count(0)
    times = page.evaluate("() => window.counted")
    # The first may follow at once, as the list was short before.
    pauses = [late - early for early, late in pairwise(times[1:])]
    assert pauses
    assert min(pauses) > count * 0.9


def test_who_cancels_the_token_is_asked_once_for_all_images(browser: Any, site: str) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        refusing = True

        def guarded(route: Any) -> None:
            if refusing:
                route.fulfill(status=401, json={"title": "token", "status": 401})
            else:
                route.continue_()

        page.route("**/v1/**", guarded)
        page.goto(site)
        field = page.get_by_role("textbox", name="Access token")
        field.fill("wrong")
        expect(field).to_have_accessible_description("")
        page.get_by_role("button", name="Use it").click()
        expect(field).to_have_accessible_description("That token was rejected.")
        page.get_by_role("button", name="Cancel").click()
        page.locator("#picker").set_input_files([upload(f"{seed}.jpeg", drawn(seed)) for seed in range(20)])
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#rows tr[data-tone=failed]")).to_have_count(20)
        expect(page.locator("#token-dialog")).to_be_hidden()

        refusing = False
        page.get_by_role("button", name="Try all 20 again").click()
        expect(page.locator("#rows tr:not([data-tone=reading], [data-tone=failed])")).to_have_count(20)
        expect(page.locator("#try-all-again")).to_have_count(0)


def test_what_was_not_sent_is_sent_again_one_by_one_or_together(open_page: Any) -> None:
    page = open_page()
    page.route("**/v1/predictions*", lambda route: route.abort())
    page.locator("#picker").set_input_files([upload(f"{seed}.jpeg", drawn(seed)) for seed in range(6)])
    expect(page.locator("#rows tr[data-tone=failed]")).to_have_count(6)
    page.unroute("**/v1/predictions*")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#rows tr[data-tone=failed]")).to_have_count(5)
    page.locator("#rows tr[data-tone=failed] button").first.click()
    page.get_by_role("button", name="Try all 5 again").press("Enter")
    expect(page.locator("#result")).to_be_focused()
    expect(page.locator("#rows tr[data-tone=failed], #rows tr[data-tone=reading]")).to_have_count(0)


def test_a_second_click_prints_no_second_report(open_page: Any) -> None:
    page = open_page()
    give(page, *(upload(f"{seed}.jpeg", drawn(seed)) for seed in range(3)))
    page.evaluate("() => { window.prints = 0; window.print = () => { window.prints += 1; }; }")
    page.evaluate("() => { for (const one of [1, 2]) document.getElementById('print').click(); }")
    expect(page.locator("#print")).not_to_have_attribute("aria-busy", "true")
    assert page.evaluate("() => window.prints") == 1


def test_what_is_cleared_while_its_report_is_made_is_not_printed(open_page: Any) -> None:
    page = open_page()
    give(page, upload("one.jpeg", drawn(1)))
    page.evaluate("() => { window.prints = 0; window.print = () => { window.prints += 1; }; }")
    page.evaluate("() => { for (const id of ['print', 'clear']) document.getElementById(id).click(); }")
    expect(page.locator("#print")).not_to_have_attribute("aria-busy", "true")
    assert page.evaluate("() => window.prints") == 0
    assert "one.jpeg" not in page.locator("#report").inner_html()


def test_a_caution_is_not_given_as_the_cause_of_a_rejection(open_page: Any) -> None:
    page = open_page()

    def rejected(body: Any) -> None:
        body["predictions"][0] |= {
            "status": "rejected",
            "reasons": ["inverted", "lateral_view"],
            "message": "it looks like a lateral view: give the frontal image",
            "p_target": None,
            "probabilities": {},
            "decision": None,
            "heatmap": None,
        }

    change_responses(page, "**/v1/predictions*", rejected)
    give(page, upload("side.jpeg", drawn(1)))
    expect(page.locator(".outcome")).to_have_text("■Rejected: lateral view. Give the frontal image")


def test_the_report_states_whose_thresholds_it_used(open_page: Any) -> None:
    page = open_page()

    def two_populations(body: Any) -> None:
        populations = (body.get("bundle") or body.get("facts"))["populations"]
        populations.append(populations[0] | {"population": "elderly"})
        for row in body.get("predictions", []):
            row["population"] = "elderly"

    change_responses(page, re.compile("/v1/(bundle|predictions)"), two_populations)
    page.reload()
    give(page, upload("one.jpeg", drawn(1)))
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Save report").click()
    assert "Thresholds for the population: elderly." in Path(waiting.value.path()).read_text("utf-8")

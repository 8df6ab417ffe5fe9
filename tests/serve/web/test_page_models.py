"""A page that stays open while the server gets another model."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
pytest.importorskip("axe_playwright_python.sync_playwright", reason="the browser tests need axe")
pytest.importorskip("httpx", reason="the browser tests need httpx")
pytest.importorskip("fastapi", reason="the page needs the extra [web]")

from page_driver import canvas_image, drawn, give, upload  # noqa: E402  what it imports may be absent

expect = playwright.expect

POINT = {"name": "new", "threshold": 0.5, "sensitivity": None, "specificity": None}


# As in a tab in the background.
HOLD_FRAMES = """() => {
    const request = window.requestAnimationFrame.bind(window);
    const held = [];
    window.requestAnimationFrame = (frame) => held.push(frame);
    window.goOn = () => {
        window.requestAnimationFrame = request;
        held.forEach((frame) => frame());
    };
}"""


def by_another_model(route: Any, identity: str, **fields: object) -> None:
    """Respond as a server with another bundle, whose operating point has another name."""
    response = route.fetch()
    body = response.json()
    population = body["bundle"]["populations"][0] | {"operating_points": [POINT]}
    body["bundle"] |= {
        "identity": identity,
        "default_operating_point": "new",
        "operating_points": [POINT],
        "populations": [population],
    }
    for row in body["predictions"]:
        row |= {"bundle": identity, "operating_point": "new", **fields}
    route.fulfill(response=response, json=body)


def test_what_another_model_predicted_is_predicted_again(open_page: Any) -> None:
    page = open_page()
    give(page, *(upload(f"{seed}.jpeg", drawn(seed)) for seed in range(2)))
    page.get_by_label("Operating point").select_option("high")
    page.route("**/v1/predictions*", lambda route: by_another_model(route, "other@1"))
    page.locator("#picker").set_input_files([upload("2.jpeg", drawn(2))])
    expect(page.locator("#model")).to_have_text(" other@1")
    expect(page.locator("#rows tr:not([data-tone=reading])")).to_have_count(3)
    expect(page.locator("#counts")).not_to_contain_text("not sent")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Export CSV").click()
    rows = list(csv.DictReader(io.StringIO(Path(waiting.value.path()).read_text("utf-8"))))
    assert [(row["bundle"], row["operating_point"]) for row in rows] == [("other@1", "new")] * 3


def test_the_heat_map_is_of_the_model_whose_result_is_shown(open_page: Any) -> None:
    page = open_page()
    give(page, upload("0.jpeg", drawn(0)))
    page.keyboard.press("j")  # chosen by hand, it stays on show
    assert np.ptp(canvas_image(page), axis=2).max() > 40, "the heat map shows no colour"
    page.evaluate(HOLD_FRAMES)
    page.route("**/v1/predictions*", lambda route: by_another_model(route, "other@1", heatmap=None))
    page.locator("#picker").set_input_files([upload("1.jpeg", drawn(1))])
    expect(page.locator("#announcements")).to_contain_text("0.jpeg: ")
    page.evaluate("() => window.goOn()")
    expect(page.locator(".result .file-name")).to_have_text("0.jpeg")
    expect(page.locator(".details code")).to_have_text("other@1")
    assert np.ptp(canvas_image(page), axis=2).max() <= 16


def test_two_servers_of_different_models_do_not_keep_the_page_busy(open_page: Any) -> None:
    """Whichever model comes again, what the other has predicted is not shown beside it."""
    page = open_page()
    requests = []

    def one_of_two(route: Any) -> None:
        requests.append(route.request.url)
        first = b"0.jpeg" in (route.request.post_data_buffer or b"")
        by_another_model(route, "one@1" if first else "two@1")

    page.route("**/v1/predictions*", one_of_two)
    page.locator("#picker").set_input_files([upload(f"{seed}.jpeg", drawn(seed)) for seed in range(8)])
    # How many were together in the first request depends on how fast the files were read.
    expect(page.locator("#counts")).to_contain_text(re.compile("[1-7] not sent"))
    expect(page.locator("#rows tr[data-tone=reading]")).to_have_count(0)
    assert len(requests) <= 2 * 8
    page.locator("#rows tr[data-tone=failed] button").first.click()
    expect(page.locator(".detail")).to_contain_text("another model now")

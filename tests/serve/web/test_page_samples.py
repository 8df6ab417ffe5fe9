"""Samples, reasons and the order of the parts on the page, in a real browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from dicom_files import dicom
from pneumoscope.data.samples import read_samples
from pneumoscope.errors import CAUTIONS, Reason

playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
pytest.importorskip("axe_playwright_python.sync_playwright", reason="the browser tests need axe")
pytest.importorskip("httpx", reason="the browser tests need httpx")
pytest.importorskip("fastapi", reason="the page needs the extra [web]")

from page_driver import PHONE, drawn, give, serious, upload  # noqa: E402  what it imports may be absent

expect = playwright.expect
STATIC = Path(__file__).parents[3] / "src" / "pneumoscope" / "serve" / "web" / "static"


def test_a_button_loads_the_samples_with_their_true_labels(open_page: Any) -> None:
    page = open_page()
    page.get_by_role("button", name="Try a sample").click()
    samples = read_samples()
    expect(page.locator("#rows tr:not([data-tone=reading])")).to_have_count(len(samples))
    for sample in (samples[0], samples[-1]):
        page.locator("#rows").get_by_role("button", name=sample.path).click()
        expect(page.locator(".sample")).to_contain_text(f"True label: {sample.label}. {sample.content}")
    expect(page.locator(".sample")).to_contain_text("CC BY 4.0")
    assert serious(page) == []
    page.locator("#picker").set_input_files([upload("own.jpeg", drawn(1))])
    expect(page.locator("#rows tr")).to_have_count(len(samples) + 1)
    page.locator("#rows").get_by_role("button", name="own.jpeg").click()
    expect(page.locator(".result .file-name")).to_have_text("own.jpeg")
    expect(page.locator(".sample")).to_have_count(0)


def test_samples_that_do_not_arrive_are_reported(open_page: Any) -> None:
    page = open_page()
    page.route("**/samples/*", lambda route: route.fulfill(status=404, json={"title": "gone", "status": 404}))
    page.get_by_role("button", name="Try a sample").click()
    expect(page.locator("#samples-note")).to_contain_text("could not be loaded: gone")


def test_a_lateral_view_is_called_one_in_the_first_line(open_page: Any) -> None:
    grey = cv2.cvtColor(cv2.imdecode(np.frombuffer(drawn(1), np.uint8), 1), cv2.COLOR_BGR2GRAY)
    rows, columns = grey.shape
    for view in ("LL", "RL", "LATERAL"):
        page = open_page()
        given = dicom(grey, bits=8, Rows=rows, Columns=columns, ViewPosition=view, BodyPartExamined="CHEST")
        give(page, upload("side.dcm", given))
        expect(page.locator(".outcome")).to_have_text("■Rejected: lateral view. Give the frontal image")
        expect(page.locator(".detail")).to_contain_text("give the frontal (PA or AP) image of the study")
        expect(page.locator(".facts")).to_contain_text("Viewlateral")
        expect(page.locator(".bars")).to_have_count(0)


def test_every_reason_has_words_and_every_rejection_something_to_do() -> None:
    text = (STATIC / "words.js").read_text(encoding="utf-8")
    words = dict(re.findall(r'^  (\w+): \["[^"]+", "([^"]*)"\],$', text, re.MULTILINE))
    assert set(words) == set(Reason)
    assert {code for code, advice in words.items() if not advice} == set(CAUTIONS)


def test_no_probability_is_shown_as_certain(open_page: Any) -> None:
    page = open_page()

    def certain(route: Any) -> None:
        response = route.fetch()
        body = response.json()
        probabilities = {"normal": 0.0, "bacterial": 1.0, "viral": 0.0}
        body["predictions"][0] |= {"p_target": 1.0, "probabilities": probabilities}
        route.fulfill(response=response, body=json.dumps(body))

    page.route("**/v1/predictions*", certain)
    give(page, upload("one.jpeg", drawn(1)))
    expect(page.locator(".bars b").first).to_have_text(">99.9%")
    assert page.locator(".bars b").all_inner_texts() == [">99.9%", ">99.9%", "<0.1%"]
    expect(page.locator("#canvas")).to_have_attribute("aria-label", re.compile("pneumonia >99.9%"))


def test_on_a_phone_the_result_stands_above_the_image(open_page: Any) -> None:
    page = open_page(viewport=PHONE)
    give(page, *(upload(f"{seed}.jpeg", drawn(seed)) for seed in range(3)))
    places = ["#result", "#frame", ".details", "#worklist"]
    tops = [page.locator(place).bounding_box()["y"] for place in places]
    assert tops == sorted(tops)
    bars = page.locator(".bars").bounding_box()
    assert bars["y"] + bars["height"] < PHONE["height"]
    assert page.locator("#frame").bounding_box()["y"] < PHONE["height"] * 0.75
    # The frame is as high as the image, without bars above and below.
    frame = page.locator("#frame").bounding_box()
    assert frame["width"] / frame["height"] == pytest.approx(360 / 300, rel=0.02)
    page.locator("#rows tr").last.locator("button").click()
    expect(page.locator("#result")).to_be_in_viewport()
    expect(page.locator("#result")).to_be_focused()


def test_help_on_keys_is_opened_by_a_key(open_page: Any) -> None:
    page = open_page()
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog", name="Keyboard help")
    expect(dialog).to_be_visible()
    for words in ("next, previous image", "heat map on or off", "this help"):
        expect(dialog).to_contain_text(words)
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()

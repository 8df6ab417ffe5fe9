"""The page in a real browser, over the real server."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pneumoscope.errors import BundleError
from pneumoscope.model.bundle import load_bundle
from pneumoscope.report.rows import columns

playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
pytest.importorskip("axe_playwright_python.sync_playwright", reason="the browser tests need axe")
pytest.importorskip("httpx", reason="the browser tests need httpx")
pytest.importorskip("fastapi", reason="the page needs the extra [web]")

from page_driver import (  # noqa: E402  what it imports may be absent
    POINTS,
    canvas_image,
    drawn,
    give,
    percent,
    predictions_of,
    serving,
    set_slider,
    upload,
)

expect = playwright.expect

# The canvas that the viewer paints from, which is not in the document.
KEEP_PAINTED = """() => {
    const { prototype } = CanvasRenderingContext2D;
    const { drawImage } = prototype;
    prototype.drawImage = function (source, ...where) {
        if (this.canvas.id === "canvas") window.painted ??= source;
        drawImage.call(this, source, ...where);
    };
}"""


def test_a_jpeg_gets_bars_and_the_operating_point(open_page: Any, site: str) -> None:
    file = upload("one.jpeg", drawn(1))
    (prediction,) = predictions_of(site, file)
    page = open_page()
    give(page, file)
    title = "Pneumonia suspected" if prediction["decision"] == "pneumonia" else "No pneumonia detected"
    expect(page.locator(".result .outcome")).to_contain_text(title)
    bars = page.locator(".bars .bar")
    classes = prediction["probabilities"]
    for index, value in enumerate((prediction["p_target"], classes["bacterial"], classes["viral"])):
        expect(bars.nth(index).locator("b")).to_have_text(percent(value))
    expect(bars).to_have_count(3)
    track = bars.nth(0).locator(".track").bounding_box()
    mark = bars.nth(0).locator(".threshold").bounding_box()
    share = (mark["x"] + mark["width"] / 2 - track["x"]) / track["width"]
    assert share == pytest.approx(POINTS[0].threshold, abs=0.01)
    expect(page.locator(".facts")).to_contain_text("360 × 300 pixels")
    expect(page.locator("#announcements")).to_contain_text(f"one.jpeg: {title}")
    assert page.get_by_role("link", name="Model card").get_attribute("href") == "card"


def test_the_operating_point_moves_the_decision_and_not_the_probability(open_page: Any, site: str) -> None:
    files = [upload(f"{seed}.jpeg", drawn(seed)) for seed in range(6)]
    between = [
        file
        for file, one in zip(files, predictions_of(site, *files), strict=True)
        if POINTS[0].threshold <= one["p_target"] < POINTS[1].threshold
    ]
    assert between, "no image lies between the two thresholds"
    page = open_page()
    give(page, between[0])
    expect(page.locator(".outcome")).to_contain_text("Pneumonia suspected")
    before = page.locator(".bars").inner_text()
    page.get_by_label("Operating point").select_option("high")
    expect(page.locator(".outcome")).to_contain_text("No pneumonia detected")
    expect(page.locator(".point")).to_contain_text(
        "Suspected at 99.0% or more; sensitivity 30.0%, specificity 99.0%"
    )
    assert page.locator(".bars").inner_text() == before
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Export CSV").click()
    (row,) = csv.DictReader(io.StringIO(Path(waiting.value.path()).read_text("utf-8")))
    assert (row["decision"], row["operating_point"]) == ("no pneumonia", "high")


def test_heat_map_window_and_zoom_change_the_image(open_page: Any) -> None:
    page = open_page()
    give(page, upload("one.jpeg", drawn(1)))
    heat = page.get_by_role("button", name="Heat map")
    expect(heat).to_be_enabled()
    tinted = canvas_image(page)
    assert np.ptp(tinted, axis=2).max() > 40, "the heat map shows no colour"

    set_slider(page, "Opacity", 100)
    expect(page.locator("#opacity-value")).to_have_text("100%")
    assert np.ptp(canvas_image(page), axis=2).sum() > np.ptp(tinted, axis=2).sum()

    page.keyboard.press("h")
    expect(heat).to_have_attribute("aria-pressed", "false")
    plain = canvas_image(page)
    # The image itself is grey, and the dark area around it nearly so.
    assert np.ptp(plain, axis=2).max() <= 16
    assert plain.std() > 20

    box = page.locator("#canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down(button="right")
    page.mouse.move(x - 200, y, steps=4)
    page.mouse.up(button="right")
    expect(page.locator("#width-value")).to_have_text("50%")
    page.mouse.wheel(0, -500)
    expect(page.locator("#zoom-value")).not_to_have_text("fit")
    page.keyboard.press("0")
    expect(page.locator("#zoom-value")).to_have_text("fit")
    expect(page.locator("#width-value")).to_have_text("100%")
    page.keyboard.press("+")
    expect(page.locator("#zoom-value")).to_have_text("1.3×")


def test_a_dicom_is_shown_with_its_header(open_page: Any, site: str, shared_data: Path) -> None:
    file = upload("chest.dcm", (shared_data / "dicom/CR-MONO1-10-chest.dcm").read_bytes())
    (prediction,) = predictions_of(site, file)
    page = open_page()
    give(page, file)
    facts = page.locator(".facts")
    expect(facts).to_contain_text("DICOM, CR, 10 bits")
    expect(facts).to_contain_text(f"{prediction['facts']['view']} (frontal)")
    assert canvas_image(page).std() > 20
    expect(page.locator(".thumbnail canvas")).to_have_count(1)


def test_a_broken_file_is_reported_and_does_not_stop_the_others(open_page: Any) -> None:
    page = open_page()
    hostile = "<img src=x onerror=alert(1)>.jpeg"
    give(page, upload(hostile, drawn(1)), upload("broken.jpeg", drawn(2)[:900]))
    expect(page.locator(".result .file-name")).to_have_text(hostile)
    expect(page.locator("#counts")).to_contain_text("1 not predicted")
    page.locator("#rows").get_by_role("button", name="broken.jpeg").click()
    expect(page.locator(".outcome")).to_have_text(
        "■Unreadable: file truncated. Copy it again from its source"
    )
    expect(page.locator(".detail")).not_to_be_empty()
    expect(page.locator("#nothing")).to_have_text("There is no image to show.")
    expect(page.get_by_role("button", name="Heat map")).to_be_disabled()


def test_a_photograph_is_not_evaluated(open_page: Any, shared_data: Path) -> None:
    try:
        shipped = load_bundle(None)
    except BundleError as error:
        pytest.skip(f"only a trained bundle rejects photographs: {error}")
    photographs = sorted((shared_data / "not-chest").glob("fruit-*.jpg"))[:2]
    with serving(shipped.path) as address:
        page = open_page(address=address)
        give(page, *(upload(path.name, path.read_bytes()) for path in photographs))
        expect(page.locator("#rows tr[data-tone=rejected]")).to_have_count(2)
        expect(page.locator(".outcome")).to_contain_text(
            "Rejected: not a chest X-ray. Give a frontal chest X-ray"
        )
        expect(page.locator(".detail")).to_contain_text("give a frontal chest X-ray")
        expect(page.locator(".bars")).to_have_count(0)


def test_forty_files_make_a_worklist(open_page: Any, site: str) -> None:
    forty = [upload(f"patient{index}.jpeg", drawn(index)) for index in range(2, 41)]
    forty.append(upload("=1+1.jpeg", drawn(0)))
    expected = {one["path"]: one for one in predictions_of(site, *forty)}
    page = open_page()
    give(page, *forty)
    names = page.locator("#rows button")
    by_suspicion = [expected[name]["p_target"] for name in names.all_inner_texts()]
    assert by_suspicion == sorted(by_suspicion, reverse=True)
    assert len(set(by_suspicion)) > 10
    expect(names.first).to_have_attribute("aria-current", "true")
    heading = page.get_by_role("columnheader", name="Pneumonia")
    expect(heading).to_have_attribute("aria-sort", "descending")

    heading = page.get_by_role("columnheader", name="Image")
    heading.get_by_role("button").click()
    expect(heading).to_have_attribute("aria-sort", "ascending")
    assert names.all_inner_texts()[:3] == ["=1+1.jpeg", "patient2.jpeg", "patient3.jpeg"]
    heading.get_by_role("button").click()
    expect(heading).to_have_attribute("aria-sort", "descending")
    assert names.all_inner_texts()[:2] == ["patient40.jpeg", "patient39.jpeg"]

    with page.expect_download() as waiting:
        page.get_by_role("button", name="Export CSV").click()
    text = Path(waiting.value.path()).read_text("utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert tuple(rows[0]) == columns(("normal", "bacterial", "viral"), "pneumonia")
    assert [row["path"] for row in rows][::39] == ["patient40.jpeg", "'=1+1.jpeg"]
    for row in rows:
        truth = expected[row["path"].lstrip("'")]
        assert float(row["p_pneumonia"]) == pytest.approx(truth["p_target"], abs=1e-6)
        for name, value in truth["probabilities"].items():
            assert float(row[f"p_{name}"]) == pytest.approx(value, abs=1e-6)
        assert row["decision"] == truth["decision"]
        assert row["population"] == "any"
        assert row["prediction_set"] == ";".join(truth["prediction_set"])


def test_a_report_is_printed_and_saved_whole(open_page: Any, tmp_path: Path) -> None:
    page = open_page()
    give(page, *(upload(f"{seed}.jpeg", drawn(seed)) for seed in range(3)), upload("bad.dcm", b"nothing"))
    page.evaluate("() => { window.print = () => { document.body.dataset.printed = 'yes'; }; }")
    page.get_by_role("button", name="Print report").click()
    expect(page.locator("body")).to_have_attribute("data-printed", "yes")
    page.emulate_media(media="print")
    expect(page.locator("#report .sheet")).to_have_count(5)  # the overview and four images
    expect(page.locator("#report article").first).to_be_visible()
    expect(page.locator("header.top")).to_be_hidden()
    assert len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4"))) == 5
    page.emulate_media(media="screen")

    page.context.set_offline(True)  # the images are in the page, and the server may have ended
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Save report").click()
    saved = tmp_path / "report.html"
    waiting.value.save_as(saved)
    text = saved.read_text("utf-8")
    assert "break-after: page" in text, "it has the style of a report"
    assert set(re.findall(r'(?:src|href)="([a-z]+:|/|\w)', text)) == {"data:"}
    assert text.count("Not a medical device") == 5
    assert text.count("Evidence for pneumonia") == 2 * 3  # caption and description


def test_the_worklist_is_worked_by_keys(open_page: Any) -> None:
    page = open_page()
    give(page, *(upload(f"{seed}.jpeg", drawn(seed)) for seed in range(5)))
    current = page.locator("#rows button[aria-current=true]")
    names = page.locator("#rows button").all_inner_texts()
    expect(current).to_have_text(names[0])
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    expect(current).to_have_text(names[1])
    expect(page.locator(".result .file-name")).to_have_text(names[1])
    current.focus()
    page.keyboard.press("ArrowDown")
    expect(current).to_have_text(names[2])
    expect(current).to_be_focused()
    page.keyboard.press("End")
    expect(current).to_have_text(names[-1])
    page.keyboard.press("Enter")
    expect(page.locator("#frame")).to_be_focused()
    page.get_by_role("button", name="Keyboard help").click()
    page.get_by_label("Single keys are on").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("k")
    expect(current).to_have_text(names[-1])


def test_clearing_leaves_nothing(open_page: Any) -> None:
    page = open_page()
    page.evaluate(KEEP_PAINTED)
    give(page, *(upload(f"{seed}.jpeg", drawn(seed)) for seed in range(2)))
    page.get_by_role("button", name="Theme").click()
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="Keep").click()
    expect(page.locator("#rows tr")).to_have_count(2)
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("dialog").get_by_role("button", name="Clear").click()
    expect(page.locator("#rows tr")).to_have_count(0)
    expect(page.get_by_role("heading", name="Drop chest X-rays here")).to_be_visible()
    assert ".jpeg" not in page.content()
    expect(page.locator("#result-body, #details-body")).to_have_text(["", ""])
    expect(page.locator("#canvas")).to_have_attribute("aria-label", "X-ray")
    assert page.evaluate("() => window.painted.width * window.painted.height") == 0
    kept = "() => [Object.keys(localStorage), Object.keys(sessionStorage), document.cookie]"
    assert page.evaluate(kept) == [["pneumoscope-theme"], [], ""]
    give(page, upload("next.jpeg", drawn(2)))
    expect(page.locator(".result .file-name")).to_have_text("next.jpeg")
    assert canvas_image(page).std() > 20


def test_dropped_and_pasted_images_are_read(open_page: Any) -> None:
    page = open_page()
    for index, (event, field) in enumerate((("drop", "dataTransfer"), ("paste", "clipboardData")), start=1):
        page.evaluate(
            """([bytes, event, field]) => {
                const transfer = new DataTransfer();
                transfer.items.add(new File([new Uint8Array(bytes)], "image.jpeg", { type: "image/jpeg" }));
                const type = event === "drop" ? DragEvent : ClipboardEvent;
                document.dispatchEvent(new type(event, { [field]: transfer, cancelable: true }));
            }""",
            [list(drawn(index)), event, field],
        )
        expect(page.locator("#rows tr")).to_have_count(index)
    expect(page.locator("#rows tr:not([data-tone=reading])")).to_have_count(index)
    expect(page.locator("#rows button", has_text="pasted")).to_have_count(1)


def test_images_of_a_folder_keep_their_subfolders(open_page: Any, tmp_path: Path) -> None:
    """A DICOM CD has the same file names for every patient."""
    long = "patient3/study of 12 March 2024/series 1/IM0001.jpeg"
    names = [f"CD/{rest}" for rest in ("patient1/IM0001.jpeg", "patient2/IM0001.jpeg", long)]
    for seed, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(drawn(seed))
    page = open_page()
    data = {"items": [], "files": [str(tmp_path / "CD")], "dragOperationsMask": 1}
    session = page.context.new_cdp_session(page)
    for event in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": event, "x": 300, "y": 300, "data": data})
    rows = page.locator("#rows button")
    expect(page.locator("#rows tr:not([data-tone=reading])")).to_have_count(3)
    assert sorted(row.get_attribute("title") for row in rows.all()) == names
    assert set(names[:2]) < set(rows.all_inner_texts())
    shortened = rows.filter(has_text="CD/patie…rch 2024/series 1/IM0001.jpeg")
    expect(shortened).to_have_attribute("title", names[2])
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Export CSV").click()
    table = csv.DictReader(io.StringIO(Path(waiting.value.path()).read_text("utf-8")))
    assert sorted(row["path"] for row in table) == names
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Save report").click()
    report = Path(waiting.value.path()).read_text("utf-8")
    assert all(f"<h1>{name}</h1>" in report for name in names)

    # Some browsers let a folder be chosen in the file dialog.
    page.locator("#picker").evaluate("picker => { picker.webkitdirectory = true; }")
    page.locator("#picker").set_input_files(tmp_path / "CD")
    expect(page.locator("#rows tr:not([data-tone=reading])")).to_have_count(6)
    assert sorted(row.get_attribute("title") for row in rows.all()) == sorted(names * 2)


def test_a_busy_server_is_tried_again_and_an_error_is_shown(open_page: Any) -> None:
    page = open_page()
    seen = []

    def busy(route: Any) -> None:
        seen.append(route.request.url)
        if len(seen) == 1:
            route.fulfill(
                status=429, headers={"Retry-After": "0"}, json={"title": "queue full", "status": 429}
            )
        elif len(seen) == 2:
            route.fulfill(status=413, json={"title": "too large", "detail": "more than 1 MB", "status": 413})
        else:
            route.continue_()

    page.route("**/v1/predictions*", busy)
    page.locator("#picker").set_input_files([upload("one.jpeg", drawn(1))])
    expect(page.locator(".outcome")).to_contain_text("Not sent")
    expect(page.locator(".detail")).to_have_text("more than 1 MB")
    expect(page.locator("#frame")).to_have_attribute("aria-busy", "false")
    expect(page.locator("#announcements")).to_contain_text("one.jpeg: Not sent")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".bars")).to_be_visible()
    expect(page.locator("#announcements")).to_contain_text("one.jpeg: Pneumonia suspected")
    assert len(seen) == 3


def test_a_token_is_requested_once_and_kept_in_memory(browser: Any, site: str) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        tokens = []

        def guarded(route: Any) -> None:
            tokens.append(route.request.headers.get("authorization"))
            if tokens[-1] == "Bearer open-sesame":
                route.continue_()
            else:
                route.fulfill(status=401, json={"title": "token", "status": 401})

        page.route("**/v1/**", guarded)
        page.goto(site)
        # A word processor makes quotes, and a chat adds an invisible space, that no header can carry.
        for attempt in ("wrong", "\u201copen-sesame\u201d", "open\u200b-sesame", "open-sesame"):
            page.get_by_role("textbox", name="Access token").fill(attempt)
            page.get_by_role("button", name="Use it").click()
            expect(page.locator("#token-rejected")).to_be_visible(visible=attempt != "open-sesame")
            expect(page.locator("#token")).to_have_value("")
        give(page, upload("one.jpeg", drawn(1)))
        expect(page.locator(".bars")).to_be_visible()
        assert tokens == [None, "Bearer wrong", "Bearer open-sesame", "Bearer open-sesame"]
        assert page.evaluate("() => localStorage.length") == 0

"""Helpers of the browser tests: a server process, files to upload, and what the page shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from pneumoscope.domain import Estimate, OperatingPoint

__all__ = [
    "DESK",
    "PATIENCE",
    "PHONE",
    "POINTS",
    "WIDE",
    "canvas_image",
    "drawn",
    "give",
    "percent",
    "predictions_of",
    "serious",
    "serving",
    "set_slider",
    "upload",
    "watched_pages",
]

PATIENCE = 120  # seconds; the machine may be busy with other things
DESK, PHONE = {"width": 1440, "height": 900}, {"width": 360, "height": 740}
WIDE = {"width": 1920, "height": 1080}  # the worklist has room for columns of classes
POINTS = (
    OperatingPoint(
        "low", 0.05, sensitivity=Estimate(0.99, 0.97, 0.995), specificity=Estimate(0.4, 0.35, 0.45)
    ),
    OperatingPoint("high", 0.99, sensitivity=Estimate(0.3), specificity=Estimate(0.99)),
)


@contextmanager
def serving(bundle: Path) -> Iterator[str]:
    """Run the server in its own process and yield its address."""
    command = [sys.executable, "-m", "pneumoscope", "serve", "--port", "0", "--workers", "1"]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--bundle", str(bundle)], stderr=subprocess.PIPE, text=True, env=quiet
    )
    assert process.stderr is not None
    drain: threading.Thread | None = None
    try:
        output = ""
        for line in process.stderr:
            output += line
            if found := re.search(r"http://[\d.]+:\d+", line):
                # A full pipe would stop the server.
                drain = threading.Thread(target=process.stderr.read)
                drain.start()
                yield found[0]
                break
        else:
            pytest.fail(f"the server did not start: {output}")
    finally:
        process.terminate()
        process.wait(PATIENCE)
        if drain is not None:
            drain.join(PATIENCE)
        process.stderr.close()


@contextmanager
def watched_pages(browser: Any, site: str) -> Iterator[Callable[..., Any]]:
    """Give a function that opens the page; at the end no page had an error or called another server."""
    contexts, trouble = [], []

    def _open(*, address: str = site, viewport: dict[str, int] = DESK, theme: str = "light") -> Any:
        context = browser.new_context(viewport=viewport, color_scheme=theme)
        context.set_default_timeout(PATIENCE * 1000)
        contexts.append(context)
        page = context.new_page()

        def check(request: Any) -> None:
            if not request.url.startswith((address, "data:", f"blob:{address}")):
                trouble.append(f"call to {request.url}")

        page.on("request", check)
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("console", lambda message: message.type == "error" and trouble.append(message.text))
        page.goto(address)
        return page

    expect.set_options(timeout=PATIENCE * 1000)
    try:
        yield _open
    finally:
        for context in contexts:
            context.close()
    # The browser logs responses such as 429; the tests that provoke them look at the page.
    assert [line for line in trouble if "Failed to load resource" not in line] == []


def drawn(seed: int, *, height: int = 300, width: int = 360) -> bytes:
    """Return a JPEG with two dark fields, different for each seed."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width), 190, np.float32)
    for centre in (0.3, 0.7):
        axes = (int(width * rng.uniform(0.1, 0.17)), int(height * rng.uniform(0.25, 0.38)))
        cv2.ellipse(image, (int(width * centre), height // 2), axes, 0, 0, 360, rng.uniform(30, 110), -1)
    image += rng.normal(0, rng.uniform(4, 25), image.shape)
    _, data = cv2.imencode(".jpg", np.clip(image, 0, 255).astype(np.uint8))
    return data.tobytes()


def upload(name: str, data: bytes) -> dict[str, Any]:
    media_type = "image/jpeg" if name.endswith((".jpeg", ".jpg")) else "application/octet-stream"
    return {"name": name, "mimeType": media_type, "buffer": data}


def give(page: Any, *files: dict[str, Any]) -> None:
    """Pick files and wait until all have results."""
    page.locator("#picker").set_input_files(list(files))
    # Not that no row waits: with the first result the rows are made anew, and for a moment there are none.
    expect(page.locator("#rows tr:not([data-tone=reading])")).to_have_count(len(files))


def predictions_of(site: str, *files: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the predictions of the REST interface for the files."""
    form = [("files", (one["name"], one["buffer"], one["mimeType"])) for one in files]
    response = httpx.post(f"{site}/v1/predictions", files=form, timeout=PATIENCE)
    assert response.status_code == 200
    return response.json()["predictions"]


def change_responses(page: Any, url: Any, change: Callable[[Any], None]) -> None:
    """Let the page get changed JSON from the server."""

    def changed(route: Any) -> None:
        response = route.fetch()
        body = response.json()
        change(body)
        route.fulfill(response=response, json=body)

    page.route(url, changed)


def percent(value: float) -> str:
    if value < 0.001:
        return "<0.1%"
    return ">99.9%" if value > 0.999 else f"{value:.1%}"


def canvas_image(page: Any) -> np.ndarray:
    expect(page.locator("#frame")).to_have_attribute("aria-busy", "false")
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    shot = np.frombuffer(page.locator("#canvas").screenshot(), np.uint8)
    return cv2.imdecode(shot, cv2.IMREAD_COLOR).astype(int)


def serious(page: Any) -> list[str]:
    """Return the accessibility problems that axe rates serious or critical."""
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {one['nodes'][0]['html']}" for one in found if one["impact"] in ("serious", "critical")
    ]


def set_slider(page: Any, name: str, value: int) -> None:
    page.get_by_role("slider", name=name).fill(str(value))

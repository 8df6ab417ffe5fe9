"""Make the images of the documentation from the running program: ``python benchmarks/screenshots.py``.

Writes ``docs/images/``: the first image of the README, as ``pneumoscope predict --heatmaps`` draws it, and
screenshots of the page, of the report of `predict` and of the threshold explorer, in light and dark, on a
desktop and on a phone. Needs the extra ``dev`` and Chromium.

The explorer shows an evaluation: give the folder that ``pneumoscope evaluate`` wrote (``--evaluated``), or it
is left out.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Locator, Page, expect, sync_playwright

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY / "tests"))

from page_driver import PATIENCE, serving  # noqa: E402  the tests start the server as a user does
from pneumoscope.data.samples import read_samples, samples_folder  # noqa: E402
from pneumoscope.model.bundle import load_bundle  # noqa: E402

IMAGES = REPOSITORY / "docs" / "images"
MOST_BYTES = 150_000
COLOURS = 256  # of a screenshot's palette
QUALITIES = (88, 82, 76, 70)  # of a JPEG, the first that is small enough
FIRST = "bacterial.jpeg"  # the sample on the README's first image
DESKTOP = {"viewport": {"width": 1400, "height": 820}}
PHONE = {
    "viewport": {"width": 390, "height": 780},
    "device_scale_factor": 2,
    "has_touch": True,
    "is_mobile": True,
}
THEMES = ("light", "dark")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write all images and print their sizes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=IMAGES)
    parser.add_argument("--evaluated", type=Path, help="folder with the report.html of an evaluation")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    expect.set_options(timeout=PATIENCE * 1000)
    with sync_playwright() as driver, tempfile.TemporaryDirectory() as work:
        browser = driver.chromium.launch(
            executable_path=options.chromium, args=("--no-sandbox", "--disable-gpu")
        )
        predicted(options.out, Path(work))
        report = Path(work) / "report.html"
        for theme in THEMES:
            with opened(browser, report.as_uri(), theme, DESKTOP) as page:
                save(page, options.out / f"report-desktop-{theme}.jpg")
        with serving(load_bundle(None).path) as site:
            for theme in THEMES:
                with opened(browser, site, theme, DESKTOP) as page:
                    visit(page, options.out, theme)
            with opened(browser, site, "light", PHONE) as page:
                samples(page)
                save(page, options.out / "page-phone-light.jpg")
        if options.evaluated is not None:
            address = (options.evaluated / "report.html").resolve().as_uri()
            for theme in THEMES:
                with opened(browser, address, theme, DESKTOP) as page:
                    explored(page)
                    save(page.locator("#explorer"), options.out / f"explorer-desktop-{theme}.png")
        browser.close()
    return 0


def explored(page: Page) -> None:
    """Choose the largest population, if there are several, and its threshold of `balanced`."""
    populations = page.locator("#explorer-group option", has_text="population: ")
    if populations.count():
        page.locator("#explorer-group").select_option(populations.first.get_attribute("value"))
    page.locator("#explorer-points").get_by_role("button", name="balanced").click()


def predicted(out: Path, work: Path) -> None:
    """Run `predict` on the samples: the first image of the README, and a report to open."""
    images = [str(samples_folder() / sample.path) for sample in read_samples()]
    command = [sys.executable, "-m", "pneumoscope", "predict", *images]
    options = [
        "--heatmaps",
        str(work),
        "--report",
        str(work / "report.html"),
        "--out",
        str(work / "rows.csv"),
    ]
    subprocess.run(
        [*command, *options], stderr=subprocess.DEVNULL, check=False
    )  # rejected images: exit code 3
    drawn = Image.open(work / f"{Path(FIRST).stem}.heatmap.png")
    target = out / "prediction.jpg"
    save_jpeg(drawn.convert("RGB"), target)
    check(target)


@contextmanager
def opened(browser: Any, address: str, theme: str, device: dict[str, Any]) -> Iterator[Page]:
    """Open an address in a fresh context."""
    context = browser.new_context(color_scheme=theme, reduced_motion="reduce", **device)
    context.set_default_timeout(PATIENCE * 1000)
    page = context.new_page()
    page.goto(address)
    yield page
    context.close()


def visit(page: Page, out: Path, theme: str) -> None:
    """Take the page before an image is given, with the samples, and at a rejected image."""
    save(page, out / f"welcome-desktop-{theme}.png")
    samples(page)
    save(page, out / f"page-desktop-{theme}.jpg")
    choose(page, "shoulder.jpeg")
    save(page, out / f"rejected-desktop-{theme}.jpg")


def samples(page: Page) -> None:
    """Load the samples and choose the first one that is shown."""
    page.get_by_role("button", name="Try a sample").click()
    expect(page.locator("#rows tr")).to_have_count(len(read_samples()))
    expect(page.locator("#rows tr[data-tone=reading]")).to_have_count(0)
    choose(page, FIRST)


def choose(page: Page, name: str) -> None:
    """Choose an image of the worklist and wait until it is drawn."""
    page.locator("#rows").get_by_role("button", name=name).evaluate("one => one.click()")
    expect(page.locator(".result .file-name")).to_have_text(name)
    expect(page.locator("#frame")).to_have_attribute("aria-busy", "false")
    page.evaluate("() => { document.activeElement.blur(); window.scrollTo(0, 0); }")
    page.mouse.move(0, 0)
    page.wait_for_timeout(300)  # the canvas is painted with the next frame


def save(shown: Page | Locator, target: Path) -> None:
    """Write a screenshot: as PNG with a palette, or as JPEG where an X-ray has too many shades for one."""
    image = Image.open(io.BytesIO(shown.screenshot())).convert("RGB")
    if target.suffix == ".jpg":
        save_jpeg(image, target)
    else:
        image.quantize(COLOURS, dither=Image.Dither.NONE).save(target, optimize=True)
    check(target)


def save_jpeg(image: Image.Image, target: Path) -> None:
    """Write a JPEG with sharp colours, in the best quality that is small enough."""
    for quality in QUALITIES:
        image.save(target, quality=quality, optimize=True, progressive=True, subsampling=0)
        if target.stat().st_size <= MOST_BYTES:
            return


def check(path: Path) -> None:
    """Print an image's size; too large an image stops the script."""
    size = path.stat().st_size
    print(f"{path.name:28s} {size / 1000:6.1f} kB")
    if size > MOST_BYTES:
        sys.exit(f"{path}: more than {MOST_BYTES / 1000:.0f} kB; use a smaller window or fewer colours")


if __name__ == "__main__":
    sys.exit(main())

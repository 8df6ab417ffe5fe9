"""Run ``walkthrough.ipynb`` and write ``docs/tutorial/walkthrough.md``.

The notebook is the only source and holds no outputs; the page has the same text and code with the outputs of
a run. ``make tutorial`` calls this; the tests call its parts.
"""

from __future__ import annotations

import base64
import io
import os
import re
import sys
import tempfile
from pathlib import Path

import nbclient
import nbformat
from nbformat import NotebookNode
from PIL import Image

REPOSITORY = Path(__file__).parents[1]
NOTEBOOK = Path(__file__).with_name("walkthrough.ipynb")
PAGE = REPOSITORY / "docs" / "tutorial" / "walkthrough.md"

IMAGE_WIDTH, IMAGE_COLOURS = 720, 128  # small enough for the repository
# A cell that begins a shell line with "!" does not stop at its error.
FAILED = re.compile(r"^(error: .*|Usage: .*|.*command not found.*|Traceback .*)$", re.MULTILINE)
TERMINAL_CODE = re.compile(r"(\n|\r|\x1b\[[0-9;?]*[A-Za-z])")


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Run every cell as in a new clone, with the commands of this environment; fill in the outputs.

    Parameters
    ----------
    notebook : NotebookNode
        Its cells get their outputs.
    folder : Path
        Empty; it gets the data of the repository, and the files that the notebook writes are in its
        subfolder ``notebooks``.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If a cell raises.
    RuntimeError
        If a command line in a cell fails.
    """
    place = folder / "notebooks"
    place.mkdir()
    (folder / "data").symlink_to(REPOSITORY / "data")
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": commands, "COLUMNS": "110"}
    client = nbclient.NotebookClient(
        notebook, timeout=3600, kernel_name="python3", resources={"metadata": {"path": str(place)}}
    )
    try:
        client.execute(env=environment)
    finally:  # a failed command is often the cause of a later error
        _check_commands(notebook)


def _check_commands(notebook: NotebookNode) -> None:
    for cell in notebook.cells:
        shown = screen("".join(_text(output) for output in cell.get("outputs", ()) if "text" in output))
        if FAILED.search(shown):
            raise RuntimeError(f"{cell.source}\n{shown}")


def render(notebook: NotebookNode) -> tuple[str, dict[str, bytes]]:
    """Return the page in Markdown and its images, file name to PNG."""
    blocks: list[str] = []
    images: dict[str, bytes] = {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            blocks.append(cell.source.replace("](../docs/", "](../"))
        else:
            text, drawn = render_code(cell)
            blocks.append(text)
            images |= drawn
    return "\n\n".join(blocks) + "\n", images


def render_code(cell: NotebookNode) -> tuple[str, dict[str, bytes]]:
    """Return a code cell with its outputs in Markdown, and its images, named by the cell's id."""
    lines = cell.source.splitlines()
    if all(line.startswith("!") for line in lines):
        code = "\n".join(f"$ {line[1:]}" for line in lines)
        blocks = [f"```console\n{code}\n```"]
    else:
        blocks = [f"```python\n{cell.source}\n```"]
    images: dict[str, bytes] = {}
    printed = ""
    for output in cell.outputs:
        if encoded := _image(output):
            name = f"walkthrough-{cell.id}.png"
            images[name] = _small_png(base64.b64decode(encoded), _width(output))
            blocks.append(f"![{cell.id.replace('-', ' ')}]({name})")
        else:
            printed += _text(output)
    if printed.strip():
        blocks.insert(1, f"```text\n{screen(printed)}\n```")
    return "\n\n".join(blocks), images


def _image(output: NotebookNode) -> str | None:
    data = output.get("data", {})
    return data.get("image/png") or data.get("image/jpeg")


def _width(output: NotebookNode) -> int:
    """Return the width in pixels that the cell requests, at most that of the page."""
    requested = [shown["width"] for shown in output.metadata.values() if "width" in shown]
    return min([IMAGE_WIDTH, *requested])


def _text(output: NotebookNode) -> str:
    if output.output_type == "stream":
        return str(output.text)
    return f"{output.get('data', {}).get('text/plain', '')}\n"


def screen(text: str) -> str:
    """Return the final screen of a terminal: progress bars once, nothing that was erased."""
    lines, row, column = [""], 0, 0
    for part in TERMINAL_CODE.split(text):
        if part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r":
            column = 0
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part == "\x1b[1A":
            row = max(0, row - 1)
        elif not TERMINAL_CODE.fullmatch(part):
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
            column += len(part)
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def _small_png(data: bytes, width: int) -> bytes:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if image.width > width:
        height = round(image.height * width / image.width)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.quantize(IMAGE_COLOURS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


def main() -> None:
    """Write the page and its images; remove those that it no longer shows."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        execute(notebook, Path(folder))
    page, images = render(notebook)
    for old in PAGE.parent.glob("walkthrough-*.png"):
        old.unlink()
    for name, data in images.items():
        (PAGE.parent / name).write_bytes(data)
    PAGE.write_text(page, encoding="utf-8")
    size = sum(len(data) for data in images.values()) // 1024
    print(f"{PAGE}: {len(images)} images, {size} KiB")


if __name__ == "__main__":
    main()

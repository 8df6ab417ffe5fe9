"""`pneumoscope data`: fetch, draw, audit, split and summarise data sets."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pneumoscope.cli.common import SOME_LEFT_OUT

# What only an annotation needs is not imported: the overview of all commands must not wait for it.
if TYPE_CHECKING:
    from pneumoscope.data.audit import AuditReport
    from pneumoscope.data.manifest import Manifest

__all__ = ["app"]

app = typer.Typer(help="Fetch, draw, audit, split and summarise data sets.", no_args_is_help=True)

_PLAIN_INTERVAL = 5.0  # seconds between lines of progress where there is no terminal


class SetName(StrEnum):
    """Public data sets."""

    KERMANY = "kermany"
    PNEUMONIAMNIST = "pneumoniamnist"


class Method(StrEnum):
    """Ways to split."""

    PATIENT = "patient"
    RANDOM = "random"


DataPath = Annotated[
    Path,
    typer.Argument(metavar="PATH", help="Folder of images, manifest (.csv, .parquet) or MedMNIST .npz."),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        metavar="CSV", help="Table of labels for a folder: columns path, label [, patient_id, split]."
    ),
]
Patients = Annotated[
    Path | None, typer.Option(metavar="CSV", help="Table of patients for a folder: columns path, patient_id.")
]
NoNear = Annotated[
    bool, typer.Option("--no-near-duplicates", help="Compare bytes only; skip perceptual hashing.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def fetch(
    name: Annotated[SetName, typer.Argument(help="Which public set.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to put it in.")],
    size: Annotated[
        int | None, typer.Option(help="pneumoniamnist: side in pixels, 28, 64, 128 or 224; 28 if not given.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="FILE", help="The archive, got in another way; nothing is downloaded."
        ),
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(metavar="URL", help="A mirror: address of the folder with the archive.")
    ] = None,
) -> None:
    """Download a public set, check and unpack it; call again to go on after a broken download."""
    from pneumoscope.data import sources

    with _progress() as report:
        manifest = sources.fetch(name.value, out, size=size, file=file, base_url=base_url, progress=report)
    typer.echo(f"{len(manifest)} images in {out}; manifest in {out / 'manifest.csv'}")
    source = sources.describe(name.value, size)
    typer.echo(f"licence {source.licence}; please cite {source.reference}")
    if source.checksum is None and file is None:
        typer.echo(
            f"no checksum is published for it; kept the one of this download in {source.filename}.sha256"
        )


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to draw into.")],
    n: Annotated[
        int, typer.Option(min=3, help="Number of images, shared evenly by the three classes.")
    ] = 300,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same set.")] = 0,
    size: Annotated[int, typer.Option(min=32, max=4096, help="Width and height in pixels.")] = 256,
) -> None:
    """Draw a synthetic labelled set: normal, bacterial and viral; nobody's X-rays."""
    from pneumoscope.data.phantom import write_phantoms

    manifest = write_phantoms(out, n=n, seed=seed, size=size)
    patients = len({record.patient_id for record in manifest})
    typer.echo(f"{len(manifest)} phantoms of {patients} patients in {out}")


@app.command()
def audit(
    path: DataPath,
    labels: Labels = None,
    patients: Patients = None,
    no_near_duplicates: NoNear = False,
    as_json: AsJson = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the findings as JSON.")] = None,
) -> None:
    """Look for unreadable files, copies, and patients on both sides of a split.

    Exit code 0: fit for use; 3: something leaks from one side of the split to another, or files are
    unreadable; 4: nothing could be read.
    """
    from pneumoscope.data.audit import audit as run_audit
    from pneumoscope.data.duplicates import NEAR_DISTANCE

    manifest = _load(path, labels, patients)
    with _progress() as report:
        found = run_audit(
            manifest,
            near_distance=None if no_near_duplicates else NEAR_DISTANCE,
            progress=lambda done, total: report("examine", done, total),
        )
    if out is not None:
        _write_text(out, found.to_json() + "\n")
    if as_json:
        typer.echo(found.to_json())
    else:
        _show_audit(found)
    raise typer.Exit(SOME_LEFT_OUT if found.leaks or found.unreadable else 0)


@app.command()
def split(
    path: DataPath,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Manifest to write: .csv or .parquet.")],
    method: Annotated[
        Method,
        typer.Option(help="patient: whole patients and all copies of a image; random: image by image."),
    ] = Method.PATIENT,
    fractions: Annotated[str, typer.Option(help="Shares of train, val and test.")] = "0.7,0.15,0.15",
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same split.")] = 0,
    labels: Labels = None,
    patients: Patients = None,
    no_near_duplicates: NoNear = False,
) -> None:
    """Divide a data set into train, val and test, stratified by label, and write the manifest.

    By patient, unreadable files are left out (exit code 3) and said.
    """
    from pneumoscope.data.audit import examine
    from pneumoscope.data.duplicates import NEAR_DISTANCE
    from pneumoscope.data.split import split as divide

    shares = _fractions(fractions)
    manifest = _load(path, labels, patients)
    if method is Method.RANDOM:
        result = divide(manifest, fractions=shares, seed=seed, method="random")
        left_out = 0
    else:
        near = None if no_near_duplicates else NEAR_DISTANCE
        with _progress() as report:
            found = examine(
                manifest, near_distance=near, progress=lambda done, total: report("examine", done, total)
            )
        for problem in found.unreadable:
            typer.echo(f"left out: {problem.path}: {problem.detail}", err=True)
        found = found.readable()
        left_out = len(manifest) - len(found.manifest)
        result = divide(found.manifest, fractions=shares, seed=seed, duplicates=found.groups)
    result.write(out)
    _show_balance(result)
    typer.echo(f"manifest in {out}", err=True)
    raise typer.Exit(SOME_LEFT_OUT if left_out else 0)


@app.command()
def summary(
    path: DataPath, labels: Labels = None, patients: Patients = None, as_json: AsJson = False
) -> None:
    """Show how many images and patients there are of each label, split and source."""
    manifest = _load(path, labels, patients)
    if as_json:
        typer.echo(json.dumps(_facts(manifest), indent=2, ensure_ascii=False))
        return
    _show_balance(manifest)
    sources = _facts(manifest)["sources"]
    _table("Sources", ("source", "images"), [(name, str(number)) for name, number in sources.items()])
    typer.echo(f"fingerprint {manifest.fingerprint()}")


def _load(path: Path, labels: Path | None, patients: Path | None) -> Manifest:
    from pneumoscope.data.folder import load, scan

    if labels is None and patients is None:
        return load(path)
    if path.is_file():
        raise typer.BadParameter(f"{path} has labels and patients of its own; they go with a folder")
    return scan(path, labels_csv=labels, patients_csv=patients)


def _fractions(text: str) -> tuple[float, float, float]:
    try:
        train, val, test = (float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r}: give three shares, as in 0.7,0.15,0.15", param_hint="--fractions"
        ) from error
    return train, val, test


def _write_text(path: Path, text: str) -> None:
    from pneumoscope.errors import DataError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error


def _facts(manifest: Manifest) -> dict[str, Any]:
    from collections import Counter

    by_split: dict[str, Counter[str]] = {}
    people: dict[str, set[str]] = {}
    for record in manifest:
        side = record.split or "unsplit"
        by_split.setdefault(side, Counter())[record.label] += 1
        people.setdefault(side, set()).add(record.patient_id)
    return {
        "root": str(manifest.root),
        "images": len(manifest),
        "patients": len({record.patient_id for record in manifest}),
        "labels": dict(sorted(Counter(record.label for record in manifest).items())),
        "splits": {
            side: {
                "images": count.total(),
                "patients": len(people[side]),
                "labels": dict(sorted(count.items())),
            }
            for side, count in sorted(by_split.items(), key=lambda pair: _side_order(pair[0]))
        },
        "sources": dict(sorted(Counter(record.source for record in manifest).items())),
        "fingerprint": manifest.fingerprint(),
    }


def _side_order(side: str) -> int:
    return ("train", "val", "test", "unsplit").index(side)


def _show_balance(manifest: Manifest) -> None:
    facts = _facts(manifest)
    labels = list(facts["labels"])
    rows = [
        (side, str(part["patients"]), str(part["images"]), *(str(part["labels"].get(x, 0)) for x in labels))
        for side, part in facts["splits"].items()
    ]
    if len(rows) > 1:
        totals = (str(facts["labels"][label]) for label in labels)
        rows.append(("all", str(facts["patients"]), str(facts["images"]), *totals))
    _table("Balance", ("split", "patients", "images", *labels), rows)


def _show_audit(found: AuditReport) -> None:
    labels = sorted({label for counts in found.balance.values() for label in counts})
    rows = [
        (side, str(found.patients_by_split[side]), *(str(counts.get(label, 0)) for label in labels))
        for side, counts in found.balance.items()
    ]
    _table("Balance", ("split", "patients", *labels), rows)
    _table("Findings", ("looked for", "found", "for example"), found.rows())
    size = found.sizes
    typer.echo(
        f"{found.images} images of {found.patients} patients, width {size['width_min']} to "
        f"{size['width_max']}, height {size['height_min']} to {size['height_max']}"
    )
    for problem in found.unreadable:
        typer.echo(f"unreadable: {problem.path}: {problem.detail}", err=True)
    if found.leaks:
        typer.echo("LEAK: a test on this split would flatter; make a new one with `pneumoscope data split`")
    elif set(found.balance) == {"unsplit"}:
        typer.echo("no split yet: `pneumoscope data split` makes one")
    else:
        typer.echo("no leak found")


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table for people, tab-separated lines for programs."""
    if not sys.stdout.isatty():
        for row in (header, *rows):
            typer.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in header:
        table.add_column(
            escape(name), justify="right" if rows and _is_number_column(header, rows, name) else "left"
        )
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    Console().print(table)


def _is_number_column(header: Sequence[str], rows: Sequence[Sequence[str]], name: str) -> bool:
    at = header.index(name)
    return all(row[at].isdigit() for row in rows)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """Show how far work is: a bar on a terminal, else a line every few seconds; on standard error."""
    if not sys.stderr.isatty():
        yield _plain_progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total, count="")
            bar.update(tasks[what], completed=done, total=total, count=_count(what, done, total))

        yield report


def _plain_progress() -> Callable[[str, int, int | None], None]:
    last = time.monotonic()

    def report(what: str, done: int, total: int | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PLAIN_INTERVAL:
            last = now
            typer.echo(f"{what}: {_count(what, done, total)}", err=True)

    return report


def _count(what: str, done: int, total: int | None) -> str:
    if what == "download":
        return f"{done / 1e6:.1f}" + (f" of {total / 1e6:.1f} MB" if total else " MB")
    return f"{done} of {total}"

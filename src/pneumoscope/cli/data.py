"""`pneumoscope data`: download, generate, audit, split, join and summarise data sets."""

from __future__ import annotations

import json
import re
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pneumoscope.cli.common import (
    SOME_LEFT_OUT,
    check_no_effect,
    check_output,
    note,
    one_opencv_thread,
    print_json,
)
from pneumoscope.cli.data_output import left_out_row, set_facts, show_audit, show_balance, show_summary
from pneumoscope.cli.parameters import AsJson
from pneumoscope.cli.progress import show_progress
from pneumoscope.errors import DataError

# What only an annotation needs is not imported: the overview of all commands must not wait for it.
if TYPE_CHECKING:
    from pneumoscope.data.manifest import Manifest
    from pneumoscope.domain import DatasetDescription
    from pneumoscope.parallel import Progress

__all__ = ["app"]

app = typer.Typer(help="Download, draw, audit, split, join and summarise data sets.", no_args_is_help=True)


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


@app.command()
def fetch(
    name: Annotated[SetName, typer.Argument(help="Name of the data set.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    size: Annotated[
        int | None, typer.Option(help="pneumoniamnist: width in pixels, 28, 64, 128 or 224; 28 if not given.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="The archive, if you have it; nothing is downloaded."),
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(metavar="URL", help="A mirror: address of the folder with the archive.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Download a public data set, check and unpack it; run again to continue a broken download."""
    from pneumoscope.data import sources

    if file is not None:
        check_no_effect({"--base-url": base_url}, "with --from, which downloads nothing")
    if base_url is not None and not base_url.startswith(("http://", "https://")):
        raise typer.BadParameter(
            f"{base_url} is no http address; use --from for a file", param_hint="--base-url"
        )
    with show_progress(keep=False) as progress:
        manifest = sources.fetch(name.value, out, size=size, file=file, base_url=base_url, progress=progress)
    if as_json:
        print_json({"manifest": str(out / "manifest.csv"), **set_facts(manifest)})
        return
    typer.echo(f"{len(manifest)} images in {out}; manifest in {out / 'manifest.csv'}")
    source = sources.describe(name.value, size)
    typer.echo(f"licence {source.description.licence}; please cite {source.description.citation}")
    if source.checksum is None and file is None:
        typer.echo(
            f"no checksum is published for it; the one of this download is in {source.filename}.sha256"
        )


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    n: Annotated[int, typer.Option(min=3, help="Number of images, equally many of each class.")] = 300,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same images.")] = 0,
    size: Annotated[int, typer.Option(min=32, max=4096, help="Width and height in pixels.")] = 256,
    as_json: AsJson = False,
) -> None:
    """Generate a synthetic labelled data set: normal, bacterial and viral; no real X-rays."""
    from pneumoscope.data.phantom import write_phantoms

    with show_progress(keep=False) as progress:
        manifest = write_phantoms(out, n=n, seed=seed, size=size, progress=progress)
    if as_json:
        print_json(set_facts(manifest))
        return
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
    """Look for unreadable files, duplicates, and patients in more than one part of a split.

    Exit code 0: no problem; 3: patients or duplicates are in several parts of the split, or files are
    unreadable; 4: no image was found, or none could be read.
    """
    from pneumoscope.data.audit import audit as run_audit
    from pneumoscope.data.duplicates import NEAR_DISTANCE

    one_opencv_thread()
    if out is not None and out.suffix.lower() != ".json":
        raise typer.BadParameter(f"{out}: end the name with .json", param_hint="--out")
    check_output(out, _files_read(path, labels, patients))
    near = None if no_near_duplicates else NEAR_DISTANCE
    with show_progress(keep=False) as progress:
        manifest = _load(path, labels, patients, progress)
        found = run_audit(manifest, near_distance=near, progress=progress)
    if out is not None:
        _write_text(out, found.to_json() + "\n")
    if as_json:
        print_json(json.loads(found.to_json()))
    else:
        show_audit(found, said={one.path for one in manifest.left_out})
    raise typer.Exit(SOME_LEFT_OUT if found.leaks or found.unreadable else 0)


@app.command()
def split(
    path: DataPath,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Manifest to write: .csv or .parquet.")],
    method: Annotated[
        Method,
        typer.Option(help="patient: patients and duplicates stay together; random: image by image."),
    ] = Method.PATIENT,
    fractions: Annotated[str, typer.Option(help="Shares of train, val and test.")] = "0.7,0.15,0.15",
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same split.")] = 0,
    labels: Labels = None,
    patients: Patients = None,
    no_near_duplicates: NoNear = False,
    as_json: AsJson = False,
) -> None:
    """Divide a data set into train, val and test, stratified by label, and write the manifest.

    With the method patient, unreadable files are listed and left out (exit code 3).
    """
    from pneumoscope.data.audit import inspect
    from pneumoscope.data.duplicates import NEAR_DISTANCE
    from pneumoscope.data.split import split as divide
    from pneumoscope.data.tables import check_suffix

    if method is Method.RANDOM:
        check_no_effect({"--no-near-duplicates": no_near_duplicates}, "with --method random")
    one_opencv_thread()
    check_output(out, _files_read(path, labels, patients))
    check_suffix(out)
    shares = _fractions(fractions)
    with show_progress(keep=False) as progress:
        manifest = _load(path, labels, patients, progress)
        left_out = [left_out_row(one.path, one.reason.value, one.detail) for one in manifest.left_out]
        if method is Method.RANDOM:
            result = divide(manifest, fractions=shares, seed=seed, method="random")
        else:
            near = None if no_near_duplicates else NEAR_DISTANCE
            found = inspect(manifest, near_distance=near, progress=progress)
            for problem in found.unreadable:
                progress.message(f"left out: {problem.path}: {problem.detail}")
                left_out.append(left_out_row(problem.path, problem.reason, problem.detail))
            found = found.readable()
            result = divide(found.manifest, fractions=shares, seed=seed, duplicates=found.groups)
    result.write(out)
    if as_json:
        print_json({"manifest": str(out), **set_facts(result), "left_out": left_out})
    else:
        show_balance(result)
        note(f"manifest in {out}")
    raise typer.Exit(SOME_LEFT_OUT if left_out else 0)


@app.command("join")
def join_sets(
    sets: Annotated[
        list[str],
        typer.Argument(
            help="Manifests with a split; NAME=FILE puts NAME- before its patient identifiers.",
            metavar="[NAME=]FILE...",
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Manifest to write, .csv or .parquet, in its own folder.")
    ],
    no_near_duplicates: NoNear = False,
    as_json: AsJson = False,
) -> None:
    """Join data sets that are split already, so that no patient and no copy of an image is on two sides.

    Exit code 3: some files of a folder could not be read and are left out.
    """
    from pneumoscope.data.description import (
        DESCRIPTION_FILE,
        is_joined,
        read_description,
        write_description,
    )
    from pneumoscope.data.folder import load
    from pneumoscope.data.join import join, joint_description
    from pneumoscope.data.tables import check_suffix
    from pneumoscope.domain import DatasetDescription

    one_opencv_thread()
    given = [_named(text) for text in sets]
    files = [Path(path) for _, path in given]
    check_output(out, list(files))
    check_suffix(out)
    prefixes = {number: f"{name}-" for number, (name, _) in enumerate(given) if name}
    with show_progress(keep=False) as progress:
        loaded = [load(path, progress=progress) for path in files]
        _check_description(out.parent, joint_description(loaded))
        duplicates = partial(_copies, near=not no_near_duplicates, progress=progress)
        joined = join(loaded, prefixes, duplicates=duplicates, progress=progress)
    joined.write(out)
    described = joined.description
    if described is None or described == DatasetDescription():
        if is_joined(out.parent):  # of other sets
            (out.parent / DESCRIPTION_FILE).unlink()
    elif described != read_description(out.parent):
        write_description(out.parent, described, joined=True)
    if as_json:
        print_json({"manifest": str(out), **set_facts(joined)})
    else:
        show_balance(joined)
        note(f"manifest in {out}")
    raise typer.Exit(SOME_LEFT_OUT if joined.left_out else 0)


@app.command()
def summary(
    path: DataPath, labels: Labels = None, patients: Patients = None, as_json: AsJson = False
) -> None:
    """Show the description of a data set, and its images and patients by label, split and source.

    Exit code 0: all files and folders were read; 3: some could not be read.
    """
    with show_progress(keep=False) as progress:
        manifest = _load(path, labels, patients, progress)
    facts = set_facts(manifest)
    if as_json:
        print_json(facts)
    else:
        show_summary(manifest, facts)
    raise typer.Exit(SOME_LEFT_OUT if manifest.left_out else 0)


def _named(text: str) -> tuple[str, str]:
    """Divide NAME=FILE, where the name may be left out; a path may hold a "=" itself."""
    found = None if Path(text).exists() else re.fullmatch(r"([^=/\\]+)=(.+)", text, re.DOTALL)
    return (found[1], found[2]) if found else ("", text)


def _copies(manifest: Manifest, *, near: bool, progress: Progress) -> list[list[int]]:
    """Return the groups of copies of one image, identical files or also near duplicates."""
    from pneumoscope.data.audit import inspect
    from pneumoscope.data.duplicates import NEAR_DISTANCE

    found = inspect(manifest, near_distance=NEAR_DISTANCE if near else None, progress=progress)
    for problem in found.unreadable:
        progress.message(f"not compared: {problem.path}: {problem.detail}")
    return [*found.exact, *found.near]


def _check_description(folder: Path, joined: DatasetDescription) -> None:
    """Stop where a folder to write into has a description that no join has written."""
    from pneumoscope.data.description import DESCRIPTION_FILE, is_joined, read_description

    if read_description(folder) not in (None, joined) and not is_joined(folder):
        raise typer.BadParameter(
            f"{folder / DESCRIPTION_FILE} describes another data set and would be overwritten; "
            "name a file in a folder of its own",
            param_hint="--out",
        )


def _files_read(path: Path, labels: Path | None, patients: Path | None) -> list[Path | None]:
    """Return the tables that a data set is read from."""
    # A MedMNIST file is unpacked into a folder of its name, with the manifest that it comes with.
    unpacked = path.with_suffix("") / "manifest.csv" if path.suffix.lower() == ".npz" else None
    return [path, labels, patients, path / "labels.csv", path / "sizes.csv", unpacked]


def _load(path: Path, labels: Path | None, patients: Path | None, progress: Progress) -> Manifest:
    from pneumoscope.data.folder import load, scan

    if labels is None and patients is None:
        return load(path, progress=progress)
    if path.is_file():
        raise typer.BadParameter(f"{path} states labels and patients itself; give them for a folder only")
    return scan(path, labels_csv=labels, patients_csv=patients, progress=progress)


def _fractions(text: str) -> tuple[float, float, float]:
    from pneumoscope.data.split import check_fractions

    try:
        train, val, test = (float(part) for part in text.split(","))
        check_fractions((train, val, test))
    except (ValueError, DataError) as error:
        raise typer.BadParameter(
            f"{text!r}: give three shares that sum to 1, as in 0.7,0.15,0.15", param_hint="--fractions"
        ) from error
    return train, val, test


def _write_text(path: Path, text: str) -> None:
    from pneumoscope.data.drafts import replacing, unwritable
    from pneumoscope.report.rows import plain_text

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error
    with replacing(path) as file:
        file.write(plain_text(text))

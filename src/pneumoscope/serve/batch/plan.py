"""What a run is, fixed at its start: ``manifest.parquet``, ``bundle/`` and ``run.json`` in OUTPUT.

The manifest is cut into parts, one row group each. A second start must find the same inputs, the same bundle
and the same options; then the parts that are there already are part of its result.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet
from pydantic import BaseModel, ConfigDict, ValidationError

from pneumoscope import __version__
from pneumoscope.errors import DataError
from pneumoscope.model.bundle import Bundle, load_bundle
from pneumoscope.parallel import Progress
from pneumoscope.report.rows import plain_text
from pneumoscope.serve.batch.listing import Entry, list_entries
from pneumoscope.serve.batch.store import FolderStore, Store, is_uri, split_uri

__all__ = ["BUNDLE", "MANIFEST", "PART_SIZE", "PLAN", "Plan", "fetch_bundle", "prepare", "read_entries"]

PLAN, MANIFEST, BUNDLE = "run.json", "manifest.parquet", "bundle"
FORMAT = 1
PART_SIZE = 500  # images
LISTED_EVERY = 1000  # entries between two reports of progress

SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("path", pa.string()),
        ("name_bytes", pa.binary()),  # where the path is no UTF-8
        ("age", pa.float64()),
        ("view", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


class Plan(BaseModel):
    """Content of ``run.json``.

    Parameters
    ----------
    entries, parts : int
        Images in the manifest, and the parts that they are cut into.
    part_size : int
        Images of every part but the last.
    source : str
        INPUT as an absolute path, since the entries of a relative one do not tell where they are, or as a URI
        without options. Empty in a run that an older version began.
    inputs : str
        Hash of all entries in order.
    stamps : str
        Hash of their sizes and times of change; empty in a run that an older version began.
    input_options : str
        Options of the store that the images are in.
    bundle, bundle_sha256 : str
        Identity of the bundle, and hash of its ``bundle.json``, which lists the hashes of its other files.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    version: str = __version__
    entries: int
    parts: int
    part_size: int
    source: str = ""
    inputs: str
    stamps: str = ""
    input_options: str = ""
    bundle: str
    bundle_sha256: str
    operating_point: str | None = None
    population: str | None = None
    force: bool = False

    @property
    def identity(self) -> str:
        """Hash of what determines the rows; every part carries it."""
        # Source and stamps are compared at every start, and parts of older versions do not have them.
        fixed = self.model_dump(mode="json", exclude={"version", "input_options", "source", "stamps"})
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]

    def size(self, part: int) -> int:
        """Return the number of images of a part."""
        return min(self.part_size, self.entries - part * self.part_size)


def prepare(
    store: Store,
    source: str,
    bundle: Bundle,
    *,
    operating_point: str | None = None,
    population: str | None = None,
    force: bool = False,
    part_size: int | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Write what a run is to its folder, or check that it is the run that was begun there.

    Parameters
    ----------
    store : Store
        OUTPUT.
    source : str
        INPUT.
    bundle : Bundle
        Copied to OUTPUT, where the workers read it.
    operating_point, population, force
        As for `pneumoscope.Predictor`.
    part_size : int, optional
        Images of a part; 500, or that of the begun run, if not given.
    progress : Progress, optional
        Counts the entries.

    Raises
    ------
    DataError
        If there is no image, or OUTPUT holds a run on other inputs, with another bundle or other options.
    """
    begun = read_plan(store)
    if begun is None and store.names("parts"):
        raise DataError(f"{store.location}: holds parts of results but no {PLAN}; name another folder")
    size = part_size or (begun.part_size if begun else PART_SIZE)
    shown = progress or Progress()
    shown.step("listing images")
    listed = _counted(list_entries(source, shown), shown)
    with tempfile.TemporaryDirectory(prefix="pneumoscope-") as folder:
        table = Path(folder) / MANIFEST
        entries, inputs, stamps = _write_manifest(table if begun is None else None, listed, size)
        if not entries:
            raise DataError(f"{source}: there is no image; name a folder, a manifest or a URI with X-rays")
        plan = Plan(
            entries=entries,
            parts=-(-entries // size),
            part_size=size,
            source=_absolute(source),
            inputs=inputs,
            stamps=stamps,
            input_options=split_uri(source).options if is_uri(source) else "",
            bundle=bundle.identity,
            bundle_sha256=_bundle_sha256(bundle),
            operating_point=operating_point,
            population=population,
            force=force,
        )
        if begun is not None:
            _check_same(store, begun, plan)
        else:
            store.put_file(MANIFEST, table)
            for name in ("bundle.json", *bundle.manifest.files):
                store.put(f"{BUNDLE}/{name}", (bundle.path / name).read_bytes())
        if begun != plan:  # last: with it the run has begun; another endpoint of the store may be given later
            store.put(PLAN, plan.model_dump_json(indent=2).encode())
    return plan


def read_plan(store: Store) -> Plan | None:
    """Return the run that a folder holds; None where it holds none.

    Raises
    ------
    DataError
        If its ``run.json`` cannot be read.
    """
    data = store.read(PLAN)
    if data is None:
        return None
    try:
        plan = Plan.model_validate_json(data)
    except ValidationError as error:
        raise DataError(f"{store.location}/{PLAN}: not a run of this version; name another folder") from error
    if plan.format != FORMAT:
        raise DataError(f"{store.location}/{PLAN}: format {plan.format} is not known; name another folder")
    return plan


def read_entries(manifest: parquet.ParquetFile, part: int) -> list[Entry]:
    """Return the entries of one part, reading no other."""
    entries = []
    for row in manifest.read_row_group(part).to_pylist():
        raw = row.pop("name_bytes")
        del row["id"]
        entries.append(Entry(**row | ({} if raw is None else {"path": os.fsdecode(raw)})))
    return entries


def fetch_bundle(store: Store, folder: Path) -> Bundle:
    """Return the bundle of a run, verified; one in an object store is copied into `folder` first."""
    if isinstance(store, FolderStore):
        return load_bundle(Path(store.location) / BUNDLE)
    for name in store.names(BUNDLE):
        (folder / name).write_bytes(store.read(f"{BUNDLE}/{name}") or b"")
    return load_bundle(folder)


def _check_same(store: Store, begun: Plan, plan: Plan) -> None:
    """Raise where a run was begun with something else, which is named."""
    what, fix = None, "name another folder for the results"
    if begun.source and begun.source != plan.source:
        what = f"another INPUT ({begun.source}, now {plan.source})"
    elif begun.inputs != plan.inputs and begun.stamps == plan.stamps:
        what, fix = (
            "other paths, ages or views in INPUT, or INPUT written another way",
            f"give it as before, or {fix}",
        )
    elif begun.inputs != plan.inputs:
        what = f"other inputs ({begun.entries:,} images, now {plan.entries:,})"
    elif begun.stamps and begun.stamps != plan.stamps:
        what = "images that were replaced or changed since (by size or time of change)"
    elif begun.bundle_sha256 != plan.bundle_sha256:
        what = f"another bundle ({begun.bundle}, now {plan.bundle})"
    else:
        for name in ("operating_point", "population", "force", "part_size"):
            if getattr(begun, name) != getattr(plan, name):
                option = f"--{name.replace('_', '-')}"
                what = f"another {option} ({getattr(begun, name)}, now {getattr(plan, name)})"
    if what:
        raise DataError(f"{store.location}: holds a run with {what}; {fix}")


def _write_manifest(path: Path | None, entries: Iterable[Entry], part_size: int) -> tuple[int, str, str]:
    """Write the entries, a row group for each part, or only count them and hash them and their stamps."""
    digest, stamps, count, stream = hashlib.sha256(), hashlib.sha256(), 0, iter(entries)
    writer = None if path is None else parquet.ParquetWriter(path, SCHEMA, compression="zstd")
    try:
        while part := list(islice(stream, part_size)):
            for entry in part:
                # The stamp, its last field, is hashed apart, so that runs of older versions still compare.
                digest.update(json.dumps(entry[:-1]).encode() + b"\n")
                stamps.update(f"{entry.stamp}\n".encode())
            if writer is not None:
                rows = [{"id": count + at, **_row(entry)} for at, entry in enumerate(part)]
                writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), row_group_size=part_size)
            count += len(part)
    finally:
        if writer is not None:
            writer.close()
    return count, digest.hexdigest(), stamps.hexdigest()


def _absolute(source: str) -> str:
    """Return INPUT as it is named from anywhere; links stay, which may differ between machines."""
    if is_uri(source):
        return split_uri(source).text
    return plain_text(os.path.normpath(Path(source).absolute()))


def _counted(entries: Iterator[Entry], progress: Progress) -> Iterator[Entry]:
    for done, entry in enumerate(entries, start=1):
        yield entry
        if done % LISTED_EVERY == 0:
            progress.update(done)


def _row(entry: Entry) -> dict[str, Any]:
    """Return an entry as Arrow can hold it: a name whose bytes are no text is kept as bytes too."""
    shown = plain_text(entry.path)
    raw = None if shown == entry.path else os.fsencode(entry.path)
    return {**entry._asdict(), "path": shown, "name_bytes": raw}


def _bundle_sha256(bundle: Bundle) -> str:
    return hashlib.sha256((bundle.path / "bundle.json").read_bytes()).hexdigest()

"""The result of one part of the manifest: a Parquet file that is there as a whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from pneumoscope.domain import Prediction
from pneumoscope.errors import DataError
from pneumoscope.model.manifest import BundleManifest
from pneumoscope.report.rows import to_row
from pneumoscope.report.writers import arrow_schema
from pneumoscope.serve.batch.plan import Plan
from pneumoscope.serve.batch.store import Store, first_line

__all__ = ["PARTS", "commit", "fault_of", "is_committed", "part_name", "result_schema"]

PARTS = "parts"
"""Folder of the results in OUTPUT."""

RUN_KEY, PART_KEY = b"pneumoscope.run", b"pneumoscope.part"


def part_name(number: int) -> str:
    """Return what the file of a part is called, relative to OUTPUT."""
    return f"{PARTS}/part-{number:07}.parquet"


def result_schema(manifest: BundleManifest) -> pa.Schema:
    """Return the schema of the results: ``id``, the columns of a prediction, ``sha256``.

    ``id`` is the image's place in the manifest, from 0; ``sha256`` is of the file's content, null where it
    could not be read.
    """
    columns = arrow_schema(manifest.classes, manifest.target.name)
    return pa.schema([("id", pa.int64()), *columns, ("sha256", pa.string())])


def commit(
    store: Store,
    plan: Plan,
    part: int,
    predictions: Sequence[tuple[Prediction, str | None]],
    manifest: BundleManifest,
) -> None:
    """Write the results of a part under its name, checked before and after.

    Parameters
    ----------
    store : Store
        OUTPUT.
    plan : Plan
        Of the run.
    part : int
        Number of the part.
    predictions : sequence of (Prediction, str or None)
        One for each entry, in order, with the hash of the file.
    manifest : BundleManifest
        For the columns.

    Raises
    ------
    DataError
        If the part is not what was written.
    """
    first = part * plan.part_size
    rows = [
        {"id": first + at, **to_row(one, manifest.classes, manifest.target.name), "sha256": digest}
        for at, (one, digest) in enumerate(predictions)
    ]
    facts = {RUN_KEY: plan.identity.encode(), PART_KEY: str(part).encode()}
    table = pa.Table.from_pylist(rows, schema=result_schema(manifest).with_metadata(facts))
    buffer = pa.BufferOutputStream()
    parquet.write_table(table, buffer, compression="zstd")
    content = buffer.getvalue()
    if fault := _fault(pa.BufferReader(content), plan, part):
        raise DataError(f"{store.location}/{part_name(part)}: {fault}; start the command again")
    store.put(part_name(part), content.to_pybytes())
    # An object can be there although its writer failed, and a writer can succeed although nothing is there.
    if fault := fault_of(store, plan, part):
        store.remove(part_name(part))
        raise DataError(f"{store.location}/{part_name(part)}: {fault}; start the command again")


def fault_of(store: Store, plan: Plan, part: int) -> str | None:
    """Return what is wrong with the file of a part; None where it is complete."""
    try:
        with store.open(part_name(part)) as file:
            return _fault(file, plan, part)
    except DataError as error:
        return str(error)


def is_committed(store: Store, plan: Plan, part: int) -> bool:
    """Return whether a part is done."""
    return fault_of(store, plan, part) is None


def _fault(file: Any, plan: Plan, part: int) -> str | None:
    """Read the footer of a part."""
    try:
        with parquet.ParquetFile(file) as found:
            facts, rows = found.schema_arrow.metadata or {}, found.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        return f"not a complete Parquet file ({first_line(error)})"
    if (facts.get(RUN_KEY), facts.get(PART_KEY)) != (plan.identity.encode(), str(part).encode()):
        return "belongs to another run"
    if rows != plan.size(part):
        return f"has {rows} rows, not {plan.size(part)}"
    return None

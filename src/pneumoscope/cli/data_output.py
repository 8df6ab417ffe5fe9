"""What `pneumoscope data` prints: facts of a data set for programs, tables for people."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence, Set
from typing import TYPE_CHECKING, Any

import typer

from pneumoscope.cli.common import note
from pneumoscope.errors import counted

if TYPE_CHECKING:
    from pneumoscope.data.audit import AuditReport
    from pneumoscope.data.manifest import Manifest
    from pneumoscope.domain import DatasetDescription

__all__ = ["left_out_row", "set_facts", "show_audit", "show_balance", "show_summary"]


def show_summary(manifest: Manifest, facts: dict[str, Any]) -> None:
    """Print the description of a data set and its counts, for people."""
    rows = list(_description(manifest.description).items())
    if rows:
        _table("Description", ("stated", "value"), rows)
    else:
        typer.echo("no description: dataset.yaml beside the images may state population, labels and licence")
    show_balance(manifest)
    sources = facts["sources"]
    _table("Sources", ("source", "images"), [(name, str(number)) for name, number in sources.items()])
    typer.echo(f"fingerprint {facts['fingerprint']}")


def _description(description: DatasetDescription | None) -> dict[str, str]:
    """Return what a data set states about itself, without what it does not state."""
    if description is None:
        return {}
    population = description.population
    facts = {
        "name": description.name,
        "population": population.describe() if population.is_stated else "",
        "hospital": description.hospital,
        "labels": description.label_source,
        "licence": description.licence,
        "citation": description.citation,
    }
    return {name: value for name, value in facts.items() if value}


def set_facts(manifest: Manifest) -> dict[str, Any]:
    """Return what every command prints of a data set in JSON."""
    by_split: dict[str, Counter[str]] = {}
    patients: dict[str, set[str]] = {}
    for record in manifest:
        part = record.split or "unsplit"
        by_split.setdefault(part, Counter())[record.label] += 1
        patients.setdefault(part, set()).add(record.patient_id)
    return {
        "root": str(manifest.root),
        "description": _description(manifest.description),
        "images": len(manifest),
        "patients": len({record.patient_id for record in manifest}),
        "labels": dict(sorted(Counter(record.label for record in manifest).items())),
        "splits": {
            side: {
                "images": count.total(),
                "patients": len(patients[side]),
                "labels": dict(sorted(count.items())),
            }
            for side, count in sorted(by_split.items(), key=lambda pair: _side_order(pair[0]))
        },
        "sources": dict(sorted(Counter(record.source for record in manifest).items())),
        "left_out": [left_out_row(one.path, one.reason.value, one.detail) for one in manifest.left_out],
        "fingerprint": manifest.fingerprint(),
    }


def left_out_row(path: str, reason: str, detail: str) -> dict[str, str]:
    """Return a file that is left out, as it stands in JSON."""
    return {"path": path, "reason": reason, "detail": detail}


def _side_order(side: str) -> int:
    return ("train", "val", "test", "unsplit").index(side)


def show_balance(manifest: Manifest) -> None:
    """Print patients and images of each split by label."""
    facts = set_facts(manifest)
    labels = list(facts["labels"])
    rows = [
        (side, str(part["patients"]), str(part["images"]), *(str(part["labels"].get(x, 0)) for x in labels))
        for side, part in facts["splits"].items()
    ]
    if len(rows) > 1:
        totals = (str(facts["labels"][label]) for label in labels)
        rows.append(("all", str(facts["patients"]), str(facts["images"]), *totals))
    _table("Balance", ("split", "patients", "images", *labels), rows)


def show_audit(found: AuditReport, *, said: Set[str]) -> None:
    """Print the findings of an audit; unreadable files that were said already are not said again."""
    labels = sorted({label for counts in found.balance.values() for label in counts})
    rows = [
        (side, str(found.patients_by_split[side]), *(str(counts.get(label, 0)) for label in labels))
        for side, counts in found.balance.items()
    ]
    _table("Balance", ("split", "patients", *labels), rows)
    _table("Findings", ("looked for", "found", "for example"), found.rows())
    size = found.sizes
    typer.echo(
        f"{counted(found.images, 'image')} of {counted(found.patients, 'patient')}, "
        f"width {size['width_min']} to {size['width_max']}, "
        f"height {size['height_min']} to {size['height_max']}"
    )
    for problem in found.unreadable:
        if problem.path not in said:
            note(f"unreadable: {problem.path}: {problem.detail}")
    if found.leaks:
        typer.echo(
            "LEAK: test results on this split would be too good; make a new one: `pneumoscope data split`"
        )
    elif set(found.balance) == {"unsplit"}:
        typer.echo("no split yet: `pneumoscope data split` makes one")
    else:
        typer.echo("no leak found")


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table for patients, tab-separated lines for programs."""
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

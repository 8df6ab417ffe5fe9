"""`pneumoscope dicom`: the DICOM node, and what its operator does to it."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pneumoscope.cli.common import NOTHING_DONE, SOME_LEFT_OUT, print_json
from pneumoscope.errors import counted, require_extra

if TYPE_CHECKING:
    from pneumoscope.serve.dicom.config import NodeConfig
    from pneumoscope.serve.dicom.journal import Journal
    from pneumoscope.serve.dicom.monthly import MonthlyReport, Share
    from pneumoscope.serve.dicom.status import NodeStatus
    from pneumoscope.serve.dicom.store import Store

__all__ = ["app"]

app = typer.Typer(help="Run a DICOM node: receive, predict, send results.", no_args_is_help=True)

Config = Annotated[
    Path, typer.Option("--config", metavar="YAML", help="Configuration of the node, node.yaml.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

UNITS = {"h": "hours", "d": "days", "w": "weeks"}


@app.command()
def serve(config: Config) -> None:
    """Run the node until SIGTERM or Ctrl-C; what is in hand is finished first."""
    settings = _settings(config)
    from pneumoscope.serve.dicom.config import check_rules
    from pneumoscope.serve.dicom.logs import set_up_logs
    from pneumoscope.serve.dicom.node import run_node

    check_rules(settings, config)
    set_up_logs(settings.log_level)

    def announce(port: int, metrics: int | None) -> None:
        where = f"{settings.aet}@{settings.listen.host}:{port}"
        shown = "" if metrics is None else f"; metrics http://{settings.metrics.host}:{metrics}/metrics"
        typer.echo(f"{where}  (mode {settings.mode}{shown}; Ctrl-C stops)", err=True)

    run_node(settings, announce)


@app.command()
def status(config: Config, as_json: AsJson = False) -> None:
    """Show queue, deliveries, worklist, and what needs a person; exit code 3 if something does.

    It is 3 as well if the node does not run.
    """
    from pneumoscope.serve.dicom.status import read_status

    settings, journal, _ = _opened(config)
    names = [one.name for one in settings.destinations]
    found = read_status(journal, settings.priority.longest_wait_minutes * 60, names)
    if as_json:
        print_json(dataclasses.asdict(found))
    else:
        _show_status(found, settings.mode)
    if found.needs_attention or found.running is None:
        raise typer.Exit(SOME_LEFT_OUT)


@app.command()
def echo(config: Config, as_json: AsJson = False) -> None:
    """Ask every destination whether it responds; exit code 3 if one does not."""
    settings = _settings(config)
    from pneumoscope.serve.dicom.senders import open_sender

    reasons: dict[str, str | None] = {}
    for destination in settings.destinations:
        with open_sender(destination, settings.aet) as sender:
            reasons[destination.name] = why = sender.echo() or None
        if not as_json:
            typer.echo(f"{destination.name}: {why or 'responds'}")
    if as_json:
        print_json({name: {"responds": why is None, "reason": why} for name, why in reasons.items()})
    if any(reasons.values()):
        raise typer.Exit(SOME_LEFT_OUT)


@app.command()
def retry(
    config: Config,
    parked: Annotated[bool, typer.Option(help="Images that crashed or took too long.")] = False,
    failed: Annotated[bool, typer.Option(help="Results that could not be built.")] = False,
    dead: Annotated[bool, typer.Option(help="Objects on the dead-letter list.")] = False,
    held: Annotated[bool, typer.Option(help="Objects that mode shadow did not send.")] = False,
    drop: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Give up what is for a destination that node.yaml has no more."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Let the node try again what it gave up, or give up what has no destination any more."""
    from pneumoscope.serve.dicom.maintenance import drop as give_up
    from pneumoscope.serve.dicom.maintenance import retry as again
    from pneumoscope.serve.dicom.running import read_running

    if not (parked or failed or dead or held or drop):
        raise typer.BadParameter(
            "name what to try again: --parked, --failed, --dead or --held; or --drop NAME"
        )
    settings, journal, _ = _opened(config)
    if drop in {one.name for one in settings.destinations}:
        raise typer.BadParameter(f"{drop} is a destination in {config}; remove it there and restart the node")
    running = read_running(journal)
    if held and (running.mode if running else settings.mode) == "shadow":
        raise typer.BadParameter(
            f"in mode shadow nothing is sent; set mode: live in {config} and start the node again first",
            param_hint="--held",
        )
    done = {} if drop is None else {"dropped": give_up(journal, drop)}
    if parked or failed or dead or held:
        done |= again(journal, parked=parked, failed=failed, dead=dead, held=held)
    _show_done(as_json, done, ", ".join(f"{count} {name}" for name, count in done.items()))


@app.command()
def purge(
    config: Config,
    older_than: Annotated[str, typer.Option(metavar="AGE", help="Such as 30d, 12h or 8w.")],
    as_json: AsJson = False,
) -> None:
    """Remove stored images and results of that age; the journal keeps what reports need."""
    from pneumoscope.serve.dicom.purging import purge as remove
    from pneumoscope.serve.dicom.purging import sweep

    age = _age(older_than)
    settings, journal, store = _opened(config)
    done, swept = remove(journal, store, age), sweep(journal, store)
    line = (
        f"{counted(done.images, 'image')} and {counted(done.objects, 'result object')} removed, "
        f"{done.bytes / 1e6:.1f} MB"
    )
    if swept.files:
        line += f"; and {counted(swept.files, 'file')} that nothing refers to, {swept.bytes / 1e6:.1f} MB"
    _show_done(as_json, dataclasses.asdict(done) | {"swept": dataclasses.asdict(swept)}, line)
    if swept.kept:
        typer.echo(
            f"error: {settings.folder}: {swept.kept} stored images are not in the journal; run "
            "'pneumoscope dicom rebuild'",
            err=True,
        )
        raise typer.Exit(SOME_LEFT_OUT)


@app.command()
def export(
    config: Config,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write.")],
    study: Annotated[str | None, typer.Option(metavar="UID", help="One study only.")] = None,
    images: Annotated[bool, typer.Option("--images", help="Copy the received images as well.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write tables of images and of result objects, images.csv and objects.csv, and copies of the objects.

    The copies are in results/, and with --images those of the received images in images/.
    """
    from pneumoscope.serve.dicom.maintenance import export as write

    _, journal, store = _opened(config)
    count = write(journal, store, out, study=study, images=images)
    table, objects = out / "images.csv", out / "objects.csv"
    facts = {"images": count, "table": str(table), "objects_table": str(objects)}
    _show_done(as_json, facts, f"{counted(count, 'image')} in {table}, their results in {objects}")
    if not count:
        raise typer.Exit(NOTHING_DONE)


@app.command()
def audit(
    config: Config,
    verify: Annotated[bool, typer.Option("--verify", help="Check the chain of hashes.")] = False,
    head: Annotated[
        str | None, typer.Option(metavar="HASH", help="A hash noted before, which the log must have.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the audit log as JSON lines, or verify it; exit code 4 if it was changed."""
    from pneumoscope.serve.dicom.audit import verify as check

    _, journal, _ = _opened(config)
    if verify or head:
        found = check(journal, head)
        entries = counted(found.entries, "entry", "entries")
        _show_done(as_json, dataclasses.asdict(found), f"{entries}, last hash {found.head}")
        if found.fault:
            typer.echo(f"error: the audit log is not intact: {found.fault}", err=True)
            raise typer.Exit(NOTHING_DONE)
        return
    for row in journal.rows("SELECT * FROM audit ORDER BY seq"):
        line = {"seq": row["seq"], "at": row["at"], "event": row["event"], **json.loads(row["detail"])}
        typer.echo(json.dumps(line | {"hash": row["hash"]}))


@app.command()
def retract(
    uid: Annotated[str, typer.Argument(metavar="UID", help="Of a study, an image, or a result object.")],
    config: Config,
    reason: Annotated[
        str, typer.Option(help="Why, without name or number of the patient: it is shown with the images.")
    ],
    again: Annotated[
        bool, typer.Option("--again", help="Process the images again, with new results.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Retract results that a radiologist rejects, wherever they were sent."""
    with require_extra("dicom", "retracting results"):
        from pneumoscope.serve.dicom.retracting import retract as take_back

    _, journal, store = _opened(config)
    count = take_back(journal, store, uid, reason, again=again)
    _show_done(as_json, {"retracted": count}, f"{counted(count, 'result')} retracted")


@app.command()
def rebuild(config: Config, as_json: AsJson = False) -> None:
    """Set a damaged journal aside and make a new one from the stored images; the node must not run."""
    settings = _settings(config)
    from pneumoscope.serve.dicom.maintenance import rebuild as make_anew
    from pneumoscope.serve.dicom.running import lock_folder
    from pneumoscope.serve.dicom.store import Store

    store = Store(settings.folder)
    with lock_folder(settings.folder):
        done = make_anew(settings.folder, store)
    old = f"; the old one is in {done.aside}" if done.aside else ""
    line = (
        f"{counted(done.images, 'image')} taken into a new journal, {counted(done.skipped, 'file')} "
        f"skipped{old}"
    )
    facts = {"images": done.images, "skipped": done.skipped}
    _show_done(as_json, facts | {"old_journal": str(done.aside) if done.aside else None}, line)


@app.command()
def report(
    config: Config,
    month: Annotated[str, typer.Option(metavar="YYYY-MM", help="Such as 2026-11.")],
    baseline: Annotated[
        str | None, typer.Option(metavar="YYYY-MM", help="Compare with this month, not with the bundle.")
    ] = None,
    verdicts: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV", help="Radiologists' verdicts: study_uid or sop_instance, verdict [, site]."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Report a month: volumes, rejections, positives by scanner and view, drift, verdicts."""
    from pneumoscope.model.bundle import load_bundle
    from pneumoscope.serve.dicom.monthly import monthly_report

    settings, journal, _ = _opened(config)
    made = monthly_report(journal, load_bundle(settings.bundle), month, baseline=baseline, verdicts=verdicts)
    if as_json:
        print_json(dataclasses.asdict(made))
    else:
        _show_report(made)


def _settings(path: Path) -> NodeConfig:
    with require_extra("dicom", "the DICOM node"):
        import highdicom  # noqa: F401
        import pynetdicom  # noqa: F401
    from pneumoscope.serve.dicom.config import load_config

    return load_config(path)


def _opened(path: Path) -> tuple[NodeConfig, Journal, Store]:
    settings = _settings(path)
    from pneumoscope.serve.dicom.journal import Journal
    from pneumoscope.serve.dicom.store import Store

    return settings, Journal(settings.folder), Store(settings.folder)


def _show_done(as_json: bool, facts: Mapping[str, object], line: str) -> None:
    """Print what a command did, for a program or for a person."""
    if as_json:
        print_json(facts)
    else:
        typer.echo(line)


def _age(text: str) -> datetime.timedelta:
    match = re.fullmatch(r"(\d{1,5})([hdw])", text.strip())
    if not match:
        raise typer.BadParameter(f"{text!r} is no age; give it as 30d, 12h or 8w", param_hint="--older-than")
    return datetime.timedelta(**{UNITS[match[2]]: int(match[1])})


def _show_status(found: NodeStatus, mode: str) -> None:
    def line(name: str, values: dict[str, int]) -> None:
        typer.echo(f"{name}: {', '.join(f'{count} {state}' for state, count in values.items()) or 'none'}")

    if found.running is None:
        typer.echo("node: not running")
    else:
        other = "" if mode == found.running.mode else f"; node.yaml has mode {mode}: restart the node"
        doing = "running" if found.running.ready else "starting"
        typer.echo(f"node: {doing} since {found.running.since} (mode {found.running.mode}{other})")
    line("images", found.instances)
    line("results", found.results)
    for destination, values in found.deliveries.items():
        line(f"to {destination}", values)
    for destination, count in found.removed.items():
        typer.echo(
            f"not in node.yaml any more: {destination}, {counted(count, 'object')} not sent; enter it again, "
            f"or give up what is for it by 'dicom retry --drop {destination}'"
        )
    for name, seconds in (
        ("oldest image in hand", found.oldest_seconds),
        ("last image received", found.last_received_seconds),
    ):
        if seconds is not None:
            typer.echo(f"{name}: {seconds:.0f} s ago")
    for title, rows in (
        ("worklist", found.worklist),
        ("parked", found.parked),
        ("conflicts", found.conflicts),
        ("unreportable", found.unreportable),
        ("results not built", found.failed),
        ("not delivered", found.dead),
        ("left out", found.left_out),
        ("split, reported image by image", found.split),
    ):
        if rows:
            typer.echo(f"{title}:")
            for row in rows:
                typer.echo("  " + "  ".join(str(value) for value in row.values()))


def _show_report(made: MonthlyReport) -> None:
    studies = counted(made.studies, "study", "studies")
    typer.echo(
        f"{made.month}: {counted(made.images, 'image')} received, {studies} reported in "
        f"{counted(made.results, 'result')}, bundle {made.bundle}"
    )
    for name, values in (
        ("senders", made.callers),
        ("states", made.states),
        ("predictions", made.statuses),
        ("reasons of rejection", made.reasons),
    ):
        typer.echo(f"{name}: {', '.join(f'{key} {count}' for key, count in values.items()) or 'none'}")
    if made.seconds:
        shown = ", ".join(f"{name} {value:g} s" for name, value in made.seconds.items())
        typer.echo(f"from the last image to the result: {shown}")
    for name, groups in made.positives.items():
        typer.echo(f"share of positives by {name}:")
        for group, share in groups.items():
            typer.echo(f"  {group}: {_share(share)}")
    typer.echo("drift (population stability index; below 0.1 stable, 0.25 or more changed):")
    for one in made.drift:
        index = f"{one.index:.3f}" if one.index is not None else "too few images"
        typer.echo(f"  {one.name}: {index} ({counted(one.images, 'image')}, against {one.against})")
    for site, measures in made.verdicts.items():
        shown = "; ".join(f"{name} {_share(share)}" for name, share in measures.items())
        typer.echo(f"against radiologists, {site}: {shown}")
    if made.other_bundles:
        typer.echo(
            f"not in shares, drift and verdicts: {counted(made.other_bundles, 'prediction')} of other bundles"
        )
    if made.unmatched:
        typer.echo(f"without a prediction in this month: {counted(made.unmatched, 'verdict')}")
    for warning in made.warnings:
        typer.echo(f"warning: {warning}", err=True)


def _share(share: Share) -> str:
    if share.value is None or share.interval is None:
        return "none"
    low, high = share.interval
    return f"{share.value:.3f} [{low:.3f}, {high:.3f}] ({share.count} of {share.total})"

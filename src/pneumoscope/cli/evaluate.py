"""`pneumoscope evaluate`: how well a bundle reads labelled images."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pneumoscope.cli.common import SOME_LEFT_OUT, make_folder

if TYPE_CHECKING:
    from pneumoscope.data.manifest import Manifest

_Masks = Annotated[Path | None, typer.Option(metavar="DIR", help="Lung masks: PNG under the images' names.")]
_Boxes = Annotated[
    Path | None,
    typer.Option(metavar="FILE.csv", help="Boxes: path,x,y,width,height, or RSNA's layout."),
]
_Curves = Annotated[
    int | None,
    typer.Option(min=0, help="Images for insertion and deletion curves; 100 if masks or boxes are given."),
]
_Robustness = Annotated[
    bool,
    typer.Option("--robustness", help="Evaluate every image under corruptions, handling and shortcuts too."),
]
_Images = Annotated[
    int | None,
    typer.Option(min=1, help="Most images for --robustness, by whole patients; all if not given."),
]
_Sign = Annotated[bool, typer.Option("--sign", help="Write the results and the model card into the bundle.")]
_Name = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Add the results to the bundle's card as those of another set."),
]


def evaluate(
    data: Annotated[Path, typer.Argument(help="Labelled folder, manifest or MedMNIST .npz.")],
    out: Annotated[Path, typer.Option(help="Folder for metrics.json, plots and report.html.")],
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle or run folder; the shipped one if not given.")
    ] = None,
    split: Annotated[
        Literal["train", "val", "test"] | None, typer.Option(help="Evaluate this split of the manifest only.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples for the intervals.")] = 1000,
    masks: _Masks = None,
    boxes: _Boxes = None,
    curves: _Curves = None,
    robustness: _Robustness = False,
    images: _Images = None,
    sign: _Sign = False,
    add_to_card: _Name = None,
    json_: Annotated[bool, typer.Option("--json", help="Print metrics.json.")] = False,
) -> None:
    """Evaluate a bundle on labelled images: figures with 95% intervals, plots, worst mistakes."""
    from pneumoscope.evaluation.bundles import evaluate_bundle, sign_bundle
    from pneumoscope.evaluation.elsewhere import add_elsewhere
    from pneumoscope.evaluation.localisation import CURVE_IMAGES, MapTruth
    from pneumoscope.evaluation.robustness import CorruptionPlan
    from pneumoscope.evaluation.speed import measure_speed
    from pneumoscope.model.bundle import load_bundle

    if sign and add_to_card is not None:
        raise typer.BadParameter("a set is the bundle's own or another one: give --sign or --add-to-card")
    if bundle is None and (sign or add_to_card is not None):
        raise typer.BadParameter("name the --bundle to write into; the shipped one stays as it is")
    if images is not None and not robustness:
        raise typer.BadParameter("--images goes with --robustness")
    manifest, evaluated_on = _images_of(data, split)
    make_folder(out)
    if curves is None:
        curves = CURVE_IMAGES if masks or boxes else 0
    evaluated, about = load_bundle(bundle), {"Data": evaluated_on}
    maps = MapTruth(masks, boxes, curves)
    with _progress(robustness) as on_image:
        plan = CorruptionPlan(images, progress=on_image) if robustness else None
        evaluation = evaluate_bundle(
            evaluated,
            manifest,
            out,
            evaluated_on=evaluated_on,
            about=about,
            n_boot=resamples,
            maps=maps,
            corruptions=plan,
        )
    if sign:
        paths = [manifest.resolve(record) for record in manifest.records]
        sign_bundle(evaluated, evaluation.metrics, evaluated_on, speed=measure_speed(evaluated, paths))
    if add_to_card is not None:
        add_elsewhere(evaluated, add_to_card, evaluation.metrics, evaluated_on)
    if json_:
        typer.echo((out / "metrics.json").read_text(encoding="utf-8"))
    else:
        _print(evaluation.metrics)
        typer.echo(f"report: {evaluation.report}")
    if evaluation.not_evaluated:
        typer.echo(f"{len(evaluation.not_evaluated)} images were not evaluated; see the report", err=True)
        raise typer.Exit(SOME_LEFT_OUT)


def _images_of(data: Path, split: str | None) -> tuple[Manifest, str]:
    """Load what is to be evaluated, and say what it is."""
    from pneumoscope.data.folder import load
    from pneumoscope.errors import DataError

    manifest = load(data)
    if split is not None:
        manifest = manifest.subset(split)
    if not len(manifest):
        raise DataError(f"{data}: no images to evaluate" + (f" in split {split!r}" if split else ""))
    which = f"{split} split" if split else f"all {len(manifest)} images"
    return manifest, f"{data.resolve().name}, {which}"


@contextmanager
def _progress(shown: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Yield what shows the images that were put through all corruptions; nothing where none are."""
    if not shown:
        yield None
    elif not sys.stderr.isatty():
        yield _say_every_tenth
    else:
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bars:
            task = bars.add_task("corruptions", total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)


def _say_every_tenth(done: int, total: int) -> None:
    if done == total or done * 10 // total > (done - 1) * 10 // total:
        typer.echo(f"corruptions: {done} of {total} images", err=True)


def _print(metrics: dict[str, Any]) -> None:
    from pneumoscope.evaluation.tables import CHANGES, change, map_measures, robustness_rows, with_interval

    for name, figure in metrics["pneumonia"].items():
        if isinstance(figure, dict):
            typer.echo(f"{name:20s} {with_interval(figure)}")
    for row in map_measures(metrics.get("localisation", {})):
        typer.echo(f"{row['name'].lower():24s} {with_interval(row['figure'])}")
    if robustness := metrics.get("robustness"):
        for group in CHANGES:
            for row in robustness_rows(robustness, group):
                rejected = with_interval(row["rejected"])
                typer.echo(f"{row['name']:24s} AUROC {change(row['auroc_change'])}, rejected {rejected}")

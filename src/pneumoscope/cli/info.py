"""`pneumoscope info`: a bundle, the versions of libraries, and the formats that can be decoded."""

from __future__ import annotations

import platform
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pneumoscope import __version__
from pneumoscope.cli.common import (
    bundle_facts,
    how_made,
    point_text,
    print_json,
    target_text,
    training_data_text,
)
from pneumoscope.cli.parameters import AsJson, BundlePath
from pneumoscope.domain import ANY_POPULATION
from pneumoscope.errors import BundleError

if TYPE_CHECKING:
    from pneumoscope.domain import Population
    from pneumoscope.model.bundle import Bundle
    from pneumoscope.model.manifest import BundleManifest
    from pneumoscope.model.results import ExternalValidation, RecalibrationResult, RecalibrationSide, Results

__all__ = ["info"]

LIBRARIES = (
    "numpy",
    "opencv-python-headless",
    "simplejpeg",
    "pydicom",
    "imagecodecs",
    "onnxruntime",
    "pydantic",
    "pyarrow",
    "torch",
    "timm",
    "keras",
)

MEASURES = ("auroc", "accuracy", "sensitivity", "specificity", "ppv", "npv", "ece")  # the rest is in the card

Sections = dict[str, dict[str, Any]]


def info(
    bundle: BundlePath = None,
    as_json: AsJson = False,
    card: Annotated[
        bool, typer.Option("--card", help="Print the model card (Markdown) and nothing else.")
    ] = False,
) -> None:
    """Show a bundle (classes, target, operating points, provenance, results), versions and formats."""
    from pneumoscope.image.decode import decodable_formats
    from pneumoscope.model.bundle import load_bundle

    if card and as_json:
        raise typer.BadParameter("--json and --card exclude each other")
    loaded = load_bundle(bundle)
    if card:
        if not loaded.card.strip():
            raise BundleError(f"{loaded.path}: no model card; 'pneumoscope evaluate --sign' writes one")
        typer.echo(loaded.card.rstrip())
        return
    installed: dict[str, Any] = {
        "pneumoscope": __version__,
        "python": platform.python_version(),
        "libraries": {name: _version_of(name) for name in LIBRARIES},
        "formats": decodable_formats(),
    }
    if as_json:
        content = loaded.manifest.model_dump(mode="json")
        print_json({**installed, "bundle": bundle_facts(loaded) | content})
        return
    libraries = {name: found or "not installed" for name, found in installed["libraries"].items()}
    versions = {"pneumoscope": __version__, "python": installed["python"], **libraries}
    sections = _bundle(loaded) | {"Versions": versions, "Decodable formats": installed["formats"]}
    typer.echo(
        "\n\n".join(_section(title, lines) for title, lines in sections.items() if any(lines.values()))
    )


def _version_of(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _bundle(bundle: Bundle) -> Sections:
    """Return what the bundle states, in sections of names and values."""
    manifest = bundle.manifest
    return {
        "Bundle": {
            "identity": bundle.identity,
            "path": str(bundle.path),
            "state": manifest.state,
            "classes": ", ".join(manifest.classes),
            "target": target_text(manifest.target),
            "intended use": manifest.intended_use,
            "licence": manifest.licence,
        },
        "Input": manifest.input.model_dump(),
        "Operating points": _points(manifest),
        "Calibration": _calibrations(manifest),
        "Populations": _populations(manifest.populations),
        "Validated populations": _populations(manifest.validated),
        "Gate": manifest.gate.model_dump(),
        "Provenance": _provenance(manifest),
        "Results": _results(manifest.results),
    }


def _points(manifest: BundleManifest) -> dict[str, str]:
    lines = {}
    for calibration in manifest.calibrations:
        for point in calibration.operating_points:
            default = " (default)" if point.name == manifest.default_operating_point else ""
            population = "" if calibration.population == ANY_POPULATION else f", {calibration.population}"
            lines[f"{point.name}{population}{default}"] = point_text(point, manifest.target.name)
    return lines


def _calibrations(manifest: BundleManifest) -> dict[str, str]:
    from pneumoscope.predict.calibration import assumed_prevalence

    lines = {}
    for calibration in manifest.calibrations:
        fitted, coverage = calibration.calibrator, calibration.coverage
        parts = [f"{fitted.method} scaling" if fitted.method != "none" else "none"]
        if fitted.fitted_on:
            parts.append(f"fitted on {fitted.fitted_on}")
        if calibration.prevalence is not None:
            parts.append(f"at a prevalence of {calibration.prevalence:.3g}")
        if fitted.prior_shift:
            parts.append(f"shifted to {assumed_prevalence(calibration):.3g}")
        if calibration.conformal is not None:
            parts.append("prediction sets" + (f" that hold the class of {coverage:.0%}" if coverage else ""))
        lines[calibration.population] = "; ".join(parts)
    return lines


def _populations(populations: tuple[Population, ...]) -> dict[str, str]:
    lines: dict[str, list[str]] = {}
    for one in populations:  # several may have one name, such as those of two hospitals
        lines.setdefault(one.name, []).append(replace(one, name=ANY_POPULATION).describe_with_counts())
    return {name: "; ".join(texts) for name, texts in lines.items()}


def _provenance(manifest: BundleManifest) -> dict[str, Any]:
    made = manifest.provenance
    facts = made.model_dump(exclude={"data", "steps"})
    steps = {"made by": how_made(made)} if made.steps else {}
    data = {
        f"data {number}" if len(made.data) > 1 else "data": training_data_text(one)
        for number, one in enumerate(made.data, start=1)
    }
    return steps | data | facts


def _results(results: Results) -> dict[str, str]:
    """Return the typed results: the bundle's own evaluation, external ones, recalibration and speed."""
    lines: dict[str, str] = {}
    if (own := results.evaluation) is not None:
        lines["evaluated on"] = f"{own.evaluated_on} ({_counts(own)})"
        lines |= _measures(own)
    for number, (name, external) in enumerate(results.external.items(), start=1):
        measures = ", ".join(f"{measure} {value}" for measure, value in _measures(external).items())
        lines[f"external {number}" if len(results.external) > 1 else "external"] = (
            f"{name} ({_counts(external)}): {measures}"
        )
    if (fitted := results.recalibration) is not None:
        lines["recalibrated on"] = f"{fitted.evaluated_on} ({_counts(fitted)})"
        for name, side in (("before", fitted.parent), ("after", fitted.recalibrated)):
            lines[f"{name} recalibration"] = _side(side)
    if (speed := results.speed) is not None:
        where = f" ({speed.measured_on})" if speed.measured_on else ""
        lines["speed"] = (
            f"{speed.images_per_second:.1f} images a second, {speed.latency_ms:.1f} ms for one image{where}"
        )
    return lines


def _measures(measured: ExternalValidation) -> dict[str, str]:
    from pneumoscope.evaluation.tables import with_interval

    estimates = {_measure(name): getattr(measured.detection, name) for name in MEASURES}
    return {name: with_interval(one, digits=4) for name, one in estimates.items() if one.value is not None}


def _counts(measured: ExternalValidation | RecalibrationResult) -> str:
    return f"{measured.images:,} images" + (
        f" of {measured.patients:,} patients" if measured.patients else ""
    )


def _side(side: RecalibrationSide) -> str:
    from pneumoscope.evaluation.tables import with_interval

    return ", ".join(
        f"{_measure(name)} {with_interval(getattr(side, name), digits=4)}"
        for name in ("auroc", "ece", "brier")
    )


def _measure(name: str) -> str:
    return name.upper() if name in {"auroc", "ppv", "npv", "ece"} else name


def _section(title: str, lines: dict[str, Any]) -> str:
    shown = {name.replace("_", " "): _value(value) for name, value in lines.items()}
    shown = {name: value for name, value in shown.items() if value}
    width = max((len(name) for name in shown), default=0)
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in shown.items())])


def _value(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(_value(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)

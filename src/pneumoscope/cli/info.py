"""`pneumoscope info`: what is installed and what the bundle is."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pneumoscope import __version__

if TYPE_CHECKING:
    from pneumoscope.model.bundle import Bundle

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


def info(
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle or run folder; the shipped bundle if not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    card: Annotated[
        bool, typer.Option("--card", help="Print the model card (Markdown) and nothing else.")
    ] = False,
) -> None:
    """Show a bundle: what it finds, how it was made and measured; and versions and decodable formats."""
    from pneumoscope.image.decode import decodable_formats
    from pneumoscope.model.bundle import load_bundle

    loaded = load_bundle(bundle)
    if card:
        typer.echo(loaded.card.rstrip() or f"{loaded.path}: this bundle has no card")
        return
    facts = _facts(loaded, decodable_formats())
    typer.echo(json.dumps(facts, indent=2, ensure_ascii=False) if as_json else _as_text(facts))


def _facts(bundle: Bundle, formats: dict[str, str]) -> dict[str, Any]:
    return {
        "pneumoscope": __version__,
        "python": platform.python_version(),
        "libraries": {name: _version_of(name) for name in LIBRARIES},
        "formats": formats,
        "bundle": {
            "identity": bundle.identity,
            "path": str(bundle.path),
            **bundle.manifest.model_dump(mode="json"),
        },
    }


def _version_of(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _as_text(facts: dict[str, Any]) -> str:
    """Lay the facts out in sections of aligned lines."""
    bundle = facts["bundle"]
    identity = {
        "identity": bundle["identity"],
        "path": bundle["path"],
        "findings": ", ".join(bundle["findings"]),
        "intended use": bundle["intended_use"],
        "licence": bundle["licence"],
    }
    points = {
        point["name"] + (" (default)" if point["name"] == bundle["default_operating_point"] else ""): _point(
            point
        )
        for point in bundle["operating_points"]
    }
    libraries = {name: found or "not installed" for name, found in facts["libraries"].items()}
    sections = {
        "Bundle": identity,
        "Input": bundle["input"],
        "Calibration": bundle["calibrator"],
        "Operating points": points,
        "Gate": bundle["gate"],
        "Provenance": bundle["provenance"],
        "Results": _flat({name: part for name, part in bundle["results"].items() if name not in _IN_CARD}),
        "Versions": {"pneumoscope": facts["pneumoscope"], "python": facts["python"], **libraries},
        "Decodable formats": facts["formats"],
    }
    return "\n\n".join(_section(title, lines) for title, lines in sections.items() if lines)


def _point(point: dict[str, Any]) -> str:
    measured = [
        f"{name} {point[name]:.3f}" for name in ("sensitivity", "specificity") if point[name] is not None
    ]
    return ", ".join([f"P(pneumonia) >= {point['threshold']:.4f}", *measured])


# Tables rather than figures: they read well in the card only.
_IN_CARD = {"robustness", "elsewhere", "reliability", "mistakes"}


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Name the leaves of nested results by their path, parts joined by dots."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            leaves |= _flat(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = value
    return leaves


def _section(title: str, lines: dict[str, Any]) -> str:
    shown = {name: _value(value) for name, value in lines.items()}
    shown = {name: value for name, value in shown.items() if value}
    width = max((len(name) for name in shown), default=0)
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in shown.items())])


def _value(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(_value(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)

"""Figures of one bundle on further sets: another age group, another hospital, another device."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pneumoscope.errors import DataError
from pneumoscope.evaluation.card import write_card
from pneumoscope.evaluation.metrics import SUBGROUPS
from pneumoscope.model.bundle import CARD_FILE, HEAD_FILE, Bundle, write_bundle
from pneumoscope.model.manifest import BundleManifest

__all__ = ["add_elsewhere", "answers_of", "still_true"]

_KEPT = (
    "images",
    "patients",
    "images_by_class",
    "threshold",
    "intervals",
    "pneumonia",
    *SUBGROUPS,
    "not_evaluated",
)


def answers_of(manifest: BundleManifest) -> str:
    """Return the hash of all that decides an answer: networks, input, gate, calibration and thresholds."""
    # The head is for heat maps alone: the network holds its own.
    files = {name: sha256 for name, sha256 in manifest.files.items() if name not in {CARD_FILE, HEAD_FILE}}
    rest = manifest.model_dump(mode="json", include={"input", "gate"})
    parts = {"files": files, "calibration": manifest.calibration_sha256, **rest}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def add_elsewhere(bundle: Bundle, name: str, metrics: Mapping[str, Any], evaluated_on: str) -> Bundle:
    """Store figures on another set beside a bundle's own, and show them in its card.

    The bundle's own figures stay as they are; an older entry of the same name is replaced.

    Parameters
    ----------
    bundle : Bundle
        Evaluated by `evaluate_bundle`, without a change since.
    name : str
        What the card calls the set, in a word or two.
    metrics : mapping
        From `evaluate_bundle`.
    evaluated_on : str
        What the images are.

    Raises
    ------
    DataError
        If the name is empty.
    """
    if not (name := " ".join(name.split())):
        raise DataError("figures on another set need a name; call it by what it shows, such as 'adults'")
    manifest = bundle.manifest
    entry = {key: metrics[key] for key in _KEPT if key in metrics}
    entry |= {"evaluated_on": evaluated_on, "answers": answers_of(manifest)}
    sets = {**still_true(manifest), name: entry}
    signed = manifest.model_copy(update={"results": {**manifest.results, "elsewhere": sets}})
    own = signed.results if "pneumonia" in signed.results else {}
    card = write_card(signed.model_dump(mode="json"), own)
    return write_bundle(bundle.path, signed, {CARD_FILE: card.encode()})


def still_true(manifest: BundleManifest) -> dict[str, Any]:
    """Return the figures on other sets that were got by the very answers the bundle gives now."""
    answers = answers_of(manifest)
    stored = manifest.results.get("elsewhere") or {}
    return {name: entry for name, entry in stored.items() if entry.get("answers") == answers}

"""Compare the networks of bundles on the same images, source by source and across sources.

AUROC of the target by the logits, before calibration and with the gate overridden, of each bundle; the
others with the 95% interval of the difference from the first, patients resampled. Images of split ``val``
count where a manifest has a split. A source that lacks sick or normal images is set against each of the other
sources: where one was not trained on, these rows show what the known ones cannot.

    python benchmarks/compare_bundles.py joined.csv openist=lung-masks-adult/images --bundle A --bundle B \
        --join children=person,IM,NORMAL2 --lungs-only rsna-masked --reference rsna
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from fit_gate import normal_radiographs

from pneumoscope import Predictor
from pneumoscope.data.folder import load
from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.domain import Target
from pneumoscope.evaluation.observe import observe
from pneumoscope.evaluation.tables import markdown_table
from pneumoscope.evaluation.weighted import estimate, ranking, replicates
from pneumoscope.model.bundle import Bundle, load_bundle
from pneumoscope.model.lungs import LungsOnBlack
from pneumoscope.predict.calibration import log_odds
from pneumoscope.predict.pipeline import Pipeline

RESAMPLES = 500
# Of the normal images of the source that the threshold is taken from.
FALSE_ALARMS = 0.06


@dataclass(frozen=True)
class Group:
    """Positions of sick and of normal images that are told apart."""

    name: str
    sick: np.ndarray
    normal: np.ndarray


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", nargs="+", help="manifests, or NAME=FOLDER of normal radiographs")
    parser.add_argument(
        "--bundle", action="append", required=True, help="two or more; the first is compared to"
    )
    parser.add_argument("--join", action="append", default=[], help="NAME=SOURCE,SOURCE: take these as one")
    parser.add_argument("--lungs-only", help="source of inverted lungs on black")
    parser.add_argument("--reference", help="source whose normal images 6%% false alarms are set on")
    options = parser.parse_args()
    names = names_of_joined(options.join)
    manifests = [read(text, names) for text in options.data]
    bundles = [load_bundle(path) for path in options.bundle]
    found = [scored(one, manifests, options.lungs_only) for one in bundles]
    common = sorted(set.intersection(*(set(one) for one in found)))
    records = [found[0][path][0] for path in common]
    scores = np.array([[one[path][1] for path in common] for one in found])
    heads = [one.identity for one in bundles]
    print_tables("AUROC (images)", heads, records, scores, bundles[0].manifest.target, options.reference)


def names_of_joined(texts: list[str]) -> dict[str, str]:
    """Return the new name of each source in NAME=SOURCE,SOURCE."""
    return {part: one.partition("=")[0] for one in texts for part in one.partition("=")[2].split(",")}


def print_tables(
    title: str,
    heads: list[str],
    records: list[Record],
    scores: np.ndarray,
    target: Target,
    reference: str | None,
) -> None:
    """Print the AUROC of all groups and, with a reference, the shares above its threshold."""
    rows = [[group.name, *compared(group, records, scores)] for group in groups(records, target)]
    print(markdown_table([title, *heads], rows))
    if reference:
        print("\n" + markdown_table(["share above", *heads], alarms(records, scores, target, reference)))


def read(text: str, names: dict[str, str]) -> Manifest:
    """Return the images to compare on, their sources renamed, with paths that name the file."""
    name, _, folder = text.partition("=")
    manifest = normal_radiographs(name, Path(folder)) if folder else load(text)
    if manifest.has_split:
        manifest = manifest.subset("val")
    return manifest.with_records(
        replace(record, source=names.get(record.source, record.source or Path(text).stem))
        for record in manifest.records
    )


def scored(
    bundle: Bundle, manifests: list[Manifest], lungs_only: str | None
) -> dict[str, tuple[Record, float]]:
    """Return each image's record and the log-odds of the target, by its file."""
    found: dict[str, tuple[Record, float]] = {}
    masked = Pipeline(
        bundle.manifest.input, bundle.manifest.gate, segmenter=LungsOnBlack(inverted=True), force=True
    )
    for manifest in manifests:
        for pipeline, kind in ((None, False), (masked, True)):
            part = manifest.with_records(
                one for one in manifest.records if (one.source == lungs_only) is kind
            )
            if not len(part):
                continue
            observed = observe(Predictor(bundle, workers=1, force=True, pipeline=pipeline), part)
            odds = log_odds(observed.logits, observed.target_mask)
            for record, one in zip(observed.records, odds, strict=True):
                found[str(part.resolve(record))] = record, float(one)
    return found


def described(records: list[Record], target: Target) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the source of each image, whether it shows the target, and whether it is normal."""
    return (
        np.array([record.source for record in records]),
        np.array([target.includes(record.label) for record in records]),
        np.array([record.label == "normal" for record in records]),
    )


def groups(records: list[Record], target: Target) -> Iterator[Group]:
    """Yield what can be told apart: within a source and view, and of sources that lack one side, across."""
    source, sick, normal = described(records, target)
    view = np.array([record.view for record in records])
    whole = set()
    for name in sorted(set(source)):
        own = source == name
        if (own & sick).any() and (own & normal).any():
            whole.add(name)
            yield Group(name, np.flatnonzero(own & sick), np.flatnonzero(own & normal))
            views = sorted(set(view[own]) - {""})
            for one in views if len(views) > 1 else ():
                seen = own & (view == one)
                yield Group(f"{name}, {one}", np.flatnonzero(seen & sick), np.flatnonzero(seen & normal))
    for one in sorted(set(source[sick])):
        for other in sorted(set(source[normal]) - {one}):
            if not {one, other} <= whole:
                pair = np.flatnonzero(sick & (source == one)), np.flatnonzero(normal & (source == other))
                yield Group(f"{one} against normal {other}", *pair)


def compared(group: Group, records: list[Record], scores: np.ndarray) -> list[str]:
    """Return the AUROC of each bundle; of all but the first with the interval of the difference."""
    rows = np.concatenate([group.sick, group.normal])
    positive = np.arange(len(rows)) < len(group.sick)
    _, patients = np.unique([records[row].patient_id for row in rows], return_inverse=True)
    measured = replicates(
        patients,
        RESAMPLES,
        0,
        lambda weights: {k: ranking(one[rows], positive, weights)[0] for k, one in enumerate(scores)},
    )
    cells = [f"{measured[0][0]:.3f} ({len(rows)})"]
    for number in range(1, len(scores)):
        change = estimate(measured[number] - measured[0], int(patients.max()) + 1)
        span = "–" if change.low is None else f"{change.low:+.3f} to {change.high:+.3f}"
        cells.append(f"{measured[number][0]:.3f} ({span})")
    return cells


def alarms(records: list[Record], scores: np.ndarray, target: Target, reference: str) -> list[list[str]]:
    """Return each source's shares above the threshold that few normal images of the reference exceed."""
    source, sick, normal = described(records, target)
    known = scores[:, normal & (source == reference)]
    if not known.size:
        raise SystemExit(f"--reference {reference}: no normal image of this source")
    limits = np.quantile(known, 1 - FALSE_ALARMS, axis=1)
    rows = []
    for name in sorted(set(source)):
        for kind, among in (("normal", normal), ("sick", sick)):
            chosen = among & (source == name)
            if chosen.any():
                shares = (scores[:, chosen] > limits[:, None]).mean(axis=1)
                rows.append([f"{name}, {kind} ({chosen.sum()})", *(f"{one:.3f}" for one in shares)])
    return rows


if __name__ == "__main__":
    main()

"""Fit the gate of a bundle again, without training, and measure both of its errors source by source.

The errors are those of images that the classifier of frontal chests was not fitted on: of held-out patients,
and of whole sources and kinds left out. Images of split ``train`` are fitted on where a manifest has a
split. With ``--write`` the gate is written into the bundle, whose results are then those of another gate:
evaluate it again with `pneumoscope evaluate --sign`.

    python benchmarks/fit_gate.py --not-chest not-chest --chests children=kermany.csv \
        --chests nih=nih.csv --chests rsna=adults#rsna --chests bimcv=adults#bimcv \
        --chests openist=lung-masks-adult/images --write BUNDLE
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

from pneumoscope.data.folder import load
from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.data.walk import walk
from pneumoscope.evaluation.gate import FittedGate, fit_gate
from pneumoscope.evaluation.tables import markdown_table
from pneumoscope.model.bundle import GATE_FILE, Bundle, load_bundle, write_bundle


def normal_radiographs(name: str, folder: Path) -> Manifest:
    """Return the images of a folder without labels as normal ones, each of a patient of its own."""
    files = [one for one in walk(folder) if isinstance(one, Path)]
    records = tuple(Record(str(file), "normal", file.stem, source=name) for file in files)
    return Manifest(records, Path())  # the files are named from where this runs


def chests(text: str) -> tuple[str, Manifest]:
    """Return name and images of ``NAME=PATH`` or ``NAME=PATH#SOURCE``; labels are not needed."""
    name, _, rest = text.partition("=")
    path, _, source = rest.partition("#")
    if Path(path).is_dir() and not (Path(path) / "labels.csv").exists():
        return name, normal_radiographs(name, Path(path))
    manifest = load(path)
    kept = manifest.subset("train") if manifest.has_split else manifest
    if source:
        kept = kept.with_records(record for record in kept.records if record.source == source)
    return name, kept


def write(bundle: Bundle, gate: FittedGate, sources: list[str]) -> Bundle:
    """Write the gate into the bundle, and the step into its provenance."""
    manifest = bundle.manifest
    images = sum(one.images for one in gate.measures.values() if one.chest)
    today = datetime.datetime.now(datetime.UTC).date()
    step = (
        f"Gate fitted again on {today} (benchmarks/fit_gate.py): classifier of frontal chests, {images} "
        f"chest radiographs of {', '.join(sources)} against images of other kinds; networks and thresholds "
        "unchanged."
    )
    provenance = manifest.provenance.model_copy(update={"steps": (*manifest.provenance.steps, step)})
    results = manifest.results.model_copy(update={"gate": gate.measures})
    changed = manifest.model_copy(update={"gate": gate.limits, "provenance": provenance, "results": results})
    return write_bundle(bundle.path, changed, {GATE_FILE: gate.content})


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--chests", action="append", required=True, metavar="NAME=PATH[#SOURCE]")
    parser.add_argument("--not-chest", type=Path, required=True, help="folder of images of other kinds")
    parser.add_argument("--write", action="store_true", help="write the gate into the bundle")
    chosen = parser.parse_args()
    bundle = load_bundle(chosen.bundle)
    sources = dict(map(chests, chosen.chests))
    if len(sources) < len(chosen.chests):
        parser.error("--chests: give each name once")
    gate = fit_gate(bundle, sources, others=chosen.not_chest)
    if gate is None:
        parser.error("too few chest radiographs, or a bundle without a lung segmenter")
    rows = [
        (
            name,
            "chest" if one.chest else "other",
            str(one.images),
            f"{one.rejected:.1%}",
            "" if one.rejected_left_out is None else f"{one.rejected_left_out:.1%}",
        )
        for name, one in gate.measures.items()
    ]
    print(markdown_table(("images", "kind", "number", "rejected, held out", "rejected, left out"), rows))
    print(f"\nlimits: min_chest {gate.limits.min_chest:.3g}, max_novelty {gate.limits.max_novelty:.3g}")
    if chosen.write:
        print(write(bundle, gate, list(sources)).identity)


if __name__ == "__main__":
    main()

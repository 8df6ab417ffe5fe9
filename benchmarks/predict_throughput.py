"""How many X-rays a second: `pneumoscope predict` against two common pipelines, as whole processes.

Each round runs every system in turn, once on one picture (start-up) and once on many, so that whatever else
the machine does falls on all of them; ratios are taken within a round. The steady rate leaves the start-up
out and is what the ratios compare. Every system runs with its own defaults. The peers' weights are random:
their time is that of trained ones.

    python benchmarks/predict_throughput.py FOLDER [--bundle B] [--images N] [--peer-images N] [--rounds N]

Keras takes the backend that KERAS_BACKEND names, torch if none.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from copies import link_copies

from pneumoscope.predict.pipeline import available_cpus

PEERS = Path(__file__).parent / "peers"
OURS = "pneumoscope"


def main() -> None:
    """Run the rounds and print a table and one JSON object."""
    options = parse()
    systems = {
        OURS: [sys.executable, "-m", "pneumoscope", "predict", "--out", "{out}"],
        "keras-vgg16": [sys.executable, str(PEERS / "keras_vgg16.py")],
        "torchxrayvision-style": [sys.executable, str(PEERS / "torchxrayvision_style.py")],
    }
    if options.bundle:
        systems[OURS] += ["--bundle", options.bundle]
    counts = {name: options.images if name == OURS else options.peer_images for name in systems}
    rates: dict[str, list[float]] = {name: [] for name in systems}
    starts: dict[str, list[float]] = {name: [] for name in systems}
    with tempfile.TemporaryDirectory() as place:
        one = link_copies(options.folder, 1, Path(place, "one"))
        many = {n: link_copies(options.folder, n, Path(place, str(n))) for n in set(counts.values())}
        out = str(Path(place, "out.csv"))
        for _ in range(options.rounds):
            for name, command in systems.items():
                words = [out if word == "{out}" else word for word in command]
                start = seconds([*words, str(one)])
                whole = seconds([*words, str(many[counts[name]])])
                starts[name].append(start)
                rates[name].append((counts[name] - 1) / max(whole - start, 1e-9))
    report(counts, rates, starts)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Throughput of prediction, against two common pipelines.")
    parser.add_argument("folder", type=Path, help="full-size X-rays (JPEG or PNG); they are used in turn")
    parser.add_argument("--bundle", help="the shipped bundle if not given")
    parser.add_argument("--images", type=int, default=2000, help="pictures for pneumoscope")
    parser.add_argument("--peer-images", type=int, default=200, help="pictures for the slower systems")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def seconds(command: list[str]) -> float:
    """Return the wall time of a whole process; it must succeed."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def report(counts: dict[str, int], rates: dict[str, list[float]], starts: dict[str, list[float]]) -> None:
    """Print medians, and the ratio of our rate to each peer's, paired by round."""
    ratios = {
        name: [ours / other for ours, other in zip(rates[OURS], rates[name], strict=True)] for name in rates
    }
    print(f"{'system':<24}{'pictures':>9}{'start-up s':>12}{'pictures/s':>12}{'ours is':>10}   (range)")
    for name, each in ratios.items():
        start, rate = statistics.median(starts[name]), statistics.median(rates[name])
        spread = f"{statistics.median(each):>9.1f}x   ({min(each):.1f} to {max(each):.1f})"
        print(f"{name:<24}{counts[name]:>9}{start:>12.2f}{rate:>12.1f}{spread}")
    facts = {"cpus": available_cpus(), "machine": platform.machine(), "python": platform.python_version()}
    print(json.dumps({**facts, "pictures": counts, "rates": rates, "start_up": starts, "ratios": ratios}))


if __name__ == "__main__":
    main()

"""X-rays a second: `pneumoscope predict` against two common pipelines, as whole processes.

Decoding alone is measured in the same rounds: the images are read as `predict` reads them, on as many
threads. The ratio of `predict` to it shows what everything else costs.

Each round runs every system in turn, once on one image (start-up) and once on many, so that other work on the
machine affects all of them alike; ratios are taken within a round. The steady rate, which the ratios compare,
does not include the start-up. Every system runs with its own defaults. The peers' weights are random, which
takes the same time as trained ones. The CPU time per image is given too; other work on the machine hardly
changes it.

    python benchmarks/predict_throughput.py FOLDER [--bundle B] [--images N] [--peer-images N] [--rounds N]
        [--without-peers]

Keras takes the backend that KERAS_BACKEND names, torch if none.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from copies import link_copies

from pneumoscope.model.bundle import load_bundle
from pneumoscope.parallel import available_cpus

PEERS = Path(__file__).parent / "peers"
OURS, DECODING = "pneumoscope", "decoding alone"
# Reads a folder as `predict` does, with the given shorter side.
DECODE = """
import sys
import cv2
from pathlib import Path
from pneumoscope.image.decode import read_radiograph
from pneumoscope.parallel import available_cpus, in_order

def read(paths):
    return [read_radiograph(path, min_side=int(sys.argv[2])).width for path in paths]

cv2.setNumThreads(1)
for _ in in_order(sorted(Path(sys.argv[1]).iterdir()), read, workers=available_cpus()):
    pass
"""


def main() -> None:
    """Run the rounds and print a table and one JSON object."""
    options = parse()
    systems = {
        OURS: [sys.executable, "-m", "pneumoscope", "predict", "--out", "{out}"],
        DECODING: [
            sys.executable,
            "-c",
            DECODE,
            "{images}",
            str(load_bundle(options.bundle).manifest.input.decode_side),
        ],
        "keras-vgg16": [sys.executable, str(PEERS / "keras_vgg16.py"), "{images}"],
        "torchxrayvision-style": [sys.executable, str(PEERS / "torchxrayvision_style.py"), "{images}"],
    }
    if options.bundle:
        systems[OURS] += ["--bundle", options.bundle]
    systems[OURS].append("{images}")
    if options.without_peers:
        systems = {name: systems[name] for name in (OURS, DECODING)}
    counts = {name: options.images if name in (OURS, DECODING) else options.peer_images for name in systems}
    rates: dict[str, list[float]] = {name: [] for name in systems}
    starts: dict[str, list[float]] = {name: [] for name in systems}
    work: dict[str, list[float]] = {name: [] for name in systems}
    with tempfile.TemporaryDirectory() as place:
        one = link_copies(options.folder, 1, Path(place, "one"))
        many = {n: link_copies(options.folder, n, Path(place, str(n))) for n in set(counts.values())}
        out = str(Path(place, "out.csv"))
        for _ in range(options.rounds):
            for name, command in systems.items():
                start, start_cpu = seconds(filled(command, out, one))
                whole, whole_cpu = seconds(filled(command, out, many[counts[name]]))
                starts[name].append(start)
                rates[name].append((counts[name] - 1) / max(whole - start, 1e-9))
                work[name].append((whole_cpu - start_cpu) / (counts[name] - 1))
    report(counts, rates, starts, work)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Throughput of prediction, against two common pipelines.")
    parser.add_argument("folder", type=Path, help="full-size X-rays (JPEG or PNG); they are used in turn")
    parser.add_argument("--bundle", help="the shipped bundle if not given")
    parser.add_argument("--images", type=int, default=2000, help="images for pneumoscope")
    parser.add_argument("--peer-images", type=int, default=200, help="images for the slower systems")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without-peers", action="store_true", help="against decoding alone")
    return parser.parse_args()


def filled(command: list[str], out: str, images: Path) -> list[str]:
    """Insert the file to write and the folder to read into a command."""
    places = {"{out}": out, "{images}": str(images)}
    return [places.get(word, word) for word in command]


def seconds(command: list[str]) -> tuple[float, float]:
    """Return wall time and CPU time of a whole process; it must succeed."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, check=False, capture_output=True)
    if done.returncode not in (0, 3):  # 3: some images were rejected, which is work too
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise SystemExit(f"{' '.join(command)}: ended with {done.returncode}: {last}")
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def report(
    counts: dict[str, int],
    rates: dict[str, list[float]],
    starts: dict[str, list[float]],
    work: dict[str, list[float]],
) -> None:
    """Print medians, and the ratio of the rate of Pneumoscope to each other rate, paired by round."""
    ratios = {
        name: [ours / other for ours, other in zip(rates[OURS], rates[name], strict=True)] for name in rates
    }
    names = ("images", "start-up s", "a second", "CPU ms", "ratio")
    print(f"{'system':<24}" + "".join(f"{name:>11}" for name in names) + "   (range)")
    for name, each in ratios.items():
        start, rate = statistics.median(starts[name]), statistics.median(rates[name])
        cpu = statistics.median(work[name]) * 1e3
        spread = f"{statistics.median(each):>10.2f}x   ({min(each):.2f} to {max(each):.2f})"
        print(f"{name:<24}{counts[name]:>11}{start:>11.2f}{rate:>11.1f}{cpu:>11.2f}{spread}")
    facts = {"cpus": available_cpus(), "machine": platform.machine(), "python": platform.python_version()}
    print(
        json.dumps(
            {**facts, "images": counts, "rates": rates, "start_up": starts, "cpu": work, "ratios": ratios}
        )
    )


if __name__ == "__main__":
    main()

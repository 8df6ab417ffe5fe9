"""Images a second of `pneumoscope batch` with one and two workers, against `Predictor` in one process.

In each round every system runs once, so that other work on the machine affects all alike; ratios are taken
within a round. The rate of `batch` is that between its first and its last part, without the start of Ray, as
that of `Predictor` is without its start. Then the memory of driver and workers over many entries, all of them
files that do not exist: what grows with their number is not hidden by decoding.

    python benchmarks/batch_scaling.py FOLDER [--images N] [--rounds N] [--entries N]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from batch_runs import descendants, finished, parts, start
from copies import link_copies
from pyarrow import parquet

ALONE = """
import sys, time
import cv2
from pathlib import Path
from pneumoscope import Predictor
cv2.setNumThreads(1)
predictor = Predictor.load(workers=int(sys.argv[2]))
paths = sorted(Path(sys.argv[1]).iterdir())
predictor.predict(paths[:8])
began = time.perf_counter()
count = sum(1 for _ in predictor.predict_iter(paths))
print(count / (time.perf_counter() - began))
"""
PART = 100  # smaller than in use, for rates of few images; every part costs some files written and flushed
SAMPLE_SECONDS = 0.5


def main() -> None:
    """Run the rounds and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="with JPEG or PNG X-rays")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--entries", type=int, default=100_000, help="for the memory; 0 leaves it out")
    options = parser.parse_args()
    if options.images <= 2 * PART:
        parser.error(f"--images: more than {2 * PART}, so that two workers write more than their first parts")
    rounds = []
    with tempfile.TemporaryDirectory(prefix="pneumoscope-scaling-") as made:
        folder = Path(made)
        images = link_copies(options.folder, options.images, folder / "images")
        for number in range(options.rounds):
            rates = {}
            for workers in (1, 2):
                rates[f"alone {workers}"] = alone(images, workers)
                rates[f"batch {workers}"] = batch(images, folder / f"{number}-{workers}", workers)
            print({name: round(rate, 1) for name, rate in rates.items()}, flush=True)
            rounds.append(rates)
        result: dict[str, object] = {name: median(one[name] for one in rounds) for name in rounds[0]}
        for workers in (1, 2):
            ratios = [one[f"batch {workers}"] / one[f"alone {workers}"] for one in rounds]
            extra = [1000 * (1 / one[f"batch {workers}"] - 1 / one[f"alone {workers}"]) for one in rounds]
            result[f"efficiency {workers}"] = median(ratios, 3)
            result[f"overhead ms an image {workers}"] = median(extra, 3)
        if options.entries:
            result["memory MB"] = memory(folder, options.entries)
    print(json.dumps(result))


def median(values: object, digits: int = 1) -> float:
    """Return the median, rounded."""
    return round(statistics.median(values), digits)  # type: ignore[call-overload, no-any-return]


def alone(images: Path, threads: int) -> float:
    """Return images a second of `Predictor`."""
    command = [sys.executable, "-c", ALONE, str(images), str(threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def batch(images: Path, output: Path, workers: int) -> float:
    """Return images a second of `pneumoscope batch` between the first part of every worker and the last."""
    finished(start(images, output, "--workers", workers, "--part-size", PART), output)
    found = parts(output)
    times = [path.stat().st_mtime_ns / 1e9 for path in found]
    rows = [parquet.read_metadata(path).num_rows for path in found]
    return sum(rows[workers:]) / (times[-1] - times[workers - 1])


def memory(folder: Path, entries: int) -> dict[str, list[int]]:
    """Return resident MB of the driver and of its largest worker after each tenth of the parts."""
    table, output = folder / "many.csv", folder / "many"
    with table.open("w") as file:
        file.write("path\n")
        file.writelines(f"gone/{number:09}.png\n" for number in range(entries))
    run = start(table, output, "--workers", 2)
    total = -(-entries // 500)
    driver: list[int] = []
    worker: list[int] = []
    while run.poll() is None:
        if len(parts(output)) >= len(driver) * total / 10 and len(parts(output)):
            driver.append(resident(run.pid))
            worker.append(max(map(resident, descendants(run.pid, b"ray::Map")), default=0))
        time.sleep(SAMPLE_SECONDS)
    if run.returncode != 4:  # nothing could be predicted
        raise SystemExit(f"the run ended with {run.returncode}; see {output}.log")
    return {"driver": driver, "worker": worker}


def resident(number: int) -> int:
    """Return the resident memory of a process in MB; 0 if it ended."""
    try:
        lines = Path(f"/proc/{number}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS:")), 0)


if __name__ == "__main__":
    main()

"""Rows lost or doubled by ``kill -9`` of workers and of the driver of `pneumoscope batch`.

Three runs over the same links to X-rays: one that nothing interrupts, one whose workers are killed, one whose
driver is killed and started again. Every row of the three must be the same.

    python benchmarks/batch_faults.py FOLDER [--images N] [--kills N] [--part-size N] [--seed N] [--keep DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from batch_runs import finished, parts, rows_of, start, until, workers_of
from copies import link_copies


def main() -> None:
    """Make the three runs and print one JSON object."""
    options = parse()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="pneumoscope-faults-") as made:
        folder = options.keep or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        images = link_copies(options.folder, options.images, folder / "images")
        words = ("--part-size", options.part_size)
        began = time.monotonic()
        summary = finished(start(images, folder / "unbroken", *words), folder / "unbroken")
        print(f"unbroken: {summary['rows']} rows, {summary['images_per_second']} a second", flush=True)
        expected = rows_of(folder / "unbroken")
        total = -(-options.images // options.part_size)
        result: dict[str, Any] = {"images": options.images, "parts": total, "seed": options.seed}
        for name, kill in (("workers", kill_workers), ("driver", kill_driver)):
            output = folder / name
            kills = kill(images, output, words, options.kills, total, rng)
            rows = rows_of(output)
            ids = [row["id"] for row in rows]
            result[name] = {
                "kills": kills,
                "rows": len(rows),
                "lost": options.images - len(set(ids)),
                "doubled": len(ids) - len(set(ids)),
                "same": rows == expected,
            }
            print(f"{name}: {result[name]}", flush=True)
        result["seconds"] = round(time.monotonic() - began)
        print(json.dumps(result))
        if not all(result[name]["same"] for name in ("workers", "driver")):
            raise SystemExit("rows differ from those of the run that was not interrupted")


def kill_workers(
    images: Path, output: Path, words: tuple[object, ...], kills: int, total: int, rng: random.Random
) -> int:
    """Kill one worker after the other, spread over the run; return how many were killed."""
    run = start(images, output, *words)
    done = 0
    while done < kills:
        least = done * total / (kills + 1)

        def ready(least: float = least) -> bool:
            return run.poll() is not None or (len(parts(output)) >= least and bool(workers_of(output)))

        until(ready)
        if run.poll() is not None:
            raise SystemExit(f"the run ended after {done} kills; give more images")
        time.sleep(rng.uniform(0, 0.3))
        for number in rng.sample(sorted(workers_of(output)), k=1) if workers_of(output) else ():
            os.kill(number, signal.SIGKILL)
            done += 1
    finished(run, output)
    return done


def kill_driver(
    images: Path, output: Path, words: tuple[object, ...], kills: int, total: int, rng: random.Random
) -> int:
    """Kill the driver and start it again, spread over the run; return how often it was killed."""
    done = 0
    for number in range(kills):
        least = (number + 1) * total // (kills + 2)
        run = start(images, output, *words)

        def ready(least: int = least, run: Any = run) -> bool:
            return run.poll() is not None or len(parts(output)) >= least

        until(ready)
        time.sleep(rng.uniform(0, 0.5))
        if run.poll() is not None:
            raise SystemExit(f"the run ended after {done} kills; give more images")
        run.kill()
        run.wait()
        done += 1
        before = len(parts(output))
        time.sleep(2)  # whatever outlives the driver would go on writing
        print(
            f"driver killed {done} times, {before} of {total} parts, {len(parts(output)) - before} after it"
        )
    finished(start(images, output, *words), output)
    return done


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="with JPEG or PNG X-rays")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--kills", type=int, default=20, help="of workers, and of the driver")
    parser.add_argument("--part-size", type=int, default=50)
    parser.add_argument("--seed", type=int, default=20261126)
    parser.add_argument("--keep", type=Path, help="folder for the runs, kept")
    return parser.parse_args()


if __name__ == "__main__":
    main()

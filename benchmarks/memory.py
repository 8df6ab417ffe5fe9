"""Memory of `pneumoscope predict` over many files, which must not grow. Linux only: it reads /proc.

python benchmarks/memory.py FOLDER [--bundle B] [--images 20000]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from copies import link_copies

MIB = 1024
TENTHS = 10


def main() -> None:
    """Predict many paths, sample the resident memory, print a line for each tenth and one JSON object."""
    parser = argparse.ArgumentParser(description="Resident memory of prediction over many files.")
    parser.add_argument("folder", type=Path, help="X-rays (JPEG or PNG); they are used in turn")
    parser.add_argument("--bundle", help="the shipped bundle if not given")
    parser.add_argument("--images", type=int, default=20_000)
    options = parser.parse_args()
    command = [sys.executable, "-m", "pneumoscope", "predict"]
    if options.bundle:
        command += ["--bundle", options.bundle]
    with tempfile.TemporaryDirectory() as place:
        paths = link_copies(options.folder, options.images, Path(place, "paths"))
        command += [str(paths), "--out", str(Path(place, "out.csv"))]
        began = time.perf_counter()
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        samples = sampled(process)
        took = time.perf_counter() - began
    if process.returncode not in {0, 3}:  # 3: some images were rejected, which is work too
        raise SystemExit(f"predict ended with exit code {process.returncode}")
    parts = [samples[i * len(samples) // TENTHS : (i + 1) * len(samples) // TENTHS] for i in range(TENTHS)]
    tenths = [max(part) for part in parts if part]  # fewer where it was over at once
    for number, most in enumerate(tenths, start=1):
        print(f"tenth {number:>2} of the time: at most {most:6.0f} MiB")
    facts = {
        "images": options.images,
        "seconds": round(took, 1),
        "peak_mib": max(samples),
        "tenths": tenths,
    }
    print(json.dumps(facts))


def sampled(process: subprocess.Popen[bytes]) -> list[float]:
    """Return the resident memory in MiB, read every tenth of a second until the process ends."""
    samples: list[float] = []
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
        samples += [int(line.split()[1]) / MIB for line in status.splitlines() if line.startswith("VmRSS:")]
        time.sleep(0.1)
    return samples


if __name__ == "__main__":
    main()

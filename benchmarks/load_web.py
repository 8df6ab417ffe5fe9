"""The web interface under load: latency, throughput, errors and memory. Linux only.

A server is started in its own process. One client sends one X-ray after the other (light load); then many
clients do so at the same time; and for comparison `pneumoscope predict` predicts as many files as it can. The
clients run on the same processors as the server and use part of them.

    python benchmarks/load_web.py FOLDER [--bundle B] [--clients 64] [--seconds 60] [--images 2000]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from copies import SUFFIXES, link_copies

from pneumoscope.parallel import available_cpus

MIB = 1024
TENTHS = 10
LIGHT_SECONDS = 10
SAMPLE_SECONDS = 0.5
BOUNDARY = "load-web"


@dataclass
class Load:
    """Responses, and the memory of the server meanwhile."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    responses: Counter[str] = field(default_factory=Counter)
    server_mib: list[float] = field(default_factory=list)
    workers_mib: list[float] = field(default_factory=list)


def main() -> None:
    """Start the server, load it, print a table and one JSON object."""
    parser = argparse.ArgumentParser(description="Load on `pneumoscope serve`.")
    parser.add_argument("folder", type=Path, help="X-rays (JPEG or PNG); they are used in turn")
    parser.add_argument("--bundle", help="the shipped bundle if not given")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--images", type=int, default=2000, help="for `predict`; 0 leaves it out")
    options = parser.parse_args()
    bodies = [
        form(path.read_bytes())
        for path in sorted(options.folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    if not bodies:
        raise SystemExit(f"{options.folder}: no JPEG or PNG image in this folder")
    bundle = ["--bundle", options.bundle] if options.bundle else []
    command = [sys.executable, "-m", "pneumoscope", "serve", "--port", "0", *bundle]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            url = re.match(r"https?://\S+", server.stderr.readline())
            if url is None:
                raise SystemExit("the server did not start")
            asyncio.run(drive(url[0], bodies, 1, 3, server.pid))  # the first responses are slower
            light = asyncio.run(drive(url[0], bodies, 1, LIGHT_SECONDS, server.pid))
            heavy = asyncio.run(drive(url[0], bodies, options.clients, options.seconds, server.pid))
        finally:
            server.terminate()
    rate = predict_rate(options.folder, bundle, options.images) if options.images else None
    report(options.clients, light, heavy, rate)


def form(data: bytes) -> bytes:
    """Return a multipart body with one image."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="chest.jpeg"\r\n\r\n'
    return head.encode() + data + f"\r\n--{BOUNDARY}--\r\n".encode()


async def drive(url: str, bodies: list[bytes], clients: int, seconds: float, pid: int) -> Load:
    """Send images from a number of clients, each one after the other, for a number of seconds."""
    load = Load()
    turn = itertools.cycle(bodies)
    began = time.perf_counter()
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=60) as client:

        async def send() -> None:
            while time.perf_counter() - began < seconds:
                start = time.perf_counter()
                try:
                    response = await client.post("/v1/predictions", content=next(turn))
                except httpx.HTTPError as error:
                    load.responses[type(error).__name__] += 1
                    continue
                load.responses[str(response.status_code)] += 1
                if response.status_code == 200:
                    load.latencies.append(time.perf_counter() - start)
                elif response.status_code == 429:
                    await asyncio.sleep(float(response.headers["Retry-After"]))

        watching = asyncio.create_task(watch(pid, load))
        await asyncio.gather(*(send() for _ in range(clients)))
        load.seconds = time.perf_counter() - began
        watching.cancel()
    return load


async def watch(pid: int, load: Load) -> None:
    """Record the resident memory of the server and of its workers together."""
    while True:
        children = {
            int(child)
            for thread in Path(f"/proc/{pid}/task").iterdir()
            for child in (thread / "children").read_text(encoding="ascii").split()
        }
        load.server_mib.append(resident(pid))
        load.workers_mib.append(sum(map(resident, children)))
        await asyncio.sleep(SAMPLE_SECONDS)


def resident(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):  # a worker that has ended
        return 0.0
    found = re.search(r"VmRSS:\s+(\d+)", status)
    return int(found[1]) / MIB if found else 0.0


def predict_rate(folder: Path, bundle: list[str], images: int) -> float:
    """Return the images a second of `predict`, without its start-up."""
    command = [sys.executable, "-m", "pneumoscope", "predict", *bundle]

    def seconds(images: Path, out: Path) -> float:
        began = time.perf_counter()
        # Exit code 3: some images were rejected, which is work too.
        done = subprocess.run(
            [*command, str(images), "--out", str(out)], stderr=subprocess.DEVNULL, check=False
        )
        if done.returncode not in {0, 3}:
            raise SystemExit(f"predict ended with exit code {done.returncode}")
        return time.perf_counter() - began

    with tempfile.TemporaryDirectory() as place:
        one = link_copies(folder, 1, Path(place, "one"))
        many = link_copies(folder, images, Path(place, "many"))
        start = seconds(one, Path(place, "one.csv"))
        return (images - 1) / (seconds(many, Path(place, "many.csv")) - start)


def report(clients: int, light: Load, heavy: Load, predicted: float | None) -> None:
    """Print a table for people and one JSON object."""
    facts = {"cpus": available_cpus(), "python": platform.python_version(), "predict_per_s": predicted}
    print(f"{'clients':>8}{'responses/s':>13}{'median ms':>12}{'95% ms':>10}{'worst ms':>10}  responses")
    for count, load in ((1, light), (clients, heavy)):
        if not load.latencies:
            raise SystemExit(f"no image was predicted for {count} clients; responses: {dict(load.responses)}")
        rate = len(load.latencies) / load.seconds
        ordered = sorted(load.latencies)
        median, worst = 1000 * statistics.median(ordered), 1000 * ordered[-1]
        late = 1000 * ordered[int(0.95 * (len(ordered) - 1))]
        print(f"{count:>8}{rate:>13.1f}{median:>12.1f}{late:>10.1f}{worst:>10.1f}  {dict(load.responses)}")
        facts[f"clients_{count}"] = {
            "per_s": rate,
            "median_ms": median,
            "p95_ms": late,
            "worst_ms": worst,
            "responses": dict(load.responses),
            "server_mib": tenths(load.server_mib),
            "workers_mib": tenths(load.workers_mib),
        }
    if predicted is not None:
        facts["share_of_predict"] = len(heavy.latencies) / heavy.seconds / predicted
        print(f"predict: {predicted:.1f} images/s; the server reaches {facts['share_of_predict']:.0%} of it")
    print("memory, MiB, maximum in each tenth of the time under load:")
    print("  server ", *(f"{value:6.0f}" for value in tenths(heavy.server_mib)))
    print("  workers", *(f"{value:6.0f}" for value in tenths(heavy.workers_mib)))
    print(json.dumps(facts))


def tenths(samples: list[float]) -> list[float]:
    """Return the largest sample of each tenth."""
    edges = [i * len(samples) // TENTHS for i in range(TENTHS + 1)]
    return [round(max(samples[a:b]), 1) for a, b in itertools.pairwise(edges) if b > a]


if __name__ == "__main__":
    main()

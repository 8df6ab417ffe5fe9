"""`pneumoscope batch` on a Ray cluster of a head and three workers, one of which is stopped and comes back.

Each is a `ray start` of its own on this machine, with ports of its own. One worker is killed with all its
processes after a quarter of the parts and started again after half of them. The rows must be those of a run
on one machine that nothing interrupts.

    python benchmarks/batch_cluster.py FOLDER [--images N] [--part-size N]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from batch_runs import descendants, finished, parts, rows_of, start, until
from copies import link_copies
from ray.util import get_node_ip_address

RAY = Path(sys.executable).with_name("ray")
WORKERS = 3
PORTS_OF_WORKERS = 200
JOINED = "This command will now block"  # in what `ray start` prints
HOST = get_node_ip_address()  # Ray takes no loopback address


def main() -> None:
    """Make both runs and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="with JPEG or PNG X-rays")
    parser.add_argument("--images", type=int, default=1200)
    parser.add_argument("--part-size", type=int, default=20)
    options = parser.parse_args()
    # `ray start` asks for a token; nodes, driver and workers get it from the environment.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    total = -(-options.images // options.part_size)
    words = ("--part-size", options.part_size)
    with tempfile.TemporaryDirectory(prefix="pc-", dir="/tmp") as made:
        folder = Path(made)
        images = link_copies(options.folder, options.images, folder / "images")
        finished(start(images, folder / "alone", *words), folder / "alone")
        with cluster(folder / "ray") as (address, nodes):
            output = folder / "cluster"
            run = start(images, output, *words, "--address", address, "--workers", WORKERS)
            until(lambda: len(parts(output)) >= total / 4 or run.poll() is not None)
            stop(nodes[1])
            stopped = len(parts(output))
            until(lambda: len(parts(output)) >= total / 2 or run.poll() is not None)
            nodes[1] = worker(address, 1)
            back = len(parts(output))
            summary = finished(run, output)
        same = rows_of(output) == rows_of(folder / "alone")
        result = {
            "images": options.images,
            "parts": total,
            "stopped_at": stopped,
            "back_at": back,
            "same": same,
        }
        print(json.dumps(result | {"seconds": summary["seconds"]}))
        if not same:
            raise SystemExit("rows differ from those of the run on one machine")


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """Start a head without CPUs and three workers of one CPU each; stop them all at the end."""
    port = free_port()
    address = f"{HOST}:{port}"
    head = node(
        0, "--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={folder}"
    )
    nodes = [head]
    try:
        until(lambda: healthy(address))
        nodes.extend(worker(address, number) for number in range(WORKERS))
        yield address, nodes
    finally:
        for one in nodes[::-1]:
            stop(one)


def worker(address: str, number: int) -> subprocess.Popen[bytes]:
    """Start a worker of one CPU; it has joined when this returns, as several at once time out on few CPUs."""
    started = node(number + 1, f"--address={address}", "--num-cpus=1")
    until(lambda: JOINED in log_of(number + 1).read_text() or started.poll() is not None)
    if started.poll() is not None:
        raise SystemExit(f"a worker did not start; see {log_of(number + 1)}")
    return started


def node(number: int, *words: str) -> subprocess.Popen[bytes]:
    """Run `ray start` with ports that no other node has."""
    first = 20000 + 1000 * number + os.getpid() % 700
    names = ("node-manager-port", "object-manager-port", "runtime-env-agent-port", "metrics-export-port")
    agents = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port")
    ports = [f"--{name}={free_port()}" for name in (*names, *agents)]
    ports += [f"--min-worker-port={first}", f"--max-worker-port={first + PORTS_OF_WORKERS}"]
    limits = ("--object-store-memory=100000000", "--disable-usage-stats")
    command = [str(RAY), "start", "--block", f"--node-ip-address={HOST}", *limits, *ports, *words]
    with log_of(number).open("w") as log:
        return subprocess.Popen(command, start_new_session=True, stdout=log, stderr=log)


def log_of(number: int) -> Path:
    """Return the file for what a node prints."""
    return Path(tempfile.gettempdir()) / f"batch-cluster-node-{number}.log"


def stop(one: subprocess.Popen[bytes]) -> None:
    """Kill a node with all its processes, as a machine that loses power."""
    one.send_signal(signal.SIGSTOP)  # starts nothing more
    for number in descendants(one.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    one.kill()
    one.wait()


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as one:
        one.bind((HOST, 0))
        return int(one.getsockname()[1])


def healthy(address: str) -> bool:
    """Return whether the head is ready."""
    command = [str(RAY), "health-check", "--address", address]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    main()

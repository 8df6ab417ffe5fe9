"""The DICOM node as its own process."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from log_scan import SCAN
from pneumoscope.cli import main
from pneumoscope.serve.dicom.journal import Journal
from pneumoscope.serve.dicom.status import NodeStatus, read_status

__all__ = [
    "Ended",
    "RunningNode",
    "free_port",
    "kill",
    "running_node",
    "start_node",
    "until",
    "write_config",
]


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], Any], seconds: float = 60.0, every: float = 0.05) -> Any:
    """Wait until something is true and return it; fail after so many seconds."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {seconds:g} s"
        time.sleep(every)


def write_config(folder: Path, bundle: Path, /, **settings: Any) -> Path:
    """Write node.yaml for a node on this machine; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "folder": str(folder / "node"),
        "bundle": str(bundle),
        "listen": {"port": 0},
        "metrics": {"port": 0},
        "process": {"workers": 1, "quiet_seconds": 0.1, "seconds": 20},
        "retry": {"first_seconds": 0.2, "longest_seconds": 1, "settle_seconds": 0.3},
        "limits": {"min_free_mb": 0},
    }
    for name, value in settings.items():
        both = isinstance(value, dict) and isinstance(content.get(name), dict)
        content[name] = content[name] | value if both else value
    path = folder / "node.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


class Ended(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str


@dataclass
class RunningNode:
    """A node in its own process.

    Parameters
    ----------
    process : Popen
    config : Path
        node.yaml.
    port, metrics_port : int
    log : list of str
        Lines so far.
    """

    process: subprocess.Popen[str]
    config: Path
    port: int = 0
    metrics_port: int = 0
    log: list[str] = field(default_factory=list)
    reader: threading.Thread = field(default_factory=threading.Thread)

    @property
    def folder(self) -> Path:
        """Of journal and files."""
        return Path(yaml.safe_load(self.config.read_text())["folder"])

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the log records of an event."""
        found = [json.loads(line) for line in self.log if line.startswith("{")]
        return [one for one in found if one["event"] == name]

    def metrics(self) -> dict[str, float]:
        """Return all metrics by name and labels."""
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as response:
            lines = response.read().decode().splitlines()
        return {
            name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")
        }

    def command(self, *words: str) -> Ended:
        """Run ``pneumoscope dicom`` with this configuration, in this process."""
        out, err, code = io.StringIO(), io.StringIO(), 0
        with redirect_stdout(out), redirect_stderr(err):
            try:
                main(["dicom", *words, "--config", str(self.config)])
            except SystemExit as end:
                code = int(end.code or 0)
        return Ended(code, out.getvalue(), err.getvalue())

    def status(self) -> NodeStatus:
        """Return what the journal says now."""
        journal = Journal(self.folder)
        try:
            return read_status(journal, 3600)
        finally:
            journal.close()

    def end(self) -> None:
        """Wait until the process has ended, and read the rest of its log, which names no patient."""
        self.process.wait(60)
        self.reader.join(10)
        assert self.process.stderr is not None
        self.process.stderr.close()
        assert SCAN.leaks() == []


def start_node(config: Path, log: Path | None = None, **environment: str) -> RunningNode:
    """Start a node and wait until it listens; its log goes to a file as well if one is given."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pneumoscope", "dicom", "serve", "--config", str(config)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **environment},
    )
    node = RunningNode(process, config)
    ready = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            node.log.append(line)
            SCAN.log(line)
            if log is not None:
                with log.open("a", encoding="utf-8") as file:
                    file.write(line)
            if line.startswith("PNEUMOSCOPE@"):
                head, _, rest = line.partition("  (")
                node.port = int(head.rsplit(":", 1)[1])
                if "metrics http://" in rest:
                    node.metrics_port = int(rest.split("/metrics")[0].rsplit(":", 1)[1])
                ready.set()
        ready.set()

    node.reader = threading.Thread(target=read, daemon=True)
    node.reader.start()
    ready.wait(120)
    if not node.port:
        process.kill()
        node.end()
        raise RuntimeError(f"the node did not start: {node.log}")
    return node


def kill(node: RunningNode) -> None:
    """End a node at once, as a power cut would end it."""
    node.process.send_signal(signal.SIGKILL)
    node.end()


@contextmanager
def running_node(config: Path, log: Path | None = None) -> Iterator[RunningNode]:
    """Run a node for as long as the context lasts; at its end it must stop within a minute."""
    node = start_node(config, log)
    try:
        yield node
        node.process.terminate()
        assert node.process.wait(90) == 0, node.log[-5:]
    finally:
        node.process.kill()
        node.end()

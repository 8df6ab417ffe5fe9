"""Build the images of the Dockerfile without a container engine, and run each as it would be run in one.

The steps are those of the Dockerfile: its RUN and COPY instructions are carried out in a copy of a Debian
root of debootstrap, in place of the base image. Then the command of the image runs there as the user of the
image, without capabilities, with a read-only root file system and a tmpfs at /tmp, until its health check
succeeds. What a container engine adds, layers, network and limits, is not checked. As root:

    debootstrap --variant=minbase --include=python3,python3-venv bookworm /tmp/debian
    python3 deploy/container/check.py --root /tmp/debian --work /tmp/images --target serve
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DOCKERFILE = Path(__file__).with_name("Dockerfile")
HEALTHY_SECONDS = 90
# What a step may need from this machine to reach a package index.
PASSED_ON = (
    "PIP_",
    "SSL_CERT_",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
)


@dataclass
class Stage:
    """What the instructions of a stage have set so far."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    directory: str = "/"
    user: str = "0:0"
    health: list[str] = field(default_factory=list)
    entry: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Yield the instructions of a Dockerfile, with continued lines in one."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, value = line.strip().partition(" ")
            yield name.upper(), value.strip()


class Builder:
    """Carries out the instructions of one Dockerfile.

    Parameters
    ----------
    debian : Path
        Root that stands for the base image; it is not changed.
    work : Path
        Gets one root per stage.
    binds : sequence of Path
        Folders and files of this machine that steps may read, such as a folder of wheels.
    """

    def __init__(self, debian: Path, work: Path, binds: Sequence[Path]) -> None:
        self.debian, self.work, self.binds = debian, work, binds
        self.texts = self._stages()
        self.built: dict[str, Stage] = {}

    @staticmethod
    def _stages() -> dict[str, list[tuple[str, str]]]:
        """Return the instructions of each stage by its name, FROM first."""
        stages: dict[str, list[tuple[str, str]]] = {}
        for name, value in instructions(DOCKERFILE.read_text(encoding="utf-8")):
            if name == "FROM":
                stages[value.split()[2]] = []
            if stages:
                list(stages.values())[-1].append((name, value))
        return stages

    def build(self, name: str) -> Stage:
        """Build a stage, and before it those that it begins from or copies from."""
        if name in self.built:
            return self.built[name]
        (_, begin), *rest = self.texts[name]
        before = begin.split()[0]
        stage = Stage(self.work / name)
        if before in self.texts:
            earlier = self.build(before)
            stage = Stage(stage.root, dict(earlier.environment), earlier.directory, earlier.user)
            _copy_root(earlier.root, stage.root)
        else:
            _copy_root(self.debian, stage.root)
            python = stage.root / "usr/local/bin/python"  # where the image has it
            python.symlink_to("/usr/bin/python3")
            stage.environment["PATH"] = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
        for instruction, value in rest:
            self._carry_out(stage, instruction, value)
        self.built[name] = stage
        return stage

    def _carry_out(self, stage: Stage, instruction: str, value: str) -> None:
        print(f"[{stage.root.name}] {instruction} {value}", flush=True)
        if instruction == "ENV":
            for word in shlex.split(value):
                name, _, content = word.partition("=")
                stage.environment[name] = content.replace("$PATH", stage.environment["PATH"])
        elif instruction == "WORKDIR":
            stage.directory = value
            (stage.root / value.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif instruction == "COPY":
            self._copy(stage, value.split())
        elif instruction == "RUN":
            done = inside(stage, ["/bin/sh", "-c", value], binds=self.binds)
            if done.wait():
                sys.exit(f"{DOCKERFILE}: exit code {done.returncode} of: {value}")
        elif instruction == "USER":
            stage.user = value
        elif instruction == "HEALTHCHECK":
            stage.health = [] if value == "NONE" else json.loads(value[value.index("[") :])
        elif instruction in {"ENTRYPOINT", "CMD"}:
            setattr(stage, "entry" if instruction == "ENTRYPOINT" else "command", json.loads(value))
        elif instruction not in {"EXPOSE", "VOLUME"}:
            sys.exit(f"{DOCKERFILE}: {instruction} is not known to this check; add it")

    def _copy(self, stage: Stage, words: list[str]) -> None:
        source = REPOSITORY
        if words[0].startswith("--from="):
            source = self.build(words.pop(0).removeprefix("--from=")).root
        *names, target = words
        place = stage.root / os.path.join(stage.directory, target).lstrip("/")  # noqa: PTH118
        for name in names:
            one = source / name.lstrip("/")
            if one.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(one, place, symlinks=True, dirs_exist_ok=True, ignore=ignored)
            else:
                shutil.copy2(one, place / one.name if target.endswith("/") else place)


def _copy_root(source: Path, target: Path) -> None:
    if target.exists():
        shutil.rmtree(target)
    subprocess.run(["cp", "--archive", "--reflink=auto", source, target], check=True)


def inside(
    stage: Stage, command: list[str], *, binds: Sequence[Path] = (), sealed: bool = False
) -> subprocess.Popen[bytes]:
    """Start a command in the root of a stage, with its environment.

    Parameters
    ----------
    binds : sequence of Path
        Of this machine, visible at the same place, read-only.
    sealed : bool
        As the user of the image, without capabilities, with a read-only root; and with the environment of the
        image only.
    """
    root, (uid, gid) = shlex.quote(str(stage.root)), stage.user.split(":")
    steps = ["set -e", f"mount --bind {root} {root}"]
    for path in [Path("/etc/resolv.conf"), *binds]:
        place = shlex.quote(f"{stage.root}{path}")
        make = f"mkdir -p {place}" if path.is_dir() else f"mkdir -p $(dirname {place}); touch {place}"
        if not sealed:
            steps.append(f"{make}; mount --bind {shlex.quote(str(path))} {place}")
    if sealed:
        steps.append(f"mount -o remount,ro,bind {root}")
        # The last one is a volume.
        places = [one for one in ("tmp", "dev/shm", "var/lib/pneumoscope") if (stage.root / one).is_dir()]
        steps += [f"mount -t tmpfs -o mode=0700,uid={uid},gid={gid} tmpfs {root}/{one}" for one in places]
    steps.append(f"mount -t proc proc {root}/proc")
    drop = f"setpriv --reuid {uid} --regid {gid} --clear-groups"
    if sealed:
        drop += " --no-new-privs --bounding-set=-all --inh-caps=-all"
    steps.append(
        f'exec chroot {root} {drop} sh -c \'cd "$0" && exec "$@"\' {shlex.quote(stage.directory)} "$@"'
    )
    kept = {} if sealed else {k: v for k, v in os.environ.items() if k.startswith(PASSED_ON)}
    return subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", "\n".join(steps), "sh", *command], env=kept | stage.environment
    )


def check(stage: Stage, command: list[str]) -> None:
    """Run an image until its health check succeeds, and stop it; one without it must end with exit code 0."""
    sealed = inside(stage, ["grep", "-q", "^[^ ]* / [^ ]* ro[, ]", "/proc/mounts"], sealed=True)
    if sealed.wait():
        sys.exit(f"{stage.root.name}: the root file system is writable")
    service = inside(stage, stage.entry + (command or stage.command), sealed=True)
    try:
        if not stage.health:
            if service.wait(timeout=HEALTHY_SECONDS):
                sys.exit(f"{stage.root.name}: exit code {service.returncode}")
            return
        began = time.monotonic()
        while inside(stage, stage.health, sealed=True).wait():
            if service.poll() is not None or time.monotonic() - began > HEALTHY_SECONDS:
                sys.exit(f"{stage.root.name}: not healthy")
            time.sleep(1)
        print(f"[{stage.root.name}] healthy after {time.monotonic() - began:.0f} s", flush=True)
        service.send_signal(signal.SIGTERM)
        if code := service.wait(timeout=HEALTHY_SECONDS):
            sys.exit(f"{stage.root.name}: exit code {code} after SIGTERM")
        print(f"[{stage.root.name}] stopped by SIGTERM with exit code 0", flush=True)
    finally:
        if service.poll() is None:
            service.kill()
            service.wait()


def main() -> None:
    """Build and check the named targets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="root of debootstrap")
    parser.add_argument("--work", type=Path, required=True, help="folder for the roots of the stages")
    parser.add_argument("--target", action="append", required=True, help="stage to build and check")
    parser.add_argument("--bind", type=Path, action="append", default=[], help="path that steps may read")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    builder = Builder(options.root.resolve(), options.work.resolve(), options.bind)
    for name in options.target:
        stage = builder.build(name)
        if name == "dicom":
            place = stage.root / "etc/pneumoscope"
            place.mkdir(exist_ok=True)
            shutil.copy(DOCKERFILE.with_name("node.yaml"), place)
        check(stage, [])
        size = subprocess.run(["du", "-sm", stage.root / "opt"], check=True, capture_output=True, text=True)
        print(f"[{name}] checked; /opt has {size.stdout.split()[0]} MB", flush=True)


if __name__ == "__main__":
    main()

"""Command-line tools of Debian's dcmtk and dicom3tools that the tests check DICOM objects with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

__all__ = ["errors_of", "require_tools", "run_tool", "sr_tree", "tool"]

PACKAGES = {"dciodvfy": "dicom3tools"}


def require_tools(*names: str) -> None:
    """Skip where a tool is absent, and say which package has it."""
    for name in names:
        if tool(name) is None:
            pytest.skip(f"{name} is absent: apt-get install {PACKAGES.get(name, 'dcmtk')}")


def tool(name: str) -> str | None:
    """Return where a tool is: pynetdicom installs commands of the same names beside Python."""
    beside = Path(sys.executable).parent
    folders = os.environ.get("PATH", "").split(os.pathsep)
    return shutil.which(name, path=os.pathsep.join(one for one in folders if Path(one) != beside))


def run_tool(*command: str | Path, check: bool = True) -> str:
    """Run a tool; return its output and its messages."""
    require_tools(str(command[0]))
    done = subprocess.run(
        [str(tool(str(command[0]))), *(str(word) for word in command[1:])],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=False,
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def errors_of(path: Path) -> set[str]:
    """Return the errors that dciodvfy reports of a file."""
    lines = run_tool("dciodvfy", path, check=False).splitlines()
    return {line for line in lines if line.startswith("Error")}


def sr_tree(path: Path) -> list[str]:
    """Return the lines of the content tree that dsrdump prints, without the values of UIDs."""
    return run_tool("dsrdump", "+Pl", "+Pc", path).splitlines()

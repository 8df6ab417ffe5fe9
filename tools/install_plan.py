"""Say what an installation will download before it starts, and write down exactly that.

`make setup` calls it between resolving and installing. It needs nothing but Python.

    pip install --dry-run --report plan.json REQUIREMENTS
    python tools/install_plan.py plan.json --write plan.txt
    pip install --no-deps --requirement plan.txt
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

CUDA = ("nvidia-", "cuda-", "triton")  # what the names of its packages begin with
NAMED = 5  # packages, the largest, that are named
CONNECTIONS = 16
TIMEOUT = 20  # seconds


@dataclass(frozen=True)
class Package:
    """One package to install.

    Parameters
    ----------
    name, version : str
    url : str
        Of its file.
    """

    name: str
    version: str
    url: str

    def size(self) -> int | None:
        """Return the size of its file in bytes; None where it cannot be found out."""
        parts = urlsplit(self.url)
        try:
            if parts.scheme == "file":
                return Path(url2pathname(parts.path)).stat().st_size
            head = urllib.request.Request(self.url, method="HEAD")
            with urllib.request.urlopen(head, timeout=TIMEOUT) as response:
                return int(response.headers["Content-Length"])
        except (OSError, TypeError, ValueError):  # no connection, or a server that does not say
            return None


def read_plan(path: Path) -> list[Package]:
    """Read the packages of pip's report, without the project itself, which is a folder."""
    report = json.loads(path.read_text(encoding="utf-8"))
    return [
        Package(one["metadata"]["name"], one["metadata"]["version"], one["download_info"]["url"])
        for one in report["install"]
        if "dir_info" not in one["download_info"]
    ]


def summary(packages: list[Package]) -> str:
    """Return the number of packages, their size together and the largest of them, in a line."""
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        found = list(pool.map(Package.size, packages))
    sizes = {one.name: size for one, size in zip(packages, found, strict=True) if size is not None}
    largest = sorted(sizes, key=lambda name: -sizes[name])[:NAMED]
    text = f"{len(packages)} packages, {sum(sizes.values()) / 1e6:,.0f} MB to download"
    if len(sizes) < len(packages):
        text += f" and {len(packages) - len(sizes)} packages of unknown size"
    return text + "".join(f"\n  {sizes[name] / 1e6:6,.0f} MB  {name}" for name in largest)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path, help="report of `pip install --dry-run --report`")
    parser.add_argument("--write", type=Path, metavar="FILE", help="requirements file to write")
    parser.add_argument("--no-cuda", action="store_true", help="stop if CUDA would be downloaded")
    given = parser.parse_args()
    packages = read_plan(given.plan)
    print(summary(packages), flush=True)
    cuda = [one.name for one in packages if one.name.startswith(CUDA)]
    if given.no_cuda and cuda:
        sys.exit(f"stopped: CUDA would be downloaded ({', '.join(sorted(cuda))})")
    if given.write:
        lines = [f"{one.name}=={one.version}\n" for one in packages]
        given.write.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()

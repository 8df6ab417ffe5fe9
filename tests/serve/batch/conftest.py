"""One Ray, one object store and one folder of X-rays, which the tests of batch share."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundles import make_bundle
from images import write_image
from pneumoscope.model.bundle import Bundle

pytest.importorskip("ray", reason="batch needs more packages: in a clone, pip install '.[batch]'")

from pneumoscope.serve.batch.store import filesystem


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("batch") / "bundle")


@pytest.fixture(scope="session")
def store_options() -> Iterator[str]:
    """An S3-compatible server, as options of a URI, with the bucket ``xrays``.

    It is the one that PNEUMOSCOPE_S3 describes, with its credentials in the usual variables, or else moto's.
    """
    if given := os.environ.get("PNEUMOSCOPE_S3"):
        filesystem("s3", "xrays", given).create_dir("xrays")
        yield given
        return
    moto = pytest.importorskip("moto.server", reason="tests of S3 need moto[server]")
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = f"endpoint_override=http://{host}:{port}&region=us-east-1&allow_bucket_creation=true"
    filesystem("s3", "xrays", options).create_dir("xrays")
    yield options
    server.stop()


@pytest.fixture(scope="package")
def ray_address(store_options: str) -> Iterator[str]:
    """A Ray of two CPUs in this process, and where another process can join it."""
    from pneumoscope.serve.batch import run

    with warnings.catch_warnings():
        # Ray copies its own settings, those that it calls deprecated too.
        warnings.filterwarnings("ignore", "`use_[a-z0-9_]+` is deprecated", DeprecationWarning)
        ray = run._import_ray(local=True)
        with run._started(ray, run.BatchSettings()):
            yield ray.get_runtime_context().gcs_address


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images, one of them in a subfolder."""
    for number in range(11):
        write_image(tmp_path / "in" / f"{number:02}.png", seed=number)
    write_image(tmp_path / "in" / "sub" / "11.png", seed=11)
    return tmp_path / "in"

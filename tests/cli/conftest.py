from __future__ import annotations

import pytest

from bundles import make_bundle
from images import write_image
from pneumoscope.cli import main


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def folder(tmp_path):
    """Return a folder of four X-rays."""
    for number in range(4):
        write_image(tmp_path / "in" / f"{number}.png", seed=number)
    return tmp_path / "in"


@pytest.fixture
def predict(bundle, capsys):
    def run(*words):
        with pytest.raises(SystemExit) as left:
            main(["predict", "--bundle", str(bundle.path), *map(str, words)])
        return left.value.code, *capsys.readouterr()

    return run

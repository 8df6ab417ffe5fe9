from __future__ import annotations

import json

import pytest

from bundles import make_bundle
from pneumoscope import __version__
from pneumoscope.cli import main


@pytest.fixture
def info(tmp_path, capsys):
    bundle = make_bundle(tmp_path, results={"test": {"auroc": 0.9123}})

    def run(*words):
        with pytest.raises(SystemExit) as left:
            main(["info", "--bundle", str(tmp_path), *words])
        assert left.value.code == 0
        return bundle, capsys.readouterr().out

    return run


def test_text_names_the_bundle_its_results_and_what_can_be_read(info):
    bundle, text = info()
    for part in (
        bundle.identity,
        "bacterial",
        "balanced (default)",
        "test.auroc",
        "0.9123",
        "onnxruntime",
        "DICOM",
    ):
        assert part in text
    assert not any(line.endswith(" ") for line in text.splitlines())


def test_json_holds_the_whole_manifest(info):
    bundle, text = info("--json")
    facts = json.loads(text)
    assert facts["pneumoscope"] == __version__
    manifest = bundle.manifest.model_dump(mode="json")
    assert {name: facts["bundle"][name] for name in manifest} == manifest
    assert facts["formats"]["PNG"]


def test_card_is_the_card_alone(info):
    _, text = info("--card")
    assert text == "# A model for tests\n"

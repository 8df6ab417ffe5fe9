from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundles import make_bundle
from pneumoscope.domain import Estimate, OperatingPoint, Population, Target
from pneumoscope.errors import BundleError
from pneumoscope.image.standardise import InputSpec
from pneumoscope.model import bundle as bundle_module
from pneumoscope.model.bundle import copy_bundle, head_bytes, load_bundle, sha256_of, write_bundle
from pneumoscope.model.manifest import BundleManifest, Calibrator


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "bundle")


def test_what_is_written_is_what_is_read(tmp_path):
    written = make_bundle(
        tmp_path,
        input=InputSpec(size=96, contrast="clahe"),
        calibration={
            "calibrator": Calibrator(method="temperature", scale=(0.8,)),
            "operating_points": [
                OperatingPoint("screening", 0.2, sensitivity=Estimate(0.97, 0.95, 0.99)),
                OperatingPoint("balanced", 0.5),
            ],
            "conformal": (0.1, 0.2, 0.3),
        },
        validated=(Population("children", (1, 5), ("AP",), patients=286),),
        results={"evaluation": {"evaluated_on": "test", "detection": {"auroc": {"value": 0.9}}}},
    )
    read = load_bundle(tmp_path)
    assert read.manifest == written.manifest
    assert read.manifest.operating_point("screening").sensitivity == Estimate(0.97, 0.95, 0.99)
    assert read.head_weight.shape == (3, 4)
    assert read.head_weight.dtype == np.float32
    assert read.card.startswith("# ")
    assert read.identity == f"tiny@{read.manifest.files['model.onnx'][:12]}"


def test_recalibrated_bundles_have_identities_of_their_own(tmp_path):
    parent = make_bundle(tmp_path / "parent")
    child = {"provenance": {"parent": parent.identity}}
    one = make_bundle(tmp_path / "one", calibration={"calibrator": {"scale": (0.5,)}}, **child)
    two = make_bundle(tmp_path / "two", calibration={"calibrator": {"scale": (0.4,)}}, **child)
    again = make_bundle(tmp_path / "again", calibration={"calibrator": {"scale": (0.5,)}}, **child)
    assert one.manifest.files["model.onnx"] == parent.manifest.files["model.onnx"]
    assert one.identity.startswith(f"{parent.identity}+")
    assert one.identity == again.identity
    assert len({parent.identity, one.identity, two.identity}) == 3


def test_the_head_is_read_as_it_was_written(tmp_path):
    weight, bias = np.eye(3, 4, dtype=np.float32), np.arange(3, dtype=np.float32)
    background = np.ones((4, 2, 2), np.float32)
    bundle = make_bundle(tmp_path)
    for stored in (None, background):
        bundle = write_bundle(tmp_path, bundle.manifest, {"head.npz": head_bytes(weight, bias, stored)})
        np.testing.assert_array_equal(bundle.head_weight, weight)
        np.testing.assert_array_equal(bundle.head_bias, bias)
    np.testing.assert_array_equal(bundle.background, background)


def test_a_run_folder_gives_the_bundle_in_it(bundle):
    assert load_bundle(bundle.path.parent).path == bundle.path


@pytest.mark.parametrize("name", ["model.onnx", "head.npz", "card.md"])
def test_an_altered_or_missing_file_does_not_load(bundle, name):
    content = (bundle.path / name).read_bytes()
    (bundle.path / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleError, match=f"{name} is not the file"):
        load_bundle(bundle.path)
    (bundle.path / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        load_bundle(bundle.path)


def as_npz(**arrays):
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no archive", "damaged"),
        (as_npz(weight=np.zeros((3, 4)))[:300], "damaged"),
        (as_npz(bias=np.zeros(3)), "has no weight"),
        (as_npz(weight=np.zeros((2, 4)), bias=np.zeros(3)), "not one row of weights per class"),
        (as_npz(weight=np.zeros((3, 4)), bias=np.zeros(2)), "not one bias per class"),
    ],
)
def test_a_damaged_head_with_the_right_hash_is_one_line(bundle, content, message):
    damaged = write_bundle(bundle.path, bundle.manifest, {"head.npz": content})
    with pytest.raises(BundleError, match=f"head.npz: {message}"):
        _ = damaged.head_weight, damaged.head_bias


@pytest.mark.parametrize("content", ["[]", "null", '"bundle"'])
def test_an_index_that_is_no_object_is_damaged(bundle, content):
    (bundle.path / "bundle.json").write_text(content)
    with pytest.raises(BundleError, match=r"damaged \(it is no JSON object\); copy the whole bundle again"):
        load_bundle(bundle.path)


def test_no_hash_may_be_missing_and_no_file_outside_the_bundle(bundle):
    path = bundle.path / "bundle.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"files": {}}))
    with pytest.raises(BundleError, match="lists no"):
        load_bundle(bundle.path)
    path.write_text(json.dumps(stored | {"files": stored["files"] | {"../secret": "0"}}))
    with pytest.raises(BundleError, match="outside the bundle"):
        load_bundle(bundle.path)


def test_a_lung_segmenter_is_required_where_the_input_needs_one(tmp_path):
    with_lungs = make_bundle(tmp_path, input=InputSpec(size=64, lungs="crop"))
    assert with_lungs.lungs_path.name == "lungs.onnx"
    with_lungs.lungs_path.unlink()
    with pytest.raises(BundleError, match=r"lungs\.onnx"):
        load_bundle(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 3}, "has format 3, and .* reads up to 2; upgrade Pneumoscope$"),
        ({"format_version": "new"}, "format_version"),
        ({"colour": "red"}, "colour"),
        ({"classes": ["normal"]}, "classes"),
        ({"classes": ["normal", "bacterial", "bacterial "]}, "the same name"),
        ({"target": {"name": "pneumonia", "classes": ["covid"]}}, "must be some of"),
        ({"target": {"name": "pneumonia", "classes": []}}, "must be some of"),
        ({"target": {"name": "any", "classes": ["normal", "bacterial", "viral"]}}, "but not all"),
        ({"target": {"name": "viral", "classes": ["bacterial", "viral"]}}, "named like a class"),
        (
            {
                "classes": ["normal", "lung_opacity"],
                "target": {"name": "lung opacity", "classes": ["lung_opacity"]},
            },
            "named like a class",
        ),
        ({"state": "finished"}, "state"),
        ({"default_operating_point": "gone"}, r"bundle\.json: default operating point 'gone' is not"),
        ({"calibrations": [{"conformal": [0.1]}]}, "conformal threshold"),
        ({"calibrations": [{"calibrator": {"scale": [1, 2]}}]}, "one scale"),
        ({"calibrations": [{"population": "adults"}]}, "populations"),
        ({"calibrations": [{}, {}]}, "populations"),
        ({"calibrations": []}, "calibrations"),
        ({"input": {"size": 4}}, "input.size"),
    ],
)
def test_an_inconsistent_manifest_is_one_clear_line(bundle, change, message):
    path = bundle.path / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BundleError, match=message) as caught:
        load_bundle(bundle.path)
    assert str(caught.value).count("\n") == 0


@given(st.binary(max_size=200))
def test_any_bytes_as_a_manifest_are_one_clear_error(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp() / "fuzzed-bundle"
    folder.mkdir(exist_ok=True)
    (folder / "bundle.json").write_bytes(content)
    with pytest.raises(BundleError, match="fuzzed-bundle"):
        load_bundle(folder)


def test_rewriting_keeps_the_files_and_renews_the_hashes(bundle):
    renamed = bundle.manifest.model_copy(update={"name": "other"})
    again = write_bundle(bundle.path, renamed, {"card.md": b"# New\n"})
    assert again.identity.startswith("other@")
    assert again.card == "# New\n"
    assert again.manifest.files["model.onnx"] == bundle.manifest.files["model.onnx"]
    assert again.manifest.files["card.md"] != bundle.manifest.files["card.md"]
    assert not list(bundle.path.glob("*.new"))


def test_only_new_content_is_hashed_and_unlisted_files_stay_unlisted(bundle, monkeypatch):
    hashed = []
    monkeypatch.setattr(bundle_module, "sha256_of", lambda path: hashed.append(path.name) or sha256_of(path))
    (bundle.path / "gate.npz").write_bytes(b"of an earlier bundle")
    again = write_bundle(bundle.path, bundle.manifest, {"card.md": b"# New\n"})
    assert hashed == ["card.md"]
    assert set(again.manifest.files) == {"model.onnx", "head.npz", "card.md"}
    assert load_bundle(bundle.path).manifest == again.manifest


def test_a_bundle_that_cannot_be_written_again_is_left_as_it_was(bundle):
    """A full disk, or a file to copy that is gone, must not cost the bundle."""
    new = {"card.md": b"# New\n", "head.npz": bundle.path / "gone.npz"}
    with pytest.raises(BundleError, match="the bundle cannot be written"):
        write_bundle(bundle.path, bundle.manifest, new)
    assert load_bundle(bundle.path).manifest == bundle.manifest
    assert {one.name for one in bundle.path.iterdir()} == {*bundle.manifest.files, "bundle.json"}


def test_a_copy_of_a_file_that_changed_meanwhile_is_no_bundle(bundle, tmp_path):
    (bundle.path / "head.npz").write_bytes(b"altered after the bundle was loaded")
    with pytest.raises(BundleError, match=r"head\.npz changed while it was copied"):
        copy_bundle(bundle, tmp_path / "copy")
    with pytest.raises(BundleError, match="not a bundle"):
        load_bundle(tmp_path / "copy")


def test_a_draft_loads_only_where_drafts_are_expected(tmp_path):
    make_bundle(tmp_path, state="draft")
    assert load_bundle(tmp_path).manifest.state == "draft"
    with pytest.raises(BundleError, match=r"is a draft.*--resume") as caught:
        load_bundle(tmp_path, allow_draft=False)
    assert "recalibrate" not in str(caught.value)  # which takes no draft either


def test_unknown_operating_points_name_the_known_ones(bundle):
    with pytest.raises(BundleError, match="it has balanced"):
        bundle.manifest.operating_point("strict")


def test_a_manifest_cannot_be_changed():
    manifest = BundleManifest(
        name="x",
        classes=("normal", "pneumonia"),
        target=Target("pneumonia", ("pneumonia",)),
        input=InputSpec(),
    )
    with pytest.raises(ValueError, match="frozen"):
        manifest.name = "y"

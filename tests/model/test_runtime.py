from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest

from bundles import FEATURES, STRIDE, lungs_onnx, make_bundle
from pneumoscope.errors import BundleError
from pneumoscope.model.lungs import OnnxLungSegmenter
from pneumoscope.model.runtime import OnnxRuntime


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("tiny"))


def test_outputs_come_by_name_for_any_batch(bundle):
    network = OnnxRuntime(bundle.model_path)
    assert set(network.outputs) == {"logits", "features"}
    batch = np.random.default_rng(0).random((5, 1, 64, 64), np.float32)
    features, logits = network(batch, ("features", "logits"))
    assert features.shape == (5, FEATURES, 64 // STRIDE, 64 // STRIDE)
    head = np.load(bundle.path / "head.npz")
    expected = features.mean(axis=(2, 3)) @ head["weight"].T + head["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    (one,) = network(batch[:1], ("logits",))
    np.testing.assert_allclose(one[0], logits[0], rtol=1e-5)


def test_threads_may_share_one_network(bundle):
    network = OnnxRuntime(bundle.model_path)
    batches = np.random.default_rng(0).random((16, 2, 1, 64, 64), np.float32)
    alone = [network(batch, ("logits",))[0] for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda batch: network(batch, ("logits",))[0], batches))
    np.testing.assert_array_equal(alone, together)


@pytest.mark.parametrize("content", [b"", b"no network", b"\x08\x0a" * 50])
def test_what_is_no_network_is_one_clear_error(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.onnx: not a network") as caught:
        OnnxRuntime(path)
    assert "\n" not in str(caught.value)


def test_a_network_that_does_not_state_whose_expert_it_has_is_one_clear_error(bundle, tmp_path):
    model = onnx.load(bundle.model_path)
    onnx.helper.set_model_props(model, {"expert": "child"})
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(BundleError, match=r"model\.onnx: does not state whose expert it has"):
        OnnxRuntime(tmp_path / "model.onnx")


def test_a_missing_network_is_one_clear_error(tmp_path):
    with pytest.raises(BundleError, match="not a network"):
        OnnxRuntime(tmp_path / "gone.onnx")


def test_the_segmenter_gives_its_own_map_for_a_image_of_any_size(tmp_path):
    (tmp_path / "lungs.onnx").write_bytes(lungs_onnx())
    segment = OnnxLungSegmenter(tmp_path / "lungs.onnx")
    for shape in ((300, 200), (128, 128), (17, 1900)):
        found = segment(np.full(shape, 0.5, np.float32))
        assert found.shape == (128, 128)
        assert found[60, 40] == 1
        assert found[0, 0] == 0


def test_many_images_at_once_give_the_same_maps(tmp_path):
    (tmp_path / "lungs.onnx").write_bytes(lungs_onnx())
    segment = OnnxLungSegmenter(tmp_path / "lungs.onnx")
    images = np.random.default_rng(0).random((5, 128, 128), dtype=np.float32)
    np.testing.assert_array_equal(segment.batch(images), [segment(image) for image in images])

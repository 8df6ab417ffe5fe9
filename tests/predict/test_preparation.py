from __future__ import annotations

import numpy as np
import pytest

from bundles import make_bundle
from images import write_image
from pneumoscope.errors import Reason, UnreadableImageError
from pneumoscope.image.decode import read_radiograph
from pneumoscope.image.standardise import InputSpec, standardise
from pneumoscope.model.lungs import OnnxLungSegmenter
from pneumoscope.predict.preparation import Preparation


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    spec = InputSpec(size=64, lungs="crop", window="lungs")
    return make_bundle(tmp_path_factory.mktemp("lungs"), input=spec)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    paths = [write_image(folder / f"{seed}.png", seed, 100 + 20 * seed, 140) for seed in range(5)]
    write_image(paths[1], height=20, width=20)
    paths[3].write_bytes(b"")
    return paths


def test_together_each_image_becomes_what_it_becomes_alone(bundle, paths):
    prepared = Preparation(bundle).read([(str(path), None) for path in paths])
    assert [one.score.path for one in prepared] == [str(path) for path in paths]
    assert [one.score.status for one in prepared] == ["ok", "rejected", "ok", "unreadable", "ok"]
    segment = OnnxLungSegmenter(bundle.lungs_path)
    for path, one in zip(paths, prepared, strict=True):
        assert (one.input is not None) == (one.score.status == "ok")
        if one.input:
            alone = standardise(read_radiograph(path), bundle.manifest.input, segment)
            np.testing.assert_array_equal(one.input.pixels, alone.pixels)
            assert one.input.region == alone.region


def test_by_force_what_the_gate_rejects_is_prepared_with_its_reasons(bundle, paths):
    (one,) = Preparation(bundle, force=True).read([(str(paths[1]), None)])
    assert one.score.status == "ok"
    assert one.score.reasons == (Reason.TOO_SMALL,)
    assert one.input is not None


def test_an_error_found_before_reading_is_an_answer_under_its_own_path(bundle):
    error = UnreadableImageError("gone.png", Reason.NOT_FOUND, "there is no such file")
    (one,) = Preparation(bundle).read([(error, None)])
    assert (one.score.path, one.score.status, one.score.reasons) == ("gone.png", "unreadable", ("not_found",))


def test_nothing_becomes_nothing(bundle):
    assert Preparation(bundle).read([]) == []

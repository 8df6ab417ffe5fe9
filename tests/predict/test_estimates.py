"""Population and view by the network's features, and what they do in the pipeline."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bundles import FEATURES, make_bundle
from images import grey_levels
from pneumoscope.domain import Radiograph, ViewPosition
from pneumoscope.errors import Reason
from pneumoscope.image.standardise import InputSpec
from pneumoscope.predict.chest import TEXTURES, ChestClassifier
from pneumoscope.predict.estimates import FRONTAL, LATERAL_ESTIMATED, FeatureClassifier, feature_moments
from pneumoscope.predict.pipeline import Pipeline

SMALL = st.floats(-100, 100, width=32)


def always(view: str) -> FeatureClassifier:
    """Return a classifier of views that finds one more probable than the others, then PA."""
    names = ("AP", "LL", "PA", "other")
    bias = np.array([2.0 * (name == view) + (name == "PA") for name in names], np.float32)
    moments = 2 * FEATURES
    return FeatureClassifier(
        names, np.zeros(moments, np.float32), np.ones(moments, np.float32), np.zeros((4, moments)), bias
    )


@given(arrays(np.float32, (3, 4, 5), elements=SMALL))
def test_moments_are_mean_and_spread_of_each_map(features):
    moments = feature_moments(features)
    assert moments.shape == (6,)
    flat = features.reshape(3, -1).astype(np.float64)
    np.testing.assert_allclose(moments[:3], flat.mean(axis=1), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(moments[3:], flat.std(axis=1), rtol=1e-3, atol=1e-2)


def test_only_possible_names_are_given():
    moments = np.zeros(2 * FEATURES, np.float32)
    assert always("LL")(moments) == "LL"
    assert always("LL")(moments, among=FRONTAL) == "PA"
    assert always("LL")(moments, among=("adult",)) is None


@pytest.fixture(scope="module")
def prepare(tmp_path_factory):
    """Return a function that prepares one image with a given view classifier and chest classifier."""
    bundle = make_bundle(tmp_path_factory.mktemp("bundle"), input=InputSpec(size=64, lungs="crop"))
    inputs = 2 * FEATURES + TEXTURES + 1
    zeros, ones = np.zeros(inputs, np.float32), np.ones(inputs, np.float32)
    limits = bundle.manifest.gate.model_copy(
        update={"min_chest": 0.5, "min_lung_certainty": 0.0, "max_lung_bridge": 1.0}
    )

    def prepared(view: str, *, is_chest: bool, stated: ViewPosition = ViewPosition.UNKNOWN, force=False):
        chest = ChestClassifier(zeros, ones, zeros, 5.0 if is_chest else -5.0)
        options = {"limits": limits, "classifier": chest, "views": always(view), "force": force}
        pipeline = Pipeline.of_bundle(bundle, **options)
        pixels = np.asarray(grey_levels(1), np.float32) / 255
        one = pipeline.admit([replace(Radiograph(pixels, "x.png", "png", *pixels.shape), view=stated)])[0]
        assert one.status == "ok", one.message
        return pipeline.check_features(one, np.zeros((FEATURES, 8, 8), np.float32))

    return prepared


def test_a_chest_is_never_rejected_for_resembling_a_lateral_view(prepare):
    one = prepare("LL", is_chest=True)
    assert (one.status, one.estimated_view) == ("ok", "PA")


def test_a_rejected_image_that_resembles_a_lateral_view_is_called_one(prepare):
    one = prepare("LL", is_chest=False)
    assert (one.status, one.reasons, one.message) == ("rejected", (Reason.LATERAL_VIEW,), LATERAL_ESTIMATED)
    assert one.input is None
    assert prepare("PA", is_chest=False).reasons == (Reason.NOT_A_CHEST_RADIOGRAPH,)


def test_where_the_gate_is_overridden_the_reason_stays(prepare):
    one = prepare("LL", is_chest=False, force=True)
    assert one.status == "ok"
    assert Reason.LATERAL_VIEW in one.reasons
    assert LATERAL_ESTIMATED in one.message


def test_a_stated_view_is_not_estimated(prepare):
    one = prepare("AP", is_chest=True, stated=ViewPosition.PA)
    assert (one.view, one.estimated_view) == ("PA", "unknown")
    assert prepare("AP", is_chest=True).estimated_view == "AP"

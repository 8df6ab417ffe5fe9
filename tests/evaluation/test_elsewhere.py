from __future__ import annotations

import pytest

from bundles import make_bundle
from pneumoscope.errors import DataError
from pneumoscope.evaluation import evaluate_scores
from pneumoscope.evaluation.elsewhere import add_elsewhere, answers_of, still_true
from pneumoscope.model.bundle import write_bundle
from pneumoscope.model.manifest import BundleManifest


@pytest.fixture
def metrics(draw):
    nobody = {"rejected": 0, "unreadable": 0, "reasons": {}}
    return {**evaluate_scores(draw(n=60), threshold=0.5, n_boot=10), "not_evaluated": nobody}


def changed(bundle, **fields):
    manifest = BundleManifest.model_validate({**bundle.manifest.model_dump(), **fields})
    return write_bundle(bundle.path, manifest)


def test_sets_stand_side_by_side_and_a_name_is_replaced(tmp_path, metrics):
    bundle = add_elsewhere(make_bundle(tmp_path), "adults", metrics, "films of one hospital")
    bundle = add_elsewhere(bundle, "another  country", metrics, "films of another")
    bundle = add_elsewhere(bundle, "adults", metrics, "films of a third")
    sets = bundle.manifest.results["elsewhere"]
    assert set(sets) == {"adults", "another country"}
    assert sets["adults"]["evaluated_on"] == "films of a third"
    assert sets["adults"]["pneumonia"] == metrics["pneumonia"]
    assert "mistakes" not in sets["adults"]  # another hospital's file names are not for the card
    assert "| another country | 60 |" in bundle.card
    assert "How well it reads" not in bundle.card  # its own set was not measured


def test_figures_of_other_answers_are_not_true_any_more(tmp_path, metrics):
    bundle = add_elsewhere(make_bundle(tmp_path), "adults", metrics, "films")
    assert set(still_true(bundle.manifest)) == {"adults"}
    answers = answers_of(bundle.manifest)
    renamed = changed(bundle, name="other", licence="another")
    assert answers_of(renamed.manifest) == answers
    gate = bundle.manifest.gate.model_copy(update={"min_side": 300})
    assert still_true(changed(bundle, gate=gate.model_dump()).manifest) == {}
    point = ({"name": "balanced", "threshold": 0.9},)
    moved = changed(bundle, operating_points=point)
    assert still_true(moved.manifest) == {}
    assert set(add_elsewhere(moved, "new", metrics, "films").manifest.results["elsewhere"]) == {"new"}


def test_a_set_without_a_name_is_one_line(tmp_path, metrics):
    with pytest.raises(DataError, match="need a name"):
        add_elsewhere(make_bundle(tmp_path), "  ", metrics, "films")

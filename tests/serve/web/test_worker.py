"""The confined process of the web server; `test_rest.py` has it in a running server."""

from __future__ import annotations

import pytest

from pneumoscope.errors import BundleError
from pneumoscope.predict.predictor import Predictor
from pneumoscope.serve.web import worker


@pytest.fixture
def loaded(monkeypatch):
    """The populations of the predictors that were loaded besides the server's own."""
    loaded = []

    def load(*arguments, **options):
        loaded.append(options["population"])
        return Predictor(*arguments, **options)

    monkeypatch.setattr(worker, "Predictor", load)
    return loaded


@pytest.fixture
def row_of(web_bundle, png):
    served, respond = Predictor(web_bundle, workers=1), worker.Responder()

    def row(population, data=png):
        job = worker.WebJob(
            name="a.png",
            operating_point=None,
            population=population,
            prevalence=None,
            heatmap=False,
            preview=False,
        )
        return respond(served, job, [data])[0]["row"]

    return row


def test_a_predictor_is_loaded_once_and_only_where_one_is_needed(row_of, loaded):
    assert [row_of(name)["population"] for name in (None, "any", "any")] == ["any"] * 3
    assert loaded == ["any"]


def test_only_a_few_predictors_are_kept(row_of, loaded, monkeypatch):
    monkeypatch.setattr(worker, "KEPT", 1)
    row_of("any")
    with pytest.raises(BundleError, match="it has any"):
        row_of("adult")
    row_of("any")
    assert loaded == ["any", "adult", "any"]

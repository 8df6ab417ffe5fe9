"""The confined process of the web server; `test_rest.py` has it in a running server."""

from __future__ import annotations

import pytest

from pneumoscope.errors import BundleError
from pneumoscope.model import runtime
from pneumoscope.predict.predictor import Predictor
from pneumoscope.serve.web import worker


@pytest.fixture
def row_of(web_bundle, png, monkeypatch):
    served = Predictor(web_bundle, workers=1)

    def no_other_network(*_):
        pytest.fail("a network was loaded for a request")

    monkeypatch.setattr(runtime.OnnxRuntime, "__init__", no_other_network)

    def row(population, prevalence=None, data=png):
        job = worker.WebJob(
            name="a.png",
            operating_point=None,
            population=population,
            prevalence=prevalence,
            heatmap=False,
            preview=False,
        )
        return worker.respond(served, job, [data])[0]["row"]

    return row


def test_a_request_loads_no_network_and_changes_nothing_for_the_next(row_of):
    plain = row_of(None)
    for population in (None, "any", None):
        assert row_of(population) == plain


def test_an_unknown_population_stops_that_request_alone(row_of):
    with pytest.raises(BundleError, match="it has any"):
        row_of("adult")
    assert row_of("any")["population"] == "any"

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pneumoscope.data.samples import samples_folder
from pneumoscope.errors import BundleError
from pneumoscope.image.decode import FORMATS
from pneumoscope.model.bundle import load_bundle
from pneumoscope.predict.predictor import Predictor
from pneumoscope.serve.web.app import create_app
from pneumoscope.serve.web.documents import STATIC, card_html, interface_html
from pneumoscope.serve.web.schemas import BundleFacts
from pneumoscope.serve.workers.rows import prediction_row

REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "rest.md"


@pytest.fixture(scope="module")
def interface(web_bundle):
    app = create_app(web_bundle)
    return app.openapi(), interface_html(app.openapi())


def test_html_in_a_card_is_escaped():
    page = card_html(
        "m@1", "# Title\n\n<script>alert(1)</script>\n\n[x](javascript:alert(1))\n\n|a|b|\n|-|-|\n|1|2|\n"
    )
    assert "<h1>Title</h1>" in page
    assert "<td>1</td>" in page
    assert "<script" not in page
    assert 'href="javascript' not in page


def test_an_identity_cannot_break_out():
    assert "<b>" not in card_html("<b>@1", "")


def test_the_interface_names_every_operation_and_schema(interface):
    document, page = interface
    for path, operations in document["paths"].items():
        for method in operations:
            assert f"<code>{method.upper()} {path}</code>" in page
    for name in document["components"]["schemas"]:
        assert f"<h3 id='{name}'>" in page


def test_documents_load_nothing_from_elsewhere(interface):
    for page in (interface[1], card_html("m@1", "text")):
        assert re.findall(r'(?:src|href)=["\'](?!/|#)', page) == []
        assert "<style" not in page
        assert " style=" not in page


def test_documents_name_their_icon(interface):
    """Without one, browsers request /favicon.ico, which does not exist."""
    for page in (interface[1], card_html("m@1", "text")):
        (icon,) = re.findall(r'rel="icon" href="/static/([^"]+)"', page)
        assert (STATIC / icon).is_file()


def test_every_reference_in_the_document_has_its_schema(interface):
    document, _ = interface
    names = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert "Problem" in names
    assert names <= set(document["components"]["schemas"])
    assert "HTTPValidationError" not in names


def test_the_schemas_of_a_prediction_are_unfolded_and_that_of_the_manifest_is_not(interface):
    unfolded = re.findall(r"<details open>\s*<summary><h3 id='(\w+)'", interface[1])
    assert {"PredictionResponse", "PredictionRow", "BundleFacts", "Target"} <= set(unfolded)
    assert "BundleManifest" not in unfolded
    assert "<h3 id='BundleManifest'>" in interface[1]


def test_page_and_interface_name_every_format(interface):
    document, _ = interface
    form = document["paths"]["/v1/predictions"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert form["schema"]["properties"]["files"]["description"] == f"X-rays: {FORMATS}"
    words = (STATIC / "words.js").read_text(encoding="utf-8")
    assert f'not_an_image: ["not an image", "Give a {FORMATS} file"],' in words


def test_the_query_is_described(interface):
    document, page = interface
    described = {one["name"]: one for one in document["paths"]["/v1/predictions"]["post"]["parameters"]}
    assert list(described) == ["heatmap", "preview", "operating_point", "population", "prevalence"]
    assert all(one["in"] == "query" and one["description"] for one in described.values())
    assert described["heatmap"]["schema"]["enum"] == ["none", "inline", "url"]
    bounds = described["prevalence"]["schema"]
    assert (bounds["exclusiveMinimum"], bounds["exclusiveMaximum"]) == (0, 1)
    assert "prevalence" in page


def test_the_example_of_the_reference_is_of_the_shipped_bundle():
    try:
        shipped = load_bundle(None)
    except BundleError as error:
        pytest.skip(f"the example is of the shipped bundle: {error}")
    (block,) = re.findall(r"```json\n(.+?)```", REFERENCE.read_text(encoding="utf-8"), re.DOTALL)
    example = json.loads(block)
    facts = json.loads(BundleFacts.of(shipped).model_dump_json())
    (point,) = example["bundle"].pop("operating_points")
    assert {**facts["operating_points"][0], "chosen_on": "…"} == point
    for one in facts["populations"]:
        one["operating_points"] = ["…"]
    assert {name: facts[name] for name in example["bundle"]} == example["bundle"]

    (shown,) = example["predictions"]
    row = prediction_row(Predictor(shipped, workers=1).predict(samples_folder() / "bacterial.jpeg")[0])
    for name, value in row.items():
        if name != "path":
            assert shown[name] == pytest.approx(value, abs=1e-4), name

from __future__ import annotations

import base64
import json
import time

import cv2
import httpx
import numpy as np
import pytest

from bundles import make_bundle
from pneumoscope.data.samples import read_samples, samples_folder
from pneumoscope.domain import OperatingPoint, Population
from pneumoscope.model.bundle import load_bundle
from pneumoscope.model.manifest import Calibration, Calibrator
from pneumoscope.predict.predictor import Predictor
from pneumoscope.serve.web.guard import CONTENT_SECURITY_POLICY
from pneumoscope.serve.workers.rows import prediction_row
from web_server import running_server

PREDICTIONS = "/v1/predictions"
TOKEN = "a-token-for-the-tests"
FIELDS = [
    *("path", "status", "reasons", "probabilities", "target", "p_target", "finding", "decision"),
    *("operating_point", "population", "prediction_set", "bundle", "uncertain", "message", "facts"),
    *("sha256", "heatmap", "preview"),
]


@pytest.fixture(scope="module")
def client(server):
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def guarded(web_bundle, tmp_path_factory):
    limits = {"max_queue": 1, "heatmap_seconds": 1}
    folder = tmp_path_factory.mktemp("guarded")
    with running_server(web_bundle.path, folder, workers=1, token=TOKEN, **limits) as running:
        yield running


@pytest.fixture(scope="module")
def two_populations(tmp_path_factory):
    """A bundle with two populations, and a client of its server."""
    folder = tmp_path_factory.mktemp("two")
    calibrations = [
        Calibration(
            population=name,
            calibrator=Calibrator(method="vector", scale=(0.1,) * 3, bias=bias, fitted_on="none"),
            prevalence=0.5,
            operating_points=tuple(OperatingPoint(point, 0.4, population=name) for point in points),
        )
        for name, bias, points in (
            ("any", (0.0, 0.0, 0.0), ("balanced",)),
            ("child", (0.0, 1.0, 0.0), ("balanced", "rule-in")),
        )
    ]
    bundle = make_bundle(
        folder / "bundle", calibrations=calibrations, populations=[Population("child", ages=(0, 17))]
    )
    with running_server(bundle.path, folder, workers=1) as running, running.client() as client:
        yield bundle.path, client


def form(*files):
    return [("files", file) for file in files]


def pixels(url):
    head, _, text = url.partition(",")
    assert head in {"data:image/png;base64", "data:image/jpeg;base64"}
    return cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_UNCHANGED)


def test_files_become_rows_in_their_order(client, png, web_bundle):
    response = client.post(
        PREDICTIONS, files=form(("one.png", png), ("../two.txt", b"no image"), ("three.png", png))
    )
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body["bundle"]["identity"] == web_bundle.identity
    assert [point["name"] for point in body["bundle"]["operating_points"]] == ["screening", "rule-in"]
    assert body["bundle"]["classes"] == ["normal", "bacterial", "viral"]
    assert body["bundle"]["target"]["name"] == "pneumonia"
    assert body["bundle"]["target"]["classes"] == ["bacterial", "viral"]
    assert [one["population"] for one in body["bundle"]["populations"]] == ["any"]
    rows = body["predictions"]
    assert [(row["path"], row["status"]) for row in rows] == [
        ("one.png", "ok"),
        ("two.txt", "unreadable"),
        ("three.png", "ok"),
    ]
    assert all(list(row) == FIELDS for row in rows)
    assert rows[0]["sha256"] == rows[2]["sha256"] != rows[1]["sha256"]
    assert rows[1]["message"]
    assert (rows[1]["probabilities"], rows[1]["p_target"], rows[1]["target"]) == ({}, None, "pneumonia")
    assert list(rows[0]["probabilities"]) == ["normal", "bacterial", "viral"]
    chances = rows[0]["probabilities"]
    assert rows[0]["p_target"] == pytest.approx(chances["bacterial"] + chances["viral"], abs=2e-6)
    assert all(row["heatmap"] is row["preview"] is None for row in rows)


def test_images_inline(client, png):
    row = client.post(
        PREDICTIONS, params={"heatmap": "inline", "preview": "inline"}, files=form(("a.png", png))
    ).json()["predictions"][0]
    assert max(pixels(row["heatmap"]["png"]).shape) == 256
    assert pixels(row["preview"]).shape == (120, 140)
    assert len(row["heatmap"]["region"]) == 4


def test_a_heat_map_by_url(client, png):
    row = client.post(PREDICTIONS, params={"heatmap": "url"}, files=form(("a.png", png))).json()[
        "predictions"
    ][0]
    image = client.get(row["heatmap"]["url"])
    assert image.headers["content-type"] == "image/png"
    assert image.headers["cache-control"] == "no-store"
    assert cv2.imdecode(np.frombuffer(image.content, np.uint8), 0) is not None
    assert client.get("/v1/heatmaps/unknown").status_code == 404


def test_the_operating_point_can_be_chosen(client, png):
    row = client.post(PREDICTIONS, params={"operating_point": "rule-in"}, files=form(("a.png", png))).json()
    assert row["predictions"][0]["decision"] == "no pneumonia"


@pytest.mark.parametrize("prevalence", [None, 0.5, 0.01])
@pytest.mark.parametrize("population", [None, "any", "child"])
def test_population_and_prevalence_are_those_of_the_request(two_populations, png, population, prevalence):
    path, client = two_populations
    given = {"population": population, "prevalence": prevalence}
    params = {name: value for name, value in given.items() if value is not None}
    body = client.post(PREDICTIONS, params=params, files=form(("a.png", png), ("b.txt", b"no"))).json()
    predictor = Predictor(load_bundle(path), workers=1, **given)
    expected = [
        prediction_row(predictor.explain(data, name).prediction)
        for data, name in ((png, "a.png"), (b"no", "b.txt"))
    ]
    assert expected[0]["population"] == population or population is None
    assert [{name: row[name] for name in expected[0]} for row in body["predictions"]] == expected
    calibration = predictor.bundle.manifest.calibrations[0]
    assert body["bundle"]["identity"] == predictor.bundle.identity
    assert body["bundle"]["operating_points"][0]["threshold"] == calibration.operating_points[0].threshold


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        (
            "operating_pont=rule-in",
            "query.operating_pont: no such parameter; there are heatmap, preview, operating_point, "
            "population, prevalence",
        ),
        ("population=adult", "query.population: this bundle has no 'adult'; it has any, child"),
        ("operating_point=no", "query.operating_point: this bundle has no 'no'; it has balanced, rule-in"),
        (
            "population=any&operating_point=rule-in",
            "query.operating_point: this bundle has no 'rule-in'; it has balanced",
        ),
        ("prevalence=0", "query.prevalence: the prevalence must be above 0 and below 1, not 0.0"),
        ("prevalence=1.5", "query.prevalence: the prevalence must be above 0 and below 1, not 1.5"),
        ("prevalence=nan", "query.prevalence: the prevalence must be above 0 and below 1, not nan"),
    ],
)
def test_a_wrong_query_is_a_problem_that_names_it(two_populations, png, query, detail):
    _, client = two_populations
    response = client.post(f"{PREDICTIONS}?{query}", files=form(("a.png", png)))
    assert (response.status_code, response.headers["content-type"]) == (422, "application/problem+json")
    assert response.json()["detail"] == detail


def test_without_a_stated_prevalence_it_cannot_be_shifted(client, png):
    response = client.post(PREDICTIONS, params={"prevalence": 0.1}, files=form(("a.png", png)))
    assert response.status_code == 422
    assert "does not state the prevalence that it was calibrated at; recalibrate it" in response.text


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("GET", "/nowhere", {}, 404),
        ("GET", "/static/../app.py", {}, 404),
        ("GET", "/static/%2e%2e/app.py", {}, 404),
        ("GET", PREDICTIONS, {}, 405),
        ("POST", PREDICTIONS, {}, 415),
        ("POST", PREDICTIONS, {"json": {}}, 415),
        ("POST", PREDICTIONS, {"files": {"other": b"x"}}, 422),
        ("POST", f"{PREDICTIONS}?heatmap=colour", {"files": {"files": b"x"}}, 422),
        ("POST", f"{PREDICTIONS}?operating_point=no", {"files": {"files": b"x"}}, 422),
        ("POST", PREDICTIONS, {"files": {"files": bytes(3_000_001)}}, 413),
        ("POST", PREDICTIONS, {"files": {"files": bytes(6_000_000)}}, 413),
        ("POST", PREDICTIONS, {"files": [("files", ("a", b"x"))] * 9}, 413),
    ],
)
def test_every_error_is_a_problem(client, method, path, options, status):
    response = client.request(method, path, **options)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert set(problem) == {"type", "title", "status", "detail", "instance"}
    assert problem["status"] == status
    assert problem["detail"] not in {"", problem["title"]}
    assert response.headers["content-security-policy"] == CONTENT_SECURITY_POLICY


@pytest.mark.parametrize("path", ["/", "/healthz", "/docs", "/card", "/metrics", "/v1/bundle", "/nowhere"])
def test_security_headers_are_on_every_response(client, path):
    headers = client.get(path).headers
    assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["cache-control"] == ("no-cache" if path == "/" else "no-store")
    assert "server" not in headers


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/docs", "/samples", "/v1/bundle", "/nowhere"])
def test_head_is_get_without_the_content(client, path):
    """Load balancers ask so whether a server works."""
    whole, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (whole.status_code, b"")
    assert head.headers["content-length"] == whole.headers["content-length"]
    assert client.head(PREDICTIONS).status_code == 405


def test_static_files_are_asked_about_and_not_sent_twice(client):
    first = client.get("/pages/document.css")
    assert first.headers["cache-control"] == "no-cache"
    again = client.get("/pages/document.css", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_the_bundle_is_shown_without_where_it_lies(client, web_bundle):
    text = client.get("/v1/bundle").text
    assert json.loads(text)["identity"] == web_bundle.identity
    assert json.loads(text)["card"] == web_bundle.card
    assert str(web_bundle.path.parent) not in text


def test_state_and_figures(client, png):
    client.post(PREDICTIONS, files=form(("a.png", png)))
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    text = client.get("/metrics").text
    metrics = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(metrics['pneumoscope_images_total{status="ok"}']) >= 1
    assert float(metrics['pneumoscope_requests_total{path="/v1/predictions",status="200"}']) >= 1
    assert float(metrics["pneumoscope_workers_alive"]) == 2
    assert float(metrics["pneumoscope_held_bytes"]) == 0


@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer", "Bearer \u00e4"]
)
@pytest.mark.parametrize("path", ["/v1/bundle", "/metrics", PREDICTIONS])
def test_without_the_token_there_is_no_way_in(guarded, header, path):
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    response = httpx.request("POST" if path == PREDICTIONS else "GET", guarded.url + path, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["content-type"] == "application/problem+json"


def test_with_the_token(guarded, png):
    with guarded.client(headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        assert client.get("/v1/bundle").status_code == 200
        response = client.post(PREDICTIONS, params={"heatmap": "url"}, files=form(("a.png", png)))
        url = response.json()["predictions"][0]["heatmap"]["url"]
    # A image element sends no token; the URL is a secret of its own, and soon gone.
    assert httpx.get(guarded.url + url).status_code == 200
    time.sleep(1.5)
    assert httpx.get(guarded.url + url).status_code == 404


def test_samples_are_listed_and_sent_as_they_are(client):
    listed = client.get("/samples").json()
    assert [one["path"] for one in listed] == [sample.path for sample in read_samples()]
    assert {"label", "content", "source", "licence", "attribution"} <= set(listed[0])
    for one in listed:
        response = client.get(f"/samples/{one['path']}")
        assert response.content == (samples_folder() / one["path"]).read_bytes()
    for path in (
        "/samples/../recipes/default.yaml",
        "/samples/%2e%2e/recipes/default.yaml",
        "/samples/gone.png",
    ):
        assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    "path", ["/", "/healthz", "/readyz", "/docs", "/openapi.json", "/card", "/samples", "/samples/hand.jpeg"]
)
def test_what_the_page_needs_to_ask_for_the_token_is_open(guarded, path):
    assert httpx.get(guarded.url + path).status_code == 200


@pytest.mark.parametrize(("site", "status"), [("cross-site", 403), ("same-site", 403), ("same-origin", 200)])
def test_pages_of_other_sites_cannot_send_images(client, png, site, status):
    response = client.post(PREDICTIONS, files=form(("a.png", png)), headers={"Sec-Fetch-Site": site})
    assert response.status_code == status

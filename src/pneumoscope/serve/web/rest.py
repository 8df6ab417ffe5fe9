"""The REST interface: predictions, the bundle, and the state of the server."""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from pneumoscope.errors import BundleError
from pneumoscope.image.decode import FORMATS
from pneumoscope.model.bundle import Bundle
from pneumoscope.predict.calibration import bundle_at_prevalence
from pneumoscope.serve.web.admission import Admission, Slot
from pneumoscope.serve.web.context import WebContext
from pneumoscope.serve.web.problems import problems
from pneumoscope.serve.web.schemas import (
    BundleFacts,
    BundleResponse,
    PredictionResponse,
    PredictionRow,
    State,
)
from pneumoscope.serve.web.uploads import FIELD, Upload, receive
from pneumoscope.serve.workers.pool import JobStopped
from pneumoscope.serve.workers.rows import prediction_row, stopped

if TYPE_CHECKING:
    from pneumoscope.serve.web.worker import WebJob

__all__ = ["rest_router"]

logger = logging.getLogger(__name__)

HeatmapOption = Literal["none", "inline", "url"]
PreviewOption = Literal["none", "inline"]

# FastAPI would read the body before limits apply, so the form is described here and read in `receive`.
FORM = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [FIELD],
                "additionalProperties": False,
                "properties": {
                    FIELD: {
                        "type": "array",
                        "minItems": 1,
                        "items": {"type": "string", "format": "binary"},
                        "description": f"X-rays: {FORMATS}",
                    }
                },
            }
        }
    },
}


class _Query(BaseModel):
    """The query of a prediction, as OpenAPI describes it."""

    model_config = ConfigDict(frozen=True)

    heatmap: HeatmapOption = Field("none", description="left out, as data URL, or as URL")
    preview: PreviewOption = Field("none", description="the image as it was read")
    operating_point: str | None = Field(None, description="name; the default one if not given")
    population: str | None = Field(
        None, description="of all images; by age and view of each image if not given"
    )
    prevalence: float | None = Field(
        None,
        description="expected share of images with the finding: probabilities and thresholds are shifted to "
        "it; that of the calibration if not given",
        json_schema_extra={"exclusiveMinimum": 0, "exclusiveMaximum": 1},
    )


@dataclass(frozen=True)
class _Options:
    """A query that was checked; `bundle` is the one that is served, at the prevalence of the query."""

    query: _Query
    operating_point: str
    bundle: Bundle


class _CountedResponse(Response):
    """Predictions as JSON, whose bytes count as held until they are sent or the client has left."""

    media_type = "application/json"

    def __init__(self, content: str, admission: Admission) -> None:
        super().__init__(content)
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with self._admission.held(len(self.body)):
                await super().__call__(scope, receive, send)
        finally:
            self.body = b""  # an error's traceback would keep it, uncounted, while that is sent


def rest_router(context: WebContext) -> APIRouter:
    """Return the routes over one bundle."""
    router = APIRouter()
    facts = BundleFacts.of(context.bundle)

    @router.post(
        "/v1/predictions",
        response_model=PredictionResponse,
        responses=problems(400, 401, 403, 408, 413, 415, 422, 429, 500, 503),
        openapi_extra={"requestBody": FORM},
        tags=["predictions"],
    )
    async def predict(request: Request, query: Annotated[_Query, Query()]) -> Response:
        """Predict one or more X-rays. A file that cannot be read is a row like the others."""
        options = _checked(context.bundle, query, request.query_params.keys())
        address = request.client.host if request.client else ""
        with context.admission.slot(address) as slot:
            uploads = await receive(request, context.limits, slot)
            slot.received()
            began = time.perf_counter()
            rows = await _predict_all(context, request, uploads, options, slot)
            took = time.perf_counter() - began
            context.admission.record(took)
        context.metrics.seconds.observe(took)
        for row in rows:
            context.metrics.images.labels(row.status).inc()
            logger.info("%s %s in a request of %.0f ms", row.sha256[:16], row.status, took * 1000)
        response = PredictionResponse(bundle=BundleFacts.of(options.bundle), predictions=rows)
        return _CountedResponse(response.model_dump_json(), context.admission)

    @router.get(
        "/v1/heatmaps/{token}",
        response_class=Response,
        responses={200: {"content": {"image/png": {}}, "description": "8-bit grey"}, **problems(404, 422)},
        tags=["predictions"],
    )
    async def heatmap_image(token: str) -> Response:
        """Fetch a heat map, for a short time after the prediction."""
        image = context.heatmaps.get(token)
        if image is None:
            raise HTTPException(404, "this heat map is unknown or expired; send the image again")
        return Response(image, media_type="image/png")

    @router.get("/v1/bundle", responses=problems(401), tags=["model"])
    async def bundle() -> BundleResponse:
        """Describe the model that is served."""
        served = context.bundle
        return BundleResponse(
            identity=served.identity, facts=facts, manifest=served.manifest, card=served.card
        )

    _add_state(router, context)
    return router


def _add_state(router: APIRouter, context: WebContext) -> None:
    @router.get("/healthz", tags=["state"])
    async def healthz() -> State:
        """Report that the process is running."""
        return State(status="ok")

    @router.get("/readyz", responses=problems(503), tags=["state"])
    async def readyz() -> State:
        """Report whether a request sent now would be accepted."""
        if context.admission.stopping:
            raise HTTPException(503, "the server is stopping")
        if context.pool.alive == 0:
            raise HTTPException(503, "no worker is ready")
        if context.admission.full:
            raise HTTPException(503, "the queue is full")
        return State(status="ready")

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}, "description": "Prometheus text"}, **problems(401)},
        tags=["state"],
    )
    async def metrics() -> Response:
        """Return metrics for Prometheus."""
        return Response(context.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _checked(bundle: Bundle, query: _Query, given: Collection[str]) -> _Options:
    """Return a query with what was not given filled in.

    Raises
    ------
    HTTPException
        422 for a name that there is not, of a parameter or in the bundle, or for a wrong prevalence.
    """
    for name in given:
        if name not in _Query.model_fields:
            known = ", ".join(_Query.model_fields)
            raise HTTPException(422, f"query.{name}: no such parameter; there are {known}")
    calibrations = bundle.manifest.calibrations
    if query.population is not None:
        _check_name("population", query.population, [one.population for one in calibrations])
        calibrations = (bundle.manifest.calibration_for(query.population),)
    point = query.operating_point or bundle.manifest.default_operating_point
    _check_name(
        "operating_point", point, [each.name for one in calibrations for each in one.operating_points]
    )
    if query.prevalence is None:
        return _Options(query, point, bundle)
    try:
        return _Options(query, point, bundle_at_prevalence(bundle, query.prevalence))
    except (ValueError, BundleError) as error:
        raise HTTPException(422, f"query.prevalence: {error}") from error


def _check_name(parameter: str, name: str, known: list[str]) -> None:
    if name not in known:
        listed = ", ".join(dict.fromkeys(known))
        raise HTTPException(422, f"query.{parameter}: this bundle has no {name!r}; it has {listed}")


async def _predict_all(
    context: WebContext, request: Request, uploads: list[Upload], options: _Options, slot: Slot
) -> list[PredictionRow]:
    """Predict the files of a request, at most one per worker at a time, so that other requests get a turn."""
    rows: list[PredictionRow | None] = [None] * len(uploads)
    left = iter(range(len(uploads)))

    async def run(indices: Iterator[int]) -> None:
        for index in indices:
            if await request.is_disconnected():
                return
            upload = uploads[index]
            rows[index] = await _predict(context, upload, options)
            slot.shrink(len(upload.data))
            upload.data = bytearray()

    async with asyncio.TaskGroup() as group:
        for _ in range(min(context.pool.workers, len(uploads))):
            group.create_task(run(left))
    done = [row for row in rows if row is not None]
    if len(done) < len(rows):
        raise ClientDisconnect
    return done


async def _predict(context: WebContext, upload: Upload, options: _Options) -> PredictionRow:
    query = options.query
    job: WebJob = {
        "name": upload.name,
        "operating_point": options.operating_point,
        "population": query.population,
        "prevalence": query.prevalence,
        "heatmap": query.heatmap != "none",
        "preview": query.preview != "none",
    }
    fields: dict[str, Any]
    try:
        head, (heatmap, preview) = await context.pool.run(job, upload.data)
        fields = head["row"] | {"facts": head["facts"], "heatmap": head["heatmap"]}
    except JobStopped as error:
        row = prediction_row(stopped(upload.name, options.bundle, str(error)))
        fields, heatmap, preview = row | {"facts": None, "heatmap": None}, b"", b""
    if fields["heatmap"] is not None:
        fields["heatmap"] |= (
            {"png": _data_url("image/png", heatmap)}
            if query.heatmap == "inline"
            else {"url": f"/v1/heatmaps/{context.heatmaps.put(heatmap)}"}
        )
    image = _data_url("image/jpeg", preview) if preview else None
    return PredictionRow.model_validate(fields | {"sha256": upload.digest, "preview": image})


def _data_url(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"

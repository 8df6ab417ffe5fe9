"""The REST interface: images in, predictions out; the bundle; the state of the server."""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from pneumoscope.domain import OperatingPoint, Prediction
from pneumoscope.errors import Reason
from pneumoscope.model.bundle import Bundle
from pneumoscope.report.rows import to_row
from pneumoscope.serve.web.admission import Admission, Seat
from pneumoscope.serve.web.heatmaps import HeatmapStore
from pneumoscope.serve.web.limits import WebLimits
from pneumoscope.serve.web.metrics import Metrics
from pneumoscope.serve.web.pool import JobStopped, WorkerPool
from pneumoscope.serve.web.problems import answers
from pneumoscope.serve.web.schemas import Answer, BundleFacts, BundlePage, Row, State
from pneumoscope.serve.web.uploads import FIELD, Upload, receive

__all__ = ["Face", "rest_router"]

logger = logging.getLogger(__name__)

HeatmapWish = Literal["none", "inline", "url"]
PreviewWish = Literal["none", "inline"]

# FastAPI would read the body before a limit can hold, so the form is described here and read in `receive`.
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
                        "description": "X-rays: JPEG, PNG, TIFF, BMP or DICOM",
                    }
                },
            }
        }
    },
}


@dataclass(frozen=True, eq=False)
class Face:
    """The parts that the routes share."""

    bundle: Bundle
    limits: WebLimits
    pool: WorkerPool
    admission: Admission
    heatmaps: HeatmapStore
    metrics: Metrics


@dataclass(frozen=True)
class _Wishes:
    heatmap: HeatmapWish
    preview: PreviewWish
    point: OperatingPoint


def rest_router(face: Face) -> APIRouter:
    """Return the routes over one bundle."""
    router = APIRouter()
    facts = BundleFacts.of(face.bundle)

    @router.post(
        "/v1/predictions",
        response_model=Answer,
        responses=answers(400, 401, 403, 408, 413, 415, 422, 429, 500, 503),
        openapi_extra={"requestBody": FORM},
        tags=["predictions"],
    )
    async def predict(
        request: Request,
        heatmap: Annotated[HeatmapWish, Query(description="leave out, as data URL, or as URL")] = "none",
        preview: Annotated[PreviewWish, Query(description="the image as it was read")] = "none",
        operating_point: Annotated[str | None, Query(description="one of the bundle's")] = None,
    ) -> Response:
        """Predict one or more X-rays. A file that cannot be read is a row like the others."""
        wishes = _Wishes(heatmap, preview, _point(face.bundle, operating_point))
        address = request.client.host if request.client else ""
        with face.admission.seat(address) as seat:
            uploads = await receive(request, face.limits, seat)
            seat.received()
            began = time.perf_counter()
            rows = await _predict_all(face, request, uploads, wishes, seat)
            took = time.perf_counter() - began
            face.admission.saw(took)
        face.metrics.seconds.observe(took)
        for row in rows:
            face.metrics.images.labels(row.status).inc()
            logger.info("%s %s in a request of %.0f ms", row.sha256[:16], row.status, took * 1000)
        answer = Answer(bundle=facts, predictions=rows)
        return Response(answer.model_dump_json(), media_type="application/json")

    @router.get(
        "/v1/heatmaps/{token}",
        response_class=Response,
        responses={200: {"content": {"image/png": {}}, "description": "8-bit grey"}, **answers(404, 422)},
        tags=["predictions"],
    )
    async def heatmap_image(token: str) -> Response:
        """Fetch a heat map, for a short while after the prediction."""
        image = face.heatmaps.get(token)
        if image is None:
            raise HTTPException(404, "there is no such heat map any more; send the image again")
        return Response(image, media_type="image/png")

    @router.get("/v1/bundle", responses=answers(401), tags=["model"])
    async def bundle() -> BundlePage:
        """Tell which model answers here."""
        return BundlePage(identity=face.bundle.identity, manifest=face.bundle.manifest, card=face.bundle.card)

    _add_state(router, face)
    return router


def _add_state(router: APIRouter, face: Face) -> None:
    @router.get("/healthz", tags=["state"])
    async def healthz() -> State:
        """Tell that the process lives."""
        return State(status="ok")

    @router.get("/readyz", responses=answers(503), tags=["state"])
    async def readyz() -> State:
        """Tell whether a request sent now would be taken."""
        if face.admission.stopping:
            raise HTTPException(503, "the server is stopping")
        if face.pool.alive == 0:
            raise HTTPException(503, "no worker is ready")
        if face.admission.full:
            raise HTTPException(503, "the queue is full")
        return State(status="ready")

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}, "description": "Prometheus text"}, **answers(401)},
        tags=["state"],
    )
    async def metrics() -> Response:
        """Give figures to Prometheus."""
        return Response(face.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _point(bundle: Bundle, name: str | None) -> OperatingPoint:
    points = {point.name: point for point in bundle.manifest.operating_points}
    wanted = name or bundle.manifest.default_operating_point
    if wanted not in points:
        raise HTTPException(422, f"query.operating_point: this model has {', '.join(points)}")
    return points[wanted]


async def _predict_all(
    face: Face, request: Request, uploads: list[Upload], wishes: _Wishes, seat: Seat
) -> list[Row]:
    """Predict the files of a request, no more at a time than there are workers: others come between."""
    rows: list[Row | None] = [None] * len(uploads)
    left = iter(range(len(uploads)))

    async def lane(indices: Iterator[int]) -> None:
        for index in indices:
            if await request.is_disconnected():
                return
            upload = uploads[index]
            rows[index] = await _predict(face, upload, wishes)
            seat.shrink(len(upload.data))
            upload.data = bytearray()

    async with asyncio.TaskGroup() as group:
        for _ in range(min(face.pool.workers, len(uploads))):
            group.create_task(lane(left))
    done = [row for row in rows if row is not None]
    if len(done) < len(rows):
        raise ClientDisconnect
    return done


async def _predict(face: Face, upload: Upload, wishes: _Wishes) -> Row:
    job = {
        "name": upload.name,
        "heatmap": wishes.heatmap != "none",
        "preview": wishes.preview != "none",
        "operating_point": wishes.point.name,
    }
    try:
        found, (heatmap, preview) = await face.pool.run(job, upload.data)
    except JobStopped as error:
        found, heatmap, preview = _stopped_row(face.bundle, upload.name, str(error)), b"", b""
    fields = found.pop("row") | found
    if fields["heatmap"] is not None:
        fields["heatmap"] |= (
            {"png": _data_url("image/png", heatmap)}
            if wishes.heatmap == "inline"
            else {"url": f"/v1/heatmaps/{face.heatmaps.put(heatmap)}"}
        )
    image = _data_url("image/jpeg", preview) if preview else None
    return Row.model_validate(fields | {"sha256": upload.digest, "preview": image})


def _stopped_row(bundle: Bundle, name: str, message: str) -> dict[str, Any]:
    row = Prediction(name, "unreadable", (Reason.READER_STOPPED,), bundle=bundle.identity)
    return {"row": to_row(row), "message": message, "facts": None, "heatmap": None}


def _data_url(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"

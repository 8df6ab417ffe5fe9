"""The application: everything of the web face, put together for one bundle."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.middleware import Middleware

from pneumoscope import __version__
from pneumoscope.model.bundle import Bundle
from pneumoscope.serve.web.admission import Admission
from pneumoscope.serve.web.documents import add_documents
from pneumoscope.serve.web.guard import Guard
from pneumoscope.serve.web.heatmaps import HeatmapStore
from pneumoscope.serve.web.limits import WebLimits
from pneumoscope.serve.web.metrics import Metrics
from pneumoscope.serve.web.pool import WorkerPool
from pneumoscope.serve.web.problems import Problem, handle_problems
from pneumoscope.serve.web.rest import Face, rest_router

__all__ = ["create_app"]

DESCRIPTION = (
    "Reads chest X-rays for pneumonia. For research and teaching; not a medical device. "
    "Nothing that is sent is kept: it is in memory only, and gone with the answer."
)


def create_app(
    bundle: Bundle, *, workers: int = 2, limits: WebLimits | None = None, token: str | None = None
) -> FastAPI:
    """Make the application; its workers start and stop with its lifespan.

    Parameters
    ----------
    bundle : Bundle
        The model, verified.
    workers : int
        Processes that read and predict.
    limits : WebLimits, optional
        The usual ones if not given.
    token : str, optional
        Bearer token that ``/v1`` and ``/metrics`` ask for.
    """
    bounds = limits or WebLimits()
    metrics = Metrics()
    face = Face(
        bundle=bundle,
        limits=bounds,
        pool=WorkerPool(bundle.path, workers=workers, limits=bounds, on_restart=metrics.restarts.inc),
        admission=Admission(bounds),
        heatmaps=HeatmapStore(bounds.heatmap_seconds, bounds.max_heatmaps),
        metrics=metrics,
    )
    _watch(face)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await face.pool.start()
        try:
            yield
        finally:
            await face.pool.stop()

    def count(path: str, status: int) -> None:
        metrics.requests.labels(path, status).inc()

    app = FastAPI(
        title="Pneumoscope",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        middleware=[Middleware(Guard, token=token, on_answer=count)],
    )
    handle_problems(app)
    app.include_router(rest_router(face))
    add_documents(app, bundle)
    app.state.face = face
    _describe_problems(app)
    return app


def _watch(face: Face) -> None:
    watch, admission, pool = face.metrics.watch, face.admission, face.pool
    watch("requests_receiving", "Requests whose bodies arrive", lambda: admission.receiving)
    watch("requests_waiting", "Requests that wait for their answer", lambda: admission.waiting)
    watch("jobs_waiting", "Images that no worker has taken yet", lambda: pool.waiting)
    watch("held_bytes", "Memory held by uploads", lambda: admission.held_bytes)
    watch("workers_alive", "Workers that live", lambda: pool.alive)
    watch("heatmaps", "Heat maps that wait to be fetched", lambda: len(face.heatmaps))


def _describe_problems(app: FastAPI) -> None:
    """Put the schema of problems, which no route returns by itself, into the OpenAPI document."""
    described = app.openapi

    def openapi() -> dict[str, Any]:
        document = described()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas.setdefault("Problem", Problem.model_json_schema())
        return document

    app.openapi = openapi  # type: ignore[method-assign]

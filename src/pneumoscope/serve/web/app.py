"""The application: routes, pages and workers, put together for one bundle."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.middleware import Middleware

from pneumoscope import __version__
from pneumoscope.errors import PneumoscopeError
from pneumoscope.model.bundle import Bundle
from pneumoscope.serve.web.admission import Admission
from pneumoscope.serve.web.context import HeatmapStore, Metrics, WebContext
from pneumoscope.serve.web.documents import add_documents
from pneumoscope.serve.web.guard import Guard
from pneumoscope.serve.web.limits import WebLimits
from pneumoscope.serve.web.problems import Problem, handle_problems
from pneumoscope.serve.web.rest import rest_router
from pneumoscope.serve.workers.pool import WorkerLimits, WorkerPool

__all__ = ["create_app"]

WORKER_MODULE = "pneumoscope.serve.web.worker"
DESCRIPTION = (
    "Predictions on chest X-rays. For research and teaching; not a medical device. "
    "Uploads are kept in memory only and discarded with the response."
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
        The defaults if not given.
    token : str, optional
        Bearer token that ``/v1`` and ``/metrics`` require.
    """
    bounds = limits or WebLimits()
    metrics = Metrics()
    pool = WorkerPool(
        bundle.path,
        workers=workers,
        limits=WorkerLimits(seconds=bounds.job_timeout, memory=bounds.worker_memory),
        on_restart=metrics.restarts.inc,
        module=WORKER_MODULE,
    )
    context = WebContext(
        bundle=bundle,
        limits=bounds,
        pool=pool,
        admission=Admission(bounds),
        heatmaps=HeatmapStore(bounds.heatmap_seconds, bounds.max_heatmaps),
        metrics=metrics,
    )
    context.watch_all()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        try:
            await pool.start()
        except PneumoscopeError as error:
            app.state.failure = error
            raise
        try:
            yield
        finally:
            await pool.stop()

    def count(path: str, status: int) -> None:
        metrics.requests.labels(path, status).inc()

    app = FastAPI(
        title="Pneumoscope",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        middleware=[Middleware(Guard, token=token, on_response=count)],
    )
    handle_problems(app)
    app.include_router(rest_router(context))
    add_documents(app, bundle)
    app.state.context = context
    app.state.failure = None  # why the workers did not start, for `serve`
    _describe_problems(app)
    return app


def _describe_problems(app: FastAPI) -> None:
    """Add the schema of problems, which no route returns directly, to the OpenAPI document."""
    described = app.openapi

    def openapi() -> dict[str, Any]:
        document = described()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas.setdefault("Problem", Problem.model_json_schema())
        return document

    app.openapi = openapi  # type: ignore[method-assign]

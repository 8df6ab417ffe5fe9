"""Errors as problem details (RFC 9457), including those of the router and of the server itself."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

__all__ = ["PROBLEM_TYPE", "Problem", "handle_problems", "problem_response", "problems"]

PROBLEM_TYPE = "application/problem+json"


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    model_config = ConfigDict(frozen=True)

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str


def problem_response(
    status: int, detail: str, instance: str, headers: dict[str, str] | None = None
) -> Response:
    """Return a problem as a response.

    Parameters
    ----------
    status : int
        Of HTTP; the title follows from it.
    detail : str
        What is wrong and what to do about it.
    instance : str
        Path of the request.
    headers : dict, optional
        Further ones.
    """
    problem = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, instance=instance)
    return Response(json.dumps(problem.model_dump()), status, headers, PROBLEM_TYPE)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of the problems that an operation may return."""
    content = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def handle_problems(app: FastAPI) -> None:
    """Return every error of an application as a problem."""
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(ClientDisconnect, _gone)
    # Starlette sends this response and raises the error again, so that the server logs the traceback.
    app.add_exception_handler(Exception, _unhandled)


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = error.detail
    if detail == HTTPStatus(error.status_code).phrase:  # the router gives no more than the title
        detail = _ROUTER.get(error.status_code, detail)
    headers = dict(error.headers) if error.headers else None
    return problem_response(error.status_code, detail, request.url.path, headers)


_ROUTER = {
    404: "no such page; /docs lists the interface",
    405: "this method is not allowed; the header Allow lists those that are",
}


def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    details = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
    return problem_response(422, "; ".join(details), request.url.path)


def _gone(request: Request, _error: Exception) -> Response:
    return problem_response(400, "the body ended too early", request.url.path)


def _unhandled(request: Request, _error: Exception) -> Response:
    return problem_response(500, "an error of this server; see its log", request.url.path)

"""Access control for every request, and security headers on every response."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pneumoscope.serve.web.problems import problem_response

__all__ = ["CONTENT_SECURITY_POLICY", "Guard"]

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'self'",
    )
)

HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}

# The page contains nothing secret and must load to ask for the token. The URL of a heat map is secret itself.
OPEN_PATHS = frozenset(
    {"/", "/healthz", "/readyz", "/docs", "/openapi.json", "/card", "/samples", "/favicon.ico"}
)
OPEN_PREFIXES = ("/static/", "/pages/", "/samples/", "/v1/heatmaps/")

# Sec-Fetch-Site of requests from this server's own page, or typed by a person (Fetch Metadata).
OWN_SITES = frozenset({"same-origin", "none"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

PART_BYTES = 65_536  # of a body


def _parts(message: Message) -> Iterator[Message]:
    """Divide a body, so that the server waits for a slow client in between.

    With TLS asyncio takes a body of any size at once and then gives the client 30 seconds to read it.
    """
    body = message.get("body", b"")
    if len(body) <= PART_BYTES:
        yield message
        return
    for start in range(0, len(body), PART_BYTES):
        end = start + PART_BYTES
        more = end < len(body) or message.get("more_body", False)
        yield {**message, "body": body[start:end], "more_body": more}


class Guard:
    """ASGI middleware: bearer token, no requests from other sites, security headers, counting.

    Parameters
    ----------
    app : ASGI application
        Behind the guard.
    token : str or None
        The bearer token; None for no access control.
    on_response : callable
        Gets the path of the route and the status of each response.
    """

    def __init__(self, app: ASGIApp, token: str | None, on_response: Callable[[str, int], None]) -> None:
        self._app = app
        self._token = None if token is None else token.encode()
        self._on_response = on_response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            # FastAPI has no route for it. The server sends no body: it looks at the original.
            scope = {**scope, "method": "GET"}

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
                route = getattr(scope.get("route"), "path", "other")
                self._on_response(route, message["status"])
            for part in _parts(message):
                await send(part)

        headers = Headers(scope=scope)
        path: str = scope["path"]
        if headers.get("sec-fetch-site", "none") not in OWN_SITES and scope["method"] not in SAFE_METHODS:
            rejection = problem_response(403, "a page of another site may not send images here", path)
            await rejection(scope, receive, guarded)
        elif not self._may_pass(path, headers.get("authorization", "")):
            detail = "send the bearer token of this server in the header Authorization"
            rejection = problem_response(401, detail, path, {"WWW-Authenticate": "Bearer"})
            await rejection(scope, receive, guarded)
        else:
            await self._app(scope, receive, guarded)

    def _may_pass(self, path: str, authorization: str) -> bool:
        if self._token is None or path in OPEN_PATHS or path.startswith(OPEN_PREFIXES):
            return True
        scheme, _, given = authorization.partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token)

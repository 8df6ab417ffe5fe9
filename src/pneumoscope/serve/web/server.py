"""Running the application: socket, TLS, signals, and a stop that finishes accepted requests."""

from __future__ import annotations

import logging
import signal
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from pneumoscope.errors import PneumoscopeError
from pneumoscope.serve.web.limits import WebLimits
from pneumoscope.serve.web.protocol import bounded_protocol

__all__ = ["Address", "is_loopback", "serve"]

BACKLOG = 256


@dataclass(frozen=True)
class Address:
    """Where to listen, and with which certificate.

    Parameters
    ----------
    host : str
        Name or IP address of this machine.
    port : int
        0 for any free one.
    certificate, key : Path or None
        PEM files for TLS.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    certificate: Path | None = None
    key: Path | None = None


def is_loopback(host: str) -> bool:
    """Return whether a host can be reached from this machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(app: FastAPI, address: Address, limits: WebLimits, *, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; then accept nothing new and finish accepted requests.

    Parameters
    ----------
    app : FastAPI
        Made by `create_app` with the same limits.
    address : Address
        Where to listen.
    limits : WebLimits
        For connections and for the time to stop.
    on_ready : callable
        Gets the URL once the server accepts requests.

    Raises
    ------
    PneumoscopeError
        If the address cannot be listened on, the certificate cannot be used, or the workers do not start.
    """
    _leave_no_core_dump()
    # Malformed requests of clients are not logged; errors of this server are.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    config = uvicorn.Config(
        app,
        http=bounded_protocol(limits),
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=round(limits.stop_timeout),
        ssl_certfile=address.certificate,
        ssl_keyfile=address.key,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise PneumoscopeError(
            f"{address.certificate}: not a usable certificate and key ({error}); give PEM files"
        ) from error
    with _listening(address) as listener:
        port = listener.getsockname()[1]
        host = f"[{address.host}]" if ":" in address.host else address.host
        scheme = "http" if address.certificate is None else "https"
        _run(_Server(config, app, lambda: on_ready(f"{scheme}://{host}:{port}")), app, listener)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, app: FastAPI, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._app, self._on_ready = app, on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        # The base class would raise the signal again after a stop that succeeded.
        self._app.state.context.admission.stopping = True
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True


def _run(server: _Server, app: FastAPI, listener: socket.socket) -> None:
    def is_news(_record: logging.LogRecord) -> bool:
        return app.state.failure is None

    # uvicorn logs a failed start with its traceback and exits; the caller reports it instead.
    log = logging.getLogger("uvicorn.error")
    log.addFilter(is_news)
    try:
        server.run([listener])
    except SystemExit:
        if app.state.failure is None:
            raise
    finally:
        log.removeFilter(is_news)
    if app.state.failure is not None:
        raise app.state.failure


def _listening(address: Address) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        return socket.create_server((address.host, address.port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        raise PneumoscopeError(
            f"{address.host}:{address.port}: cannot listen there ({error}); choose another --host or --port"
        ) from error


def _leave_no_core_dump() -> None:
    """Keep uploads out of a core dump, should the process ever crash."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))

"""`pneumoscope serve`: the web page and the REST interface for one bundle."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pneumoscope.cli.common import bundle_facts, note, print_json
from pneumoscope.cli.options import shown
from pneumoscope.cli.parameters import BundlePath
from pneumoscope.errors import PneumoscopeError, require_extra

if TYPE_CHECKING:
    from pneumoscope.serve.web.limits import WebLimits
    from pneumoscope.serve.web.server import Address

__all__ = ["serve"]

TOKEN_VARIABLE = "PNEUMOSCOPE_TOKEN"
SHORTEST_TOKEN = 16  # characters


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any free one.")] = 8000,
    bundle: BundlePath = None,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=f"File with the bearer token of clients; or {TOKEN_VARIABLE}."),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(metavar="PEM", help="Certificate, for HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="PEM", help="Private key of --tls-cert.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that predict; one for each usable CPU if not given.")
    ] = None,
    max_file_mb: Annotated[int, typer.Option(min=1, max=100, help="Largest size of one file, in MB.")] = 100,
    max_request_mb: Annotated[int, typer.Option(min=1, help="Largest size of one request, in MB.")] = 256,
    max_files: Annotated[int, typer.Option(min=1, help="Most files in one request.")] = 64,
    max_queue: Annotated[int, typer.Option(min=1, help="Most requests that wait for their response.")] = 64,
    max_seconds: Annotated[
        float, typer.Option(min=1, help="Most seconds for reading and predicting one file.")
    ] = 30.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object with the address, once it is reachable.")
    ] = False,
) -> None:
    """Serve the web page and the REST interface; stop with Ctrl-C.

    Uploads are not written to disk. Without --host, only this machine can reach it. With --verbose there is a
    log line for each file: its salted hash, status and time.
    """
    with require_extra("web", "serving the page"):
        from pneumoscope.serve.web.limits import MB, WebLimits
        from pneumoscope.serve.web.server import Address
    if (tls_cert is None) != (tls_key is None):
        raise typer.BadParameter("give both --tls-cert and --tls-key, or neither")
    limits = WebLimits(
        max_file_bytes=max_file_mb * MB,
        max_request_bytes=max_request_mb * MB,
        max_held_bytes=max(WebLimits.max_held_bytes, 2 * max_request_mb * MB),
        max_files=max_files,
        max_queue=max_queue,
        job_timeout=max_seconds,
    )
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    if shown().verbose:
        logging.getLogger("pneumoscope").setLevel(logging.INFO)
    _run(Address(host, port, tls_cert, tls_key), bundle, limits, workers, _token(token_file), as_json=as_json)


def _run(
    address: Address,
    path: Path | None,
    limits: WebLimits,
    workers: int | None,
    token: str | None,
    *,
    as_json: bool,
) -> None:
    from pneumoscope.model.bundle import load_bundle
    from pneumoscope.parallel import available_cpus
    from pneumoscope.serve.web.app import create_app
    from pneumoscope.serve.web.server import is_loopback
    from pneumoscope.serve.web.server import serve as run

    bundle = load_bundle(path, allow_draft=False)
    app = create_app(bundle, workers=workers or available_cpus(), limits=limits, token=token)
    local = is_loopback(address.host)

    def announce(url: str) -> None:
        reach = "this machine alone can reach it" if local else "other machines can reach it"
        note(f"{url}  ({bundle.identity}; {reach}; Ctrl-C stops)")
        if as_json:
            print_json({"url": url, "this_machine_only": local, "bundle": bundle_facts(bundle)})
            sys.stdout.flush()

    if not local and token is None:
        typer.echo("warning: anyone who can reach this port can use it; give --token-file", err=True)
    run(app, address, limits, on_ready=announce)


def _token(path: Path | None) -> str | None:
    if path is None:
        token, source = os.environ.get(TOKEN_VARIABLE), TOKEN_VARIABLE
        if not token:
            return None
    else:
        source = str(path)
        try:
            token = path.read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise PneumoscopeError(f"{path}: cannot read the token ({error}); check the file") from error
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise PneumoscopeError(
            f"{source}: a token has {SHORTEST_TOKEN} or more printable ASCII characters and no spaces"
        )
    return token

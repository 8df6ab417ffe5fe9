"""HTML documents: the page with its styles, scripts and samples, the model card, the description of REST.

All of it is in the package; nothing is loaded from other servers.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from markdown_it import MarkdownIt
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from pneumoscope.data.samples import read_samples, samples_folder
from pneumoscope.model.bundle import Bundle

__all__ = ["add_documents", "card_html", "interface_html"]

HERE = Path(__file__).parent
STATIC, PAGES = HERE / "static", HERE / "pages"

SHELL = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="/static/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="/pages/document.css">
</head>
<body>
<nav aria-label="site">
<a href="/">Pneumoscope</a> <a href="/card">Model card</a> <a href="/docs">REST</a>
</nav>
<main>
{content}
</main>
</body>
</html>
"""


class _Revalidated(StaticFiles):
    """Files that a browser may cache but must revalidate, so that a new version is used at once."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return a file, or 304 if it has not changed."""
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response


def add_documents(app: FastAPI, bundle: Bundle) -> None:
    """Add the pages to the application."""
    page = _Revalidated(directory=STATIC, check_dir=False)
    app.mount("/static", page)
    app.mount("/pages", _Revalidated(directory=PAGES))
    app.mount("/samples", _Revalidated(directory=samples_folder()))
    samples = [asdict(sample) for sample in read_samples()]
    card = card_html(bundle.identity, bundle.card)

    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return await page.get_response("index.html", request.scope)

    @app.get("/samples", include_in_schema=False)
    async def sample_table() -> JSONResponse:
        return JSONResponse(samples)

    @app.get("/card", include_in_schema=False)
    async def model_card() -> HTMLResponse:
        return HTMLResponse(card)

    @app.get("/docs", include_in_schema=False)
    async def interface() -> HTMLResponse:
        return HTMLResponse(interface_html(app.openapi()))


def card_html(identity: str, card: str) -> str:
    """Return the model card as a page; HTML inside it is escaped."""
    text = card or "This bundle has no card."
    content = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    return SHELL.format(
        title=f"Model card of {html.escape(identity)}",
        content=f"<p class='identity'>{html.escape(identity)}</p>\n{content}",
    )


def interface_html(document: dict[str, Any]) -> str:
    """Return an OpenAPI document as a page."""
    info = document["info"]
    parts = [
        f"<h1>{html.escape(info['title'])} {html.escape(info['version'])}</h1>",
        f"<p>{html.escape(info.get('description', ''))}</p>",
        "<p>OpenAPI: <a href='/openapi.json'>openapi.json</a>.</p>",
        "<pre>curl -F files=@chest.dcm 'http://127.0.0.1:8000/v1/predictions?heatmap=url'</pre>",
    ]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts += _operation(method, path, operation)
    parts.append("<h2>Schemas</h2>")
    schemas = document["components"]["schemas"]
    unfolded = _referenced("PredictionResponse", schemas)
    for name in sorted(schemas, key=lambda name: (name not in unfolded, name)):
        parts += _schema(name, schemas[name], unfolded=name in unfolded)
    return SHELL.format(title="REST interface", content="\n".join(parts))


def _operation(method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>"
    yield f"<p>{html.escape(operation.get('description', ''))}</p>"
    if parameters := operation.get("parameters"):
        rows = ((one["name"], _type_name(one["schema"]), one.get("description", "")) for one in parameters)
        yield from _table(("parameter", "type", ""), rows)
    for media_type, body in operation.get("requestBody", {}).get("content", {}).items():
        yield f"<p>Body: <code>{html.escape(media_type)}</code></p>"
        fields = body["schema"]["properties"].items()
        yield from _table(
            ("field", "type", ""), ((n, _type_name(f), f.get("description", "")) for n, f in fields)
        )
    responses = (
        (status, ", ".join(one.get("content", {})), one["description"])
        for status, one in operation["responses"].items()
    )
    yield from _table(("status", "media type", ""), responses)


def _referenced(name: str, schemas: dict[str, Any]) -> set[str]:
    """Return a schema and those that it refers to, directly or indirectly."""
    found, left = set(), [name]
    while left:
        one = left.pop()
        if one in schemas and one not in found:
            found.add(one)
            left += re.findall(r"#/components/schemas/(\w+)", str(schemas[one]))
    return found


def _schema(name: str, schema: dict[str, Any], *, unfolded: bool) -> Iterator[str]:
    yield "<details open>" if unfolded else "<details>"
    yield f"<summary><h3 id='{html.escape(name)}'>{html.escape(name)}</h3></summary>"
    yield f"<pre class='about'>{html.escape(schema.get('description', ''))}</pre>"
    fields = schema.get("properties", {}).items()
    yield from _table(
        ("field", "type", ""), ((n, _type_name(f), f.get("description", "")) for n, f in fields)
    )
    yield "</details>"


def _type_name(schema: dict[str, Any]) -> str:
    """Return the type of a JSON schema in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"].rsplit("/", 1)[-1])
    if "anyOf" in schema:
        return " or ".join(map(_type_name, schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if schema.get("type") == "array":
        return f"list of {_type_name(schema.get('items', {})) or 'values'}"
    if values := schema.get("additionalProperties"):
        return f"object of {_type_name(values)}" if isinstance(values, dict) else "object"
    return str(schema.get("format") or schema.get("type", ""))


def _table(heads: tuple[str, ...], rows: Any) -> Iterator[str]:
    yield "<table><thead><tr>" + "".join(f"<th>{html.escape(head)}</th>" for head in heads) + "</tr></thead>"
    yield "<tbody>"
    for row in rows:
        yield "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
    yield "</tbody></table>"

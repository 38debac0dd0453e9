"""The page of a tree, which grows while one looks at it."""

import asyncio
import hashlib
import secrets
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from ramify.http.clients import Clients
from ramify.http.view import View, view

TREES_MAX = 4  # that are drawn at once: a large one takes a while
POLL_MS = 1000  # between two looks at a tree that grows
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


class Pages:
    """The endpoints."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._drawing = asyncio.Semaphore(TREES_MAX)
        self._templates = Environment(
            loader=PackageLoader("ramify.http"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )

    async def page(self, request: Request) -> Response:
        """The whole page. Raises `ClientError`."""
        found, nonce = await self._view(request), secrets.token_urlsafe(16)
        html = self._templates.get_template("page.html").render(
            view=found, nonce=nonce, poll_ms=POLL_MS, job=request.path_params["job"], index=request.path_params["index"]
        )
        policy = (
            f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return HTMLResponse(html, headers={**HEADERS, "Content-Security-Policy": policy})

    async def tree(self, request: Request) -> Response:
        """What changes of it while the tree grows, as JSON; `digest` tells whether it has. Raises `ClientError`."""
        found = await self._view(request)
        html = self._templates.get_template("tree.html").render(view=found)
        digest = hashlib.sha256(html.encode()).hexdigest()
        content: dict[str, Any] = {"done": found.done, "digest": digest}
        if request.query_params.get("digest") != digest:
            content["html"] = html
        return JSONResponse(content, headers=HEADERS)

    async def _view(self, request: Request) -> View:
        async with self._clients.of(request) as client, self._drawing:
            tree = await client.tree(request.path_params["job"], request.path_params["index"])
            return await asyncio.to_thread(view, tree)

"""The page: a few files in memory, so no request path reaches the file system."""

from __future__ import annotations

from importlib import resources

from fastapi import FastAPI
from fastapi.responses import Response

PAGE = {  # path -> file of web/, media type
    "/": ("index.html", "text/html; charset=utf-8"),
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/why.js": ("why.js", "text/javascript; charset=utf-8"),
    "/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


def add_page(app: FastAPI) -> None:
    """Adds the routes of `PAGE`."""
    web = resources.files("onesug_jax.serve") / "web"

    def add(path: str, content: bytes, media_type: str) -> None:
        @app.get(path, include_in_schema=False)
        async def page():
            headers = {"cache-control": "no-cache"}
            return Response(content, media_type=media_type, headers=headers)

    for path, (name, media_type) in PAGE.items():
        add(path, (web / name).read_bytes(), media_type)

"""The numbers for Prometheus."""

from __future__ import annotations

from quart import Response

from ..upkeep.metrics import render
from .routes import TEXT, Ask, Route


async def metrics(ask: Ask) -> Response:  # noqa: ASYNC124 -- as all handlers are
    """Give all numbers as they are now."""
    body, content_type = render(ask.service.metrics.registry)
    return Response(body, content_type=content_type)


ROUTES = [Route("GET", "/metrics", metrics, "Numbers for Prometheus", gives=TEXT)]

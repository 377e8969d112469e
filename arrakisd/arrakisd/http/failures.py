"""Errors as answers."""

from __future__ import annotations

import json
from typing import Any

from quart import Response

from arrakis_rpc.errors import ArrakisError
from arrakis_rpc.text import as_unicode

from .guards import RefusedError
from .statuses import status_of


def failure_body(error: ArrakisError) -> dict[str, Any]:
    """Give the body of an answer that is an error."""
    hint = {"hint": as_unicode(error.hint)} if error.hint else {}
    return {"error": {"message": as_unicode(error.message), **hint}}


def failure(error: ArrakisError) -> Response:
    """Give the answer that an error is."""
    headers = list(error.headers) if isinstance(error, RefusedError) else []
    body = json.dumps(failure_body(error))
    response = Response(body, status=status_of(error), content_type="application/json")
    for name, value in headers:
        response.headers.add(name, value)
    return response

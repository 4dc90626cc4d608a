"""The routes of the API, from the table of operations.

Owns: their patterns. Does not own: the operations. None of Flower's own (``/api/workers``, ``/api/tasks`` …) begins as
these do.
"""

from __future__ import annotations

import re
from itertools import groupby

from tornado.routing import URLSpec
from tornado.web import url

from orchestrator.monitoring.api.handlers import OpenApiHandler, OperationHandler
from orchestrator.monitoring.api.operations import EVENTS, OPENAPI, OPERATIONS
from orchestrator.monitoring.api.streams import EventsHandler


def pattern(path: str) -> str:
    """A path with names in braces as a regular expression; what stands for a name may hold anything but a slash, which
    is written as ``%2F``."""
    parts = re.split(r"{(\w+)}", path)
    return "".join(f"(?P<{part}>[^/]+)" if n % 2 else re.escape(part) for n, part in enumerate(parts))


def _routes() -> list[URLSpec]:
    ordered = sorted(OPERATIONS, key=lambda each: each.path)
    by_path = {
        path: {each.method: each for each in some} for path, some in groupby(ordered, lambda o: o.path)
    }
    return [
        url(pattern(OPENAPI), OpenApiHandler, name="workflows-openapi"),
        url(pattern(EVENTS.path), EventsHandler, name="workflows-events"),
        *(url(pattern(path), OperationHandler, {"operations": some}) for path, some in by_path.items()),
    ]


ROUTES = _routes()

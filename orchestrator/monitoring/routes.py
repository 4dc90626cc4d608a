"""Every route of the tab.

Owns: their order. Does not own: any of them: each part has its ``ROUTES``, named patterns from Flower's root.
"""

from __future__ import annotations

from collections.abc import Sequence

from tornado.routing import URLSpec

from orchestrator.monitoring.api.routes import ROUTES as API
from orchestrator.monitoring.pages.routes import ROUTES as PAGES


def routes() -> Sequence[URLSpec]:
    """All of them. ``--url_prefix`` is put before each by Flower."""
    return [*API, *PAGES]

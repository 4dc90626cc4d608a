"""The routes of the pages.

Owns: their patterns and names (for ``reverse_url``). Does not own: the handlers.
"""

from __future__ import annotations

from tornado.web import url

from orchestrator.monitoring.flower import STATIC
from orchestrator.monitoring.pages.assets import AssetHandler
from orchestrator.monitoring.pages.listing import WorkflowsPage

ROUTES = [
    url(r"/workflows", WorkflowsPage, name="workflows"),
    url(
        r"/workflows-assets/([\w.-]+)",
        AssetHandler,
        {"path": str(STATIC)},
        name="workflows-asset",
    ),
]

"""Style sheets and scripts of the pages.

Owns: handing them out, to whoever may see the pages. Does not own: their content (``static/``).
"""

from __future__ import annotations

from tornado.web import StaticFileHandler

from orchestrator.monitoring.flower import PageHandler


class AssetHandler(PageHandler, StaticFileHandler):
    """A file of ``static/``, kept by browsers for as long as its address, which names its content."""

    def set_extra_headers(self, path: str) -> None:
        self.set_header(
            "Cache-Control", "private, max-age=31536000, immutable" if self.query("v") else "no-cache"
        )

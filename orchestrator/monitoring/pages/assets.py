"""Handing out style sheets and scripts, to whoever may see the pages.

Owns: the handler, and for how long browsers keep what they got. Does not own: the content (``monitoring.assets``).
"""

from __future__ import annotations

from pathlib import PurePath

from tornado.web import HTTPError

from orchestrator.monitoring import assets
from orchestrator.monitoring.flower import PageHandler


class AssetHandler(PageHandler):
    """A file, kept for as long as its address, which names its content."""

    async def get(self, name: str) -> None:
        found = assets.content(name)
        if found is None:
            raise HTTPError(404, "There is no such file.")
        self.set_header("Content-Type", assets.TYPES[PurePath(name).suffix])
        is_current = self.query("v") == assets.version(name)
        self.set_header("Cache-Control", "private, max-age=31536000, immutable" if is_current else "no-cache")
        self.finish(found)

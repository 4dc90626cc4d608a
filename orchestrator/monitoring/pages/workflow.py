"""The page of one workflow: its picture, its limits and rates, its instances, and how to start one.

Owns: that page. Does not own: what it shows (``documents``), or starting (the JSON API).
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from orchestrator.client.orchestrator import Orchestrator
from orchestrator.diagrams.render.svg import svg
from orchestrator.errors import UnknownWorkflow
from orchestrator.monitoring.documents import instances, trace
from orchestrator.monitoring.documents.workflows import workflow
from orchestrator.monitoring.flower import PageHandler
from orchestrator.workflow.status import Status

LIMIT = 50
"""Instances on one page."""


class WorkflowPage(PageHandler):
    """``/workflows/<name>?status=&q=&cursor=``"""

    async def get(self, name: str) -> None:
        chosen = [each for each in self.get_query_arguments("status") if each]
        prefix, cursor = self.query("q").strip(), self.query("cursor") or None
        search = {"statuses": chosen, "prefix": prefix, "cursor": cursor}
        document, page, drawing = await self.offload(_asked, self.orchestrator, name, search)
        self.page(
            "workflow.html",
            document=document,
            page=page,
            drawing=drawing,
            chosen=chosen,
            prefix=prefix,
            is_first=cursor is None,
            statuses=[status.value for status in Status],
            next_page=_next(page["cursor"], chosen, prefix),
        )


def _next(cursor: str | None, statuses: list[str], prefix: str) -> str | None:
    if cursor is None:
        return None
    return "?" + urlencode([*(("status", each) for each in statuses), ("q", prefix), ("cursor", cursor)])


def _asked(where: Orchestrator, name: str, search: dict[str, Any]) -> tuple[Any, Any, str | None]:
    document = workflow(where, name)
    page = instances.page(where, name, limit=LIMIT, **search)
    try:
        drawing = svg(trace.graph(where, name, document["version"]), bare=True)
    except UnknownWorkflow:
        drawing = None
    return document, page, drawing

"""The first page: every workflow, with how many instances of it there are in each status.

Owns: that page. Does not own: what it shows (``documents``).
"""

from __future__ import annotations

from orchestrator.monitoring.documents.workflows import workflows
from orchestrator.monitoring.flower import PageHandler


class WorkflowsPage(PageHandler):
    """``/workflows``"""

    async def get(self) -> None:
        self.page("list.html", document=await self.offload(workflows, self.orchestrator))

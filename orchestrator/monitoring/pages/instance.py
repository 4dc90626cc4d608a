"""The page of one instance, and the parts of it that its script asks for as the instance goes on.

Owns: these handlers. Does not own: what they show (``documents``), how steps lie on the time axis (``bars``), or acting
on the instance (the JSON API).
"""

from __future__ import annotations

from typing import Any

from tornado.web import HTTPError

from orchestrator.client.orchestrator import Orchestrator
from orchestrator.diagrams.render.svg import svg
from orchestrator.errors import InvalidConfig
from orchestrator.monitoring.documents import instance as standing
from orchestrator.monitoring.documents import timeline, trace
from orchestrator.monitoring.documents.values import Document
from orchestrator.monitoring.flower import PageHandler
from orchestrator.monitoring.pages import bars
from orchestrator.store.views import standing as rows

STEPS = 100
"""Steps of the timeline that are loaded at once."""
SHORT = 64 * 1024
"""Bytes of a value that the page shows."""


class InstancePage(PageHandler):
    """``/workflows/<name>/<id>``; with ``?part=standing`` only what changes with its status."""

    async def get(self, name: str, id: str) -> None:
        if self.query("part") == "standing":
            document, audit = await self.offload(_standing, self.orchestrator, name, id)
            self.page("standing.html", document=document, audit=audit)
            return
        document, audit, traced, line, now = await self.offload(_whole, self.orchestrator, name, id)
        axis = bars.axis(document, line["steps"], now)
        self.page(
            "instance.html",
            document=document,
            audit=audit,
            drawing=None if traced["graph"] is None else svg(traced["graph"], traced["trace"], bare=True),
            trace=traced,
            timeline=line,
            axis=axis,
            bars=bars.of(line["steps"], axis.origin),
        )


class TimelinePart(PageHandler):
    """``/workflows/<name>/<id>/timeline``: steps after the place ``after``, or those that ``key`` names."""

    async def get(self, name: str, id: str) -> None:
        keys = self.get_query_arguments("key", strip=False)
        if keys:
            found = await self.offload(timeline.chosen, self.orchestrator, name, id, keys)
        else:
            after, where = self._number("after", int), self.orchestrator
            found = await self.offload(timeline.timeline, where, name, id, after=after, limit=STEPS)
        self.page(
            "rows.html",
            document=found,
            timeline=found,
            bars=bars.of(found["steps"], self._number("origin", float)),
        )

    def _number(self, name: str, kind: Any) -> Any:
        try:
            return kind(self.query(name, "0"))
        except ValueError as error:
            raise InvalidConfig(f"{name} is {self.query(name)!r:.40}; it must be a number") from error


class StepPage(PageHandler):
    """``/workflows/<name>/<id>/steps/<key>``: everything of one step; with ``?part=1`` without the page around it."""

    async def get(self, name: str, id: str, key: str) -> None:
        found = await self.offload(timeline.step, self.orchestrator, name, id, key)
        document = await self.offload(standing.instance, self.orchestrator, name, id, most=SHORT)
        self.page(
            "step_part.html" if self.query("part") else "step.html",
            step=found,
            document=document,
            tasks=self.tasks_of(document["uuid"], key),
        )


class TaskPage(PageHandler):
    """``/workflows-tasks/<uuid>``: from the page of a task to that of the instance whose step it is."""

    async def get(self, uuid: str) -> None:
        found = await self.offload(_named, self.orchestrator, uuid)
        if found is None:
            raise HTTPError(404, "The instance that this task belonged to is not there any more.")
        key = self.query("key")
        self.redirect(self.reverse_url("workflow-instance", *found) + (f"#step-{key}" if key else ""))


def _standing(where: Orchestrator, name: str, id: str) -> tuple[Document, Document]:
    return standing.instance(where, name, id, most=SHORT), standing.audit(where, name, id)


def _whole(where: Orchestrator, name: str, id: str) -> tuple[Document, Document, Document, Document, float]:
    document, audit = _standing(where, name, id)
    traced = trace.trace(where, name, id)
    return document, audit, traced, timeline.timeline(where, name, id, limit=STEPS), where.now()


def _named(where: Orchestrator, uuid: str) -> tuple[str, str] | None:
    with where.lanes.statement() as connection:
        return rows.named(connection, where.settings.account, uuid)

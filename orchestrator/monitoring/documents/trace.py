"""The picture of a workflow, and an instance laid over it.

Owns: where the graph comes from, and both documents. Does not own: parsing, matching and drawing (``diagrams``).
"""

from __future__ import annotations

import json

from orchestrator.client.orchestrator import Orchestrator
from orchestrator.diagrams import tracing
from orchestrator.diagrams.render.svg import svg
from orchestrator.diagrams.tracing import Trace, TracedStep
from orchestrator.engine import sources
from orchestrator.errors import InvalidConfig, UnknownWorkflow
from orchestrator.monitoring.documents.instance import cursor, find
from orchestrator.monitoring.documents.values import Document, at
from orchestrator.store import workers
from orchestrator.store.views import registered, timeline
from orchestrator.store.views.standing import Standing
from orchestrator.workflow.language.definition import registry

LISTED = 1000
"""Steps that a trace names with their states; of longer instances it has the nodes alone."""


def graph(where: Orchestrator, name: str, version: str | None = None) -> Document:
    """The graph of one version (of the one that was registered last, without), as a worker drew it, else as this
    process can. Raises ``UnknownWorkflow`` if neither is there."""
    account = where.settings.account
    with where.lanes.statement() as connection:
        if version is None:
            version = next((row.version for row in registered.versions(connection, account, name)), None)
        stored = None if version is None else workers.graph(connection, account, name, version)
    if stored is not None:
        found: Document = json.loads(stored)
        return found
    try:
        return sources.diagram(registry.latest(name) if version is None else registry.get(name, version))
    except (UnknownWorkflow, InvalidConfig) as error:
        what = "" if version is None else f" version {version!r}"
        raise UnknownWorkflow(
            f"There is no diagram of workflow {name!r}{what}: no worker has stored one, and its source is not here."
        ) from error


def picture(where: Orchestrator, name: str, version: str | None = None) -> str:
    """The graph as an SVG document. Raises ``UnknownWorkflow``."""
    return svg(graph(where, name, version))


def trace(where: Orchestrator, name: str, id: str) -> Document:
    """The graph of the instance's version, with the state of each node; ``graph`` and ``trace`` are ``None`` where
    there is no diagram. Raises ``InstanceNotFound``."""
    row, steps, drawn, laid = _laid(where, name, id)
    return {
        "workflow": name,
        "id": id,
        "version": row.version,
        "status": row.status,
        "cursor": cursor(row),
        "graph": drawn,
        "trace": None if laid is None else _json(laid),
        "step_count": len(steps),
        "steps": [{"key": each.key, "state": each.state} for each in steps[:LISTED]],
    }


def traced(where: Orchestrator, name: str, id: str) -> str | None:
    """The picture of an instance with the states in place, as an SVG document; ``None`` where there is no diagram.
    Raises ``InstanceNotFound``."""
    _, _, drawn, laid = _laid(where, name, id)
    return None if drawn is None else svg(drawn, laid)


def _laid(
    where: Orchestrator, name: str, id: str
) -> tuple[Standing, list[TracedStep], Document | None, Trace | None]:
    row = find(where, name, id)
    with where.lanes.statement() as connection:
        steps = tracing.steps(timeline.slim(connection, row.id))
    try:
        drawn = graph(where, name, row.version)
    except UnknownWorkflow:
        return row, steps, None, None
    return row, steps, drawn, tracing.trace(drawn, steps, row.status)


def _json(laid: Trace) -> Document:
    document = laid.json()
    for node in document["nodes"].values():
        node["started_at"], node["finished_at"] = at(node["started_at"]), at(node["finished_at"])
    return document

"""The verbs of the API: what changes something.

Owns: which code a new instance is checked with. Does not own: the verbs themselves (``client``). Those on an instance
need no code; what a new one is given is checked where the code of its version is imported here, else by the worker that
runs it.
"""

from __future__ import annotations

import json

from orchestrator.client.instance import WorkflowInstance
from orchestrator.client.orchestrator import Orchestrator
from orchestrator.client.workflow import Workflow, without_code
from orchestrator.errors import UnknownWorkflow
from orchestrator.monitoring.api.bodies import Create, Nothing, Restart, SendEvent, SkipRollback, Terminate
from orchestrator.monitoring.documents.values import Document
from orchestrator.monitoring.documents.workflows import known
from orchestrator.workflow.language.definition import registry


def create(where: Orchestrator, name: str, body: Create) -> Document:
    """Create an instance. Raises ``UnknownWorkflow`` for what no worker has registered, and what ``create`` raises."""
    workflow = _of_version(where, name, body.version)
    made = workflow.create(
        body.params,
        id=body.id,
        success_retention=body.success_retention,
        error_retention=body.error_retention,
        orchestrator=where,
    )
    return {"workflow": name, "id": made.id, "version": workflow.version}


def delete(where: Orchestrator, name: str, id: str) -> None:
    _instance(where, name, id).delete()


def pause(where: Orchestrator, name: str, id: str, body: Nothing) -> None:
    _instance(where, name, id).pause()


def resume(where: Orchestrator, name: str, id: str, body: Nothing) -> None:
    _instance(where, name, id).resume()


def terminate(where: Orchestrator, name: str, id: str, body: Terminate) -> None:
    _instance(where, name, id).terminate(rollback=body.rollback)


def restart(where: Orchestrator, name: str, id: str, body: Restart) -> None:
    _instance(where, name, id).restart(body.from_step, body.count, body.kind)


def send_event(where: Orchestrator, name: str, id: str, body: SendEvent) -> None:
    _instance(where, name, id).send_event(body.type, body.payload)


def retry_rollback(where: Orchestrator, name: str, id: str, body: Nothing) -> None:
    _instance(where, name, id).retry_rollback()


def skip_rollback(where: Orchestrator, name: str, id: str, body: SkipRollback) -> None:
    _instance(where, name, id).skip_rollback(body.step, body.count)


def _instance(where: Orchestrator, name: str, id: str) -> WorkflowInstance:
    return without_code(name).get(id, orchestrator=where)


def _of_version(where: Orchestrator, name: str, version: str | None) -> Workflow:
    versions, _ = known(where, name)
    chosen = next((row for row in versions if version in (None, row.version)), None)
    if chosen is None:
        there = ", ".join(repr(row.version) for row in versions)
        what = f"a workflow {name!r}" + ("" if version is None else f" version {version!r}")
        raise UnknownWorkflow(
            f"No worker has registered {what}" + (f"; it has the versions {there}." if there else ".")
        )
    try:
        return Workflow(registry.get(name, chosen.version))
    except UnknownWorkflow:
        options = json.loads(chosen.options)
        limits = {each: options.get(each) for each in ("concurrency", "creation_rate")}
        return without_code(name, chosen.version, **limits)

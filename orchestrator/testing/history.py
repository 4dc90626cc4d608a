"""Exported histories, run against today's code.

Owns: reading the document that ``export_history()`` gives, in production and under test, and the replay of it. Does
not own: the format (``client.asking.exported``), nor matching code and history (``workflow.replay``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from orchestrator.client.asking.exported import FORMAT, VERSION
from orchestrator.client.workflow import Workflow
from orchestrator.errors import InvalidConfig, NonDeterminismError
from orchestrator.testing.simulation.driving import outside
from orchestrator.workflow import codec
from orchestrator.workflow.history import Began, Fact, StepRow, facts
from orchestrator.workflow.language.commands import Command, Complete, Fail
from orchestrator.workflow.language.definition import Definition
from orchestrator.workflow.replay import Origin, Replay
from orchestrator.workflow.status import Status


def replay_history(workflow: Workflow, history: Mapping[str, Any] | str) -> None:
    """Run today's code of ``workflow`` against an exported history: a document, or its JSON text.

    No body runs. Raises ``NonDeterminismError`` where the code does something else than is recorded (it starts other
    steps, in another order, or comes to another kind of end; what a finished instance returned is not compared),
    ``SerializationError`` where a recorded value no longer fits its annotation, and ``InvalidConfig`` for a document
    that is of another workflow, of another format, or was exported without its sensitive values.
    """
    definition: Definition = workflow.definition
    document = _read(history)
    _check(definition, document)
    outside(lambda: _replay(definition, document))


def _replay(definition: Definition, document: Mapping[str, Any]) -> None:
    replay = Replay(definition, _origin(document))
    ended_seq = document["ended_seq"]
    try:
        replay.feed(fact for fact in _facts(document) if ended_seq is None or fact.seq < ended_seq)
        if ended_seq is not None:
            _check_end(document, list(replay.pending))
    finally:
        replay.discard()


def _read(history: Mapping[str, Any] | str) -> Mapping[str, Any]:
    if isinstance(history, str):
        try:
            history = json.loads(history)
        except ValueError as error:
            raise InvalidConfig(f"the history is no JSON text: {error}") from error
    if not isinstance(history, Mapping) or history.get("format") != FORMAT:
        raise InvalidConfig(f"this is no exported history (its format is not {FORMAT!r})")
    if history.get("version") != VERSION:
        raise InvalidConfig(
            f"the history is of version {history.get('version')!r} of the format; this release reads {VERSION}"
        )
    return history


def _check(definition: Definition, document: Mapping[str, Any]) -> None:
    if document["workflow"] != definition.name:
        raise InvalidConfig(
            f"the history is of workflow {document['workflow']!r}, and the code is that of {definition.name!r}"
        )
    redacted = [step["key"] for step in document["steps"] if step.get("is_redacted")]
    if redacted:
        raise InvalidConfig(
            f"the history lacks the sensitive values of {', '.join(redacted)}: export it with include_sensitive=True"
        )


def _origin(document: Mapping[str, Any]) -> Origin:
    schedule = document["schedule"]
    return Origin(
        UUID(document["id"]),
        document["instance_id"],
        document["run"],
        document["params"],
        document["created_at"],
        seed=document["seed"],
        schedule=None if schedule is None else (schedule["cron"], schedule["at"]),
    )


def _facts(document: Mapping[str, Any]) -> list[Fact]:
    if document["started_at"] is None:
        return []
    rows = [
        StepRow(
            step["key"],
            step["kind"],
            step["status"],
            step["started_seq"],
            step["started_at"],
            step["finished_seq"],
            step["finished_at"],
            output=step["output"],
            error=step["error"],
        )
        for step in document["steps"]
    ]
    return [Began(0, document["started_at"]), *facts(rows, ended_seq=document["ended_seq"])]


def _check_end(document: Mapping[str, Any], pending: list[Command]) -> None:
    """The code has to come to the kind of end that is recorded, with nothing started before it."""
    if Status.TERMINATED in (document["status"], document["ending"]):
        return  # not the code's doing: it may stand anywhere
    wanted = (
        "the end of the workflow" if document["status"] == Status.COMPLETE else "the failure of the workflow"
    )
    kind = Complete if document["status"] == Status.COMPLETE else Fail
    if pending and isinstance(pending[0], kind):
        return
    if kind is Fail and not pending:
        return  # it failed by a limit, not by its code
    came = _named(pending[0]) if pending else "nothing: the code still waits"
    raise NonDeterminismError(
        f"The history (seq {document['ended_seq']}) has {wanted}, but the code came to {came}.", wanted, came
    )


def _named(command: Command) -> str:
    if isinstance(command, Complete):
        return "the end of the workflow"
    if isinstance(command, Fail):
        return f"the failure of the workflow ({codec.error_info(command.error)})"
    return f"the start or cancellation of {command.key!r}"

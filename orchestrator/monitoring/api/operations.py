"""Everything the API can do: one table, from which handlers, routes and the OpenAPI document are made.

Owns: methods, paths, parameters, and which function answers. Does not own: HTTP (``handlers``), the functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.client.orchestrator import Orchestrator
from orchestrator.errors import UnknownWorkflow
from orchestrator.monitoring.api import bodies, records, schemas, verbs
from orchestrator.monitoring.documents import events, instance, instances, timeline, trace, workflows
from orchestrator.monitoring.documents.values import Document
from orchestrator.workflow.lifecycle import NUMBERS
from orchestrator.workflow.status import Status

ROOT = "/api/workflows"
OPENAPI = ROOT + "/openapi.json"
_ONE = ROOT + "/{name}"
_INSTANCES = _ONE + "/instances"
_INSTANCE = _INSTANCES + "/{id}"


@dataclass(frozen=True)
class Parameter:
    """A parameter of the query. ``several``: it may be given more than once."""

    name: str
    kind: Literal["string", "integer"]
    about: str
    default: Any = None
    several: bool = False
    among: tuple[str, ...] = ()


@dataclass(frozen=True)
class Operation:
    """One method of one path. ``call`` gets the ``Orchestrator``, then what is in braces in the path, the parameters
    and, if there is a model for it, the ``body``; it runs in a thread and returns the document."""

    method: Literal["get", "post", "delete"]
    path: str
    about: str
    call: Callable[..., Any]
    answer: Any = None
    """The type of the answer; ``None``: there is no content."""
    parameters: tuple[Parameter, ...] = ()
    body: type[bodies.Body] | None = None
    status: int = 200
    media: str = "application/json"
    refuses: tuple[int, ...] = ()

    @property
    def id(self) -> str:
        """Its name in the OpenAPI document."""
        return self.call.__name__.strip("_")


_LIMIT = Parameter("limit", "integer", "At most so many, up to 1,000.", 100)
_VERSION = Parameter("version", "string", "The version that was registered last by default.")
_AFTER = Parameter("after", "integer", "Steps behind this place; `next` of another page.", 0)
_PAGE = Parameter("limit", "integer", "At most so many, up to 500.", 100)


def _instances(
    where: Orchestrator, name: str, status: list[str], id_prefix: str | None, limit: int, cursor: str | None
) -> Document:
    return instances.page(where, name, statuses=status, prefix=id_prefix or "", limit=limit, cursor=cursor)


def _steps(where: Orchestrator, name: str, id: str, key: list[str]) -> Document:
    return timeline.chosen(where, name, id, key)


def _traced(where: Orchestrator, name: str, id: str) -> str:
    found = trace.traced(where, name, id)
    if found is None:
        raise UnknownWorkflow(f"There is no diagram of the version of workflow {name!r} that {id!r} is of.")
    return found


def _verb(
    name: str, about: str, call: Callable[..., Any], body: type[bodies.Body] = bodies.Nothing
) -> Operation:
    return Operation(
        "post", f"{_INSTANCE}/{name}", about, call, body=body, status=204, refuses=(404, 409, 422, 429)
    )


OPERATIONS: Sequence[Operation] = (
    Operation("get", ROOT, "Every registered workflow.", workflows.workflows, schemas.Workflows),
    Operation("get", _ONE, "One workflow.", workflows.workflow, schemas.Workflow, refuses=(404,)),
    Operation(
        "get",
        f"{_ONE}/diagram",
        "What it may do, as a graph.",
        trace.graph,
        schemas.Graph,
        (_VERSION,),
        refuses=(404,),
    ),
    Operation(
        "get",
        f"{_ONE}/diagram.svg",
        "The same as a picture.",
        trace.picture,
        str,
        (_VERSION,),
        media="image/svg+xml",
        refuses=(404,),
    ),
    Operation(
        "get",
        _INSTANCES,
        "Its instances, the newest first, or by their ids.",
        _instances,
        schemas.Instances,
        (
            Parameter("status", "string", "Only those in this status.", several=True, among=tuple(Status)),
            Parameter("id_prefix", "string", "Only those whose id begins so, in the order of their ids."),
            _LIMIT,
            Parameter("cursor", "string", "Go on where another page ended."),
        ),
        refuses=(422,),
    ),
    Operation(
        "post",
        _INSTANCES,
        "Create an instance.",
        verbs.create,
        records.Created,
        body=bodies.Create,
        status=201,
        refuses=(404, 409, 413, 422, 429),
    ),
    Operation("get", _INSTANCE, "One instance.", instance.instance, records.Instance, refuses=(404,)),
    Operation(
        "delete",
        _INSTANCE,
        "Delete it with everything recorded; nothing is compensated.",
        verbs.delete,
        status=204,
        refuses=(404,),
    ),
    Operation(
        "get",
        f"{_INSTANCE}/timeline",
        "Its steps and attempts, page by page.",
        timeline.timeline,
        records.Timeline,
        (_AFTER, _PAGE),
        refuses=(404, 422),
    ),
    Operation(
        "get",
        f"{_INSTANCE}/steps",
        "Some of its steps.",
        _steps,
        records.Steps,
        (Parameter("key", "string", "The key of a step, such as `do:charge:1`.", several=True),),
        refuses=(404,),
    ),
    Operation(
        "get",
        f"{_INSTANCE}/steps/{{key}}",
        "One step with all of its output, and tracebacks.",
        timeline.step,
        records.StepOf,
        refuses=(404,),
    ),
    Operation(
        "get",
        f"{_INSTANCE}/trace",
        "Its steps laid over the diagram.",
        trace.trace,
        records.Trace,
        refuses=(404,),
    ),
    Operation(
        "get",
        f"{_INSTANCE}/diagram.svg",
        "The diagram with the states of its steps.",
        _traced,
        str,
        media="image/svg+xml",
        refuses=(404,),
    ),
    Operation(
        "get",
        f"{_INSTANCE}/audit",
        "What operators did to it.",
        instance.audit,
        records.Audit,
        refuses=(404,),
    ),
    _verb("pause", "Let the steps in flight finish, and start none.", verbs.pause),
    _verb("resume", "Go on after a pause.", verbs.resume),
    _verb("terminate", "Stop it.", verbs.terminate, bodies.Terminate),
    _verb("restart", "Begin anew, or from a step.", verbs.restart, bodies.Restart),
    _verb("send-event", "Send it an event.", verbs.send_event, bodies.SendEvent),
    _verb("retry-rollback", "Take a failed rollback up again.", verbs.retry_rollback),
    _verb(
        "skip-rollback", "Leave a step out of a failed rollback.", verbs.skip_rollback, bodies.SkipRollback
    ),
)
"""In no order but that of the document; ``…/events`` has a handler of its own."""

EVENTS = Operation(
    "get", f"{_INSTANCE}/events",
    "What happened, and what happens, as server-sent events. With `Accept: application/json` a page of what there is.",
    events.page, records.Events,
    (
        Parameter("after", "integer", "Only events behind this event_id; the header Last-Event-ID counts before it."),
        Parameter("types", "string", "Only events of this type.", several=True, among=tuple(NUMBERS)),
        Parameter("heartbeat", "integer", "A comment after so many seconds of silence, 1 to 60.", 15),
    ),
    refuses=(404, 422),
)  # fmt: skip

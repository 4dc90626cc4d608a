"""An execution laid over a picture: what the recorded steps of one instance say about each node of a graph.

Owns: which step belongs to which node, and the state of a node that follows. Does not own ids (``parts``), pictures
(``render``), nor where graphs and steps are read from (the caller). Pure: a graph and records go in, a ``Trace`` comes
out, in time proportional to the two.

``steps(rows)`` makes the records from rows as they are stored (compensations fold into the step they undo);
``trace(graph, steps, status)`` lays them over the graph. As JSON::

    {"status": "running",          # of the instance, as given
     "start": "done",              # states for the two ends of the picture
     "end": "pending",
     "nodes": {                    # by node id; a node that is missing is ``pending``
       "main.0": {"state": "done", "total": 3, "counts": {"done": 3}, "last": "do:charge:3",
                  "started_at": 1700000000.0, "finished_at": 1700000002.5}},
     "entered": ["main", "main.1.0"],   # ids of parts (branches, loop bodies, functions) in which something ran
     "rest": [{"key": "do:old:1", "state": "done", "line": 7}],   # the first of those that fit no node
     "rest_total": 1}

``nodes`` holds steps, and frames and calls too: those sum up what is inside, so that a collapsed frame still tells. The
calls of one function share its sums, for it is drawn once. ``last`` is the key of the step that started last.
``started_at`` is the first start, ``finished_at`` the last end once all have ended; epoch seconds.

States of a step, and of a node by the first of these that any of its steps is in:

``running``             handed out or running, in its first attempt
``retrying``            failed before; waits for its next attempt or runs it
``compensating``        its handler waits, runs or retries
``waiting``             a sleep, an event or a child that is not over
``compensation_failed`` its handler failed for good
``failed``              failed for good
``compensated``         its handler ran, or was skipped by an operator
``done``                recorded
``cancelled``           cancelled or abandoned
``pending``             not come to

Matching: kind and name must fit (``${...}`` fits anything, ``unknown`` every name). Of several nodes the one on the
step's line wins, then the one whose name stands in the source as the step was called, a static name before a dynamic
one, the one with more fixed text, the nearest line. What is still equal (the same call twice on one line) takes turns
by the step's count. A step that fits none, for the code has changed, is in the rest: so each is in exactly one place.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

from orchestrator.diagrams.matching import Index
from orchestrator.diagrams.nodes import Json
from orchestrator.diagrams.parts import FUNCTION, Place, places

State = Literal[
    "running",
    "retrying",
    "compensating",
    "waiting",
    "compensation_failed",
    "failed",
    "compensated",
    "done",
    "cancelled",
    "pending",
]
STATES: tuple[State, ...] = get_args(State)
"""All states, in the order in which one hides another."""

RANK: dict[str, int] = {state: rank for rank, state in enumerate(STATES)}
OPEN = frozenset({"running", "retrying", "compensating", "waiting"})
"""States that something still follows on."""

ROLLBACK, PATCH = "rollback", "patch"
REST_SHOWN = 100
"""Of the steps that fit no node, how many the JSON names."""

_STEP: dict[str, State] = {
    "pending": "retrying",
    "waiting": "waiting",
    "done": "done",
    "failed": "failed",
    "cancelling": "cancelled",
    "cancelled": "cancelled",
    "abandoned": "cancelled",
}
_HANDLER: dict[str, State] = {
    "done": "compensated",
    "cancelled": "compensated",  # skipped: an operator said that it is undone
    "failed": "compensation_failed",
}
_START: dict[str, State] = {"queued": "pending"}
_END: dict[str, State] = {
    "complete": "done",
    "errored": "failed",
    "terminated": "cancelled",
    "rolling_back": "compensating",
}


class Row(Protocol):
    """A row of the steps table, as far as it matters here. Instants are epoch seconds."""

    key: str
    kind: str
    status: Any
    attempt: int
    line: int | None
    label: str
    started_at: float
    finished_at: float | None


@dataclass(frozen=True, slots=True)
class TracedStep:
    """One recorded step. ``handler`` is the status of its compensation, ``None`` if that has not started.

    ``status`` and ``handler`` are those of the row; ``label`` is the name as the source has it, if that is known.
    """

    key: str
    kind: str
    name: str
    count: int
    status: str
    attempt: int = 1
    line: int | None = None
    label: str = ""
    handler: str | None = None
    started_at: float | None = None
    finished_at: float | None = None

    @property
    def state(self) -> State:
        """What a picture shows of it."""
        if self.handler is not None:
            return _HANDLER.get(self.handler, "compensating")
        if self.status in ("handed", "running"):
            return "retrying" if self.attempt > 1 else "running"
        return _STEP.get(self.status, "running")


@dataclass(slots=True)
class NodeTrace:
    """What ran at one node, or inside one frame. ``counts`` is by state; their sum is ``total``."""

    counts: Counter[State] = field(default_factory=Counter)
    last: str | None = None
    order: int = -1
    """Which of all steps ``last`` is."""
    started_at: float | None = None
    finished_at: float | None = None

    @property
    def total(self) -> int:
        """How many steps ran here."""
        return self.counts.total()

    @property
    def state(self) -> State:
        """The state that hides the others."""
        return min(self.counts, key=RANK.__getitem__, default="pending")

    def add(self, step: TracedStep, order: int) -> None:
        """One more step, which is number ``order`` of all."""
        self.counts[step.state] += 1
        self._span(step.key, order, step.started_at, step.finished_at)

    def merge(self, other: NodeTrace) -> None:
        """Everything of another node too."""
        self.counts.update(other.counts)
        self._span(other.last, other.order, other.started_at, other.finished_at)

    def _span(
        self, last: str | None, order: int, started_at: float | None, finished_at: float | None
    ) -> None:
        if order > self.order:
            self.last, self.order = last, order
        if started_at is not None:
            self.started_at = started_at if self.started_at is None else min(self.started_at, started_at)
        if finished_at is not None:
            self.finished_at = max(self.finished_at or finished_at, finished_at)

    def json(self) -> Json:
        """The node's part of the document."""
        counts = {state: self.counts[state] for state in STATES if self.counts[state]}
        ended = self.finished_at if OPEN.isdisjoint(counts) else None
        times = {"started_at": self.started_at, "finished_at": ended}
        return {"state": self.state, "total": self.total, "counts": counts, "last": self.last, **times}


@dataclass(frozen=True, slots=True)
class Trace:
    """An execution over a graph: ``nodes`` by id, ``entered`` parts, and in ``rest`` the steps that fit no node."""

    nodes: Mapping[str, NodeTrace]
    entered: frozenset[str]
    rest: tuple[TracedStep, ...] = ()
    status: str | None = None

    @property
    def start(self) -> State:
        """The state of the picture's beginning."""
        return "pending" if self.status is None else _START.get(self.status, "done")

    @property
    def end(self) -> State:
        """The state of the picture's end."""
        return "pending" if self.status is None else _END.get(self.status, "pending")

    def state(self, node: str) -> State:
        """The state of a node, by id."""
        found = self.nodes.get(node)
        return "pending" if found is None else found.state

    def json(self) -> Json:
        """The document that the page reads; see the top of this module."""
        return {
            "status": self.status,
            "start": self.start,
            "end": self.end,
            "nodes": {node: found.json() for node, found in self.nodes.items()},
            "entered": sorted(self.entered),
            "rest": [{"key": s.key, "state": s.state, "line": s.line} for s in self.rest[:REST_SHOWN]],
            "rest_total": len(self.rest),
        }


def steps(rows: Iterable[Row]) -> list[TracedStep]:
    """The records of an instance, from its rows in the order they started; marks of changed code are no steps."""
    forward: list[Row] = []
    handlers: dict[str, str] = {}
    for row in rows:
        if row.kind == ROLLBACK:
            handlers[row.key.removesuffix(f":{ROLLBACK}")] = str(row.status)
        elif row.kind != PATCH:
            forward.append(row)
    found = []
    for row in forward:
        name, _, count = row.key.partition(":")[2].rpartition(":")
        found.append(
            TracedStep(
                row.key, row.kind, name, int(count), str(row.status), row.attempt, row.line, row.label,
                handlers.get(row.key), row.started_at, row.finished_at,
            )
        )  # fmt: skip
    return found


def trace(graph: Mapping[str, Any], recorded: Iterable[TracedStep], status: str | None = None) -> Trace:
    """Lay the steps of an instance, in the order they started, over the graph of its workflow.

    ``status`` is the instance's. Never raises for a step that the graph does not have: that one is in the rest.
    """
    found = list(places(graph))
    index = Index(found)
    nodes: dict[str, NodeTrace] = {}
    rest: list[TracedStep] = []
    for order, step in enumerate(recorded):
        node = index.node_of(step)
        if node is None:
            rest.append(step)
        else:
            nodes.setdefault(node, NodeTrace()).add(step, order)
    sums, entered = _summed(found, nodes)
    return Trace({**sums, **nodes}, entered, tuple(rest), status)


# -- what frames and calls sum up ------------------------------------------------------------------------------


def _summed(
    found: Sequence[Place], nodes: Mapping[str, NodeTrace]
) -> tuple[dict[str, NodeTrace], frozenset[str]]:
    """The frames and calls in which something ran, and the parts."""
    inside: dict[str, dict[str, None]] = defaultdict(dict)
    """By frame, call or part: the steps in it that ran. A step counts once, though its function is called twice."""
    calls = [place for place in found if place.document["type"] == "function_call"]
    for place in found:
        if place.node in nodes:
            for around in (*place.frames, *place.parts):
                inside[around][place.node] = None
    reached = _reached(calls, inside)
    for call in calls:
        for around in (call.node, *call.frames, *call.parts):
            inside[around].update(reached[call.document["name"]])
    sums: dict[str, NodeTrace] = {}
    for place in found:
        for node in inside.get(place.node, ()):
            sums.setdefault(place.node, NodeTrace()).merge(nodes[node])
    return sums, frozenset(part for place in found for part in place.parts if inside.get(part))


def _reached(calls: Sequence[Place], inside: Mapping[str, Mapping[str, None]]) -> dict[str, dict[str, None]]:
    """The steps that ran in each called function, or in one that it calls, at any depth."""
    callees: dict[str, list[str]] = defaultdict(list)
    for call in calls:
        callees[call.parts[0]].append(call.document["name"])
    found: dict[str, dict[str, None]] = {}
    for name in dict.fromkeys(call.document["name"] for call in calls):
        seen = {name: None}
        waiting = [name]
        steps_in: dict[str, None] = {}
        while waiting:
            section = f"{FUNCTION}{waiting.pop()}"
            steps_in.update(inside.get(section, {}))
            fresh = [each for each in callees.get(section, ()) if each not in seen]
            seen.update(dict.fromkeys(fresh))
            waiting += fresh
        found[name] = steps_in
    return found

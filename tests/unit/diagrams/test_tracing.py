"""An execution laid over a picture: every step is at exactly one node, or in the rest; states say what ran."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.diagrams.matching import KINDS, fits
from orchestrator.diagrams.parser import parse
from orchestrator.diagrams.parsing.sources import Source
from orchestrator.diagrams.parts import places
from orchestrator.diagrams.tracing import OPEN, STATES, Trace, TracedStep, steps, trace
from orchestrator.engine.sources import diagram
from orchestrator.workflow.history import StepRow
from tests.laws.corpus import SHAPES, Shape
from tests.laws.schedules import Schedule
from tests.unit.diagrams.shapes import shapes

LAWS = settings(derandomize=True, database=None, deadline=None, max_examples=200)
GRAPHS = {shape.name: shape.graph() for shape in shapes()}
STATUSES = (
    "handed",
    "running",
    "pending",
    "waiting",
    "cancelling",
    "done",
    "failed",
    "cancelled",
    "abandoned",
)


def graph_of(source: str) -> dict[str, Any]:
    return parse(Source("flows", textwrap.dedent(source)), "flow")


def step(key: str, status: str = "done", **more: Any) -> TracedStep:
    kind, _, rest = key.partition(":")
    name, _, count = rest.rpartition(":")
    return TracedStep(key, kind, name, int(count), status, **more)


def at_steps(graph: dict[str, Any], found: Trace) -> dict[str, int]:
    """How many steps each node has that is one."""
    return {
        place.node: found.nodes[place.node].total
        for place in places(graph)
        if place.node in found.nodes and place.document["type"] in KINDS
    }


# -- which node ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES.values(), ids=str)
def test_what_ran_is_at_a_node_on_its_line(shape: Shape) -> None:
    """Semantics §8: each node carries its line, so that a live trace can be laid over the graph."""
    graph = diagram(shape.definition)
    lines = {place.node: place.document["line"] for place in places(graph)}
    for choices in ([], [5, 1, 2, 3] * 30, list(range(60))):
        rows = Schedule(shape, choices).run().rows.values()
        recorded = steps(sorted(rows, key=lambda row: row.started_seq))
        found = trace(graph, recorded, "complete")
        assert found.rest == ()
        assert sum(at_steps(graph, found).values()) == len(recorded)
        for each in recorded:
            (node,) = at_steps(graph, trace(graph, [each]))
            assert lines[node] == each.line


FLOW = """
    async def flow(event, step):
        await step.do("notify", work)
        for each in event.payload:
            await step.do(f"load {each}", work)
            await step.do(f"load {each} twice", work)
        await step.do("notify", work)
        await step.do(event.name, work)
        x = step.do("same", work), step.do("same", work)
        await step.sleep("notify", 1)
"""


@pytest.mark.parametrize(
    ("key", "line", "node"),
    [
        ("do:notify:1", 3, "main.0"),
        ("do:notify:1", 7, "main.2"),
        ("do:notify:2", None, "main.2"),
        ("do:notify:1", 6, "main.2"),  # the code has changed: the nearest
        ("do:notify:1", 1, "main.0"),
        ("do:load 3:1", 5, "main.1.0.0"),
        ("do:load 3:1", None, "main.1.0.0"),
        ("do:load 3 twice:1", 6, "main.1.0.1"),
        ("do:load 3 twice:1", None, "main.1.0.1"),
        ("do:load 3 twice:1", 5, "main.1.0.0"),  # for it is called "3 twice"
        ("do:anything:1", 100, "main.3"),
        ("do:notify:1", 8, "main.3"),
        ("do:same:1", 9, "main.4"),
        ("do:same:2", 9, "main.5"),
        ("do:same:3", 9, "main.4"),
        ("sleep:notify:1", 3, "main.6"),
        ("sleep:other:1", 10, None),
        ("invoke:notify:1", 3, None),
        ("patch:notify:1", 3, None),
    ],
)
def test_a_step_is_at_one_node(key: str, line: int | None, node: str | None) -> None:
    found = trace(graph_of(FLOW), [step(key, line=line)])
    assert at_steps(graph_of(FLOW), found) == ({} if node is None else {node: 1})
    assert [each.key for each in found.rest] == ([key] if node is None else [])


def test_the_name_as_called_tells_two_calls_on_a_line_apart() -> None:
    flow = """
    async def flow(event, step):
        await step.do(f"a{event.x}", work), await step.do(f"{event.x}b", work)
    """
    for label, node in (("a${...}", "main.0"), ("${...}b", "main.1")):
        found = trace(graph_of(flow), [step("do:ab:1", line=3, label=label)])
        assert list(found.nodes) == [node]


@pytest.mark.parametrize(
    ("template", "name", "is_fitting"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("a${...}", "a", True),
        ("${...}a", "aa", True),
        ("a${...}a", "a", False),
        ("a${...}b${...}c", "axbyc", True),
        ("a${...}b${...}b", "ab", False),
        ("${...}", "any\nthing", True),
        ("unknown", "anything", True),
        ("a${...}", "b", False),
    ],
)
def test_names_fit_templates(template: str, name: str, is_fitting: bool) -> None:
    """Semantics §8: dynamic text in a name is shown as ``${...}``; what cannot be known is ``unknown``."""
    assert fits(template, name) is is_fitting


# -- states ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "state"),
    [
        (step("do:a:1", "handed"), "running"),
        (step("do:a:1", "running"), "running"),
        (step("do:a:1", "running", attempt=2), "retrying"),
        (step("do:a:1", "pending"), "retrying"),
        (step("do:a:1", "waiting"), "waiting"),
        (step("do:a:1", "done"), "done"),
        (step("do:a:1", "done", attempt=3), "done"),
        (step("do:a:1", "failed"), "failed"),
        (step("do:a:1", "cancelling"), "cancelled"),
        (step("do:a:1", "abandoned"), "cancelled"),
        (step("do:a:1", "done", handler="handed"), "compensating"),
        (step("do:a:1", "failed", handler="pending"), "compensating"),
        (step("do:a:1", "done", handler="done"), "compensated"),
        (step("do:a:1", "done", handler="cancelled"), "compensated"),
        (step("do:a:1", "done", handler="failed"), "compensation_failed"),
    ],
)
def test_the_state_of_a_step(one: TracedStep, state: str) -> None:
    assert one.state == state
    assert trace(graph_of('async def flow(e, s):\n    await s.do("a", w)'), [one]).state("main.0") == state


def test_a_loop_gathers_all_counts() -> None:
    flow = """
    async def flow(event, step):
        for each in event.payload:
            await step.do("each", work)
            if each:
                await part(step)

    async def part(step):
        await step.sleep("nap", 1)
        await step.do("never", work)
    """
    recorded = [
        step("do:each:1", started_at=1.0, finished_at=2.0),
        step("do:each:2", "failed", started_at=3.0, finished_at=4.0),
        step("sleep:nap:1", "done", started_at=5.0, finished_at=6.0),
        step("do:each:3", "running", started_at=7.0),
    ]
    found = trace(graph_of(flow), recorded, "running").json()
    assert found["nodes"]["main.0.0.0"] == {
        "state": "running", "total": 3, "counts": {"running": 1, "failed": 1, "done": 1}, "last": "do:each:3",
        "started_at": 1.0, "finished_at": None,
    }  # fmt: skip
    nap = {"state": "done", "total": 1, "counts": {"done": 1}, "last": "sleep:nap:1", "started_at": 5.0,
           "finished_at": 6.0}  # fmt: skip
    assert (
        found["nodes"]["fn:part.0"] == found["nodes"]["main.0.0.1"] == found["nodes"]["main.0.0.1.0.0"] == nap
    )
    assert found["nodes"]["main.0"]["total"] == 4
    assert "fn:part.1" not in found["nodes"]
    assert found["entered"] == ["fn:part", "main", "main.0.0", "main.0.0.1.0"]


def test_a_function_called_twice_counts_once_in_a_frame() -> None:
    flow = """
    async def flow(event, step):
        while event.x:
            await part(step)
            await part(step)

    async def part(step):
        await step.do("a", work)
        await part(step)
    """
    found = trace(graph_of(flow), [step("do:a:1"), step("do:a:2")])
    assert {node: each.total for node, each in found.nodes.items()} == {
        "main.0": 2, "main.0.0.0": 2, "main.0.0.1": 2, "fn:part.0": 2, "fn:part.1": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("status", "start", "end"),
    [
        (None, "pending", "pending"),
        ("queued", "pending", "pending"),
        ("running", "done", "pending"),
        ("waiting", "done", "pending"),
        ("paused", "done", "pending"),
        ("rolling_back", "done", "compensating"),
        ("complete", "done", "done"),
        ("errored", "done", "failed"),
        ("terminated", "done", "cancelled"),
    ],
)
def test_the_ends_show_the_instance(status: str | None, start: str, end: str) -> None:
    found = trace(graph_of(FLOW), [], status)
    assert (found.start, found.end) == (start, end)


def test_rows_fold_into_the_steps_they_undo() -> None:
    def row(key: str, status: str, **more: Any) -> StepRow:
        kind = "rollback" if key.endswith(":rollback") else key.partition(":")[0]
        return StepRow(key, kind, status, 1, 5.0, line=3, label="x", **more)  # type: ignore[arg-type]

    rows = [
        row("do:a:b:2", "done", attempt=1, finished_at=6.0),
        row("patch:new:1", "done"),
        row("do:a:b:2:rollback", "failed"),
    ]
    assert steps(rows) == [TracedStep("do:a:b:2", "do", "a:b", 2, "done", 1, 3, "x", "failed", 5.0, 6.0)]


# -- laws ------------------------------------------------------------------------------------------------------

names = st.sampled_from(
    ["first", "a", "b", "load", "x", "unknown", "s 1", "page 2", "summary agent (loop 2)"]
)
recorded_steps = st.lists(
    st.builds(
        lambda kind, name, count, status, attempt, line, handler, at: TracedStep(
            f"{kind}:{name}:{count}", kind, name, count, status, attempt, line, "", handler, at
        ),
        st.sampled_from(["do", "sleep", "wait", "invoke"]),
        names,
        st.integers(1, 5),
        st.sampled_from(STATUSES),
        st.integers(1, 3),
        st.one_of(st.none(), st.integers(1, 20)),
        st.one_of(st.none(), st.sampled_from(STATUSES)),
        st.one_of(st.none(), st.floats(0, 10)),
    ),
    max_size=30,
)


@LAWS
@given(st.sampled_from(sorted(GRAPHS)), recorded_steps, st.sampled_from(["running", "complete", "errored"]))
def test_every_step_is_in_one_place_and_counts_add_up(
    name: str, recorded: list[TracedStep], status: str
) -> None:
    graph = GRAPHS[name]
    found = trace(graph, recorded, status)
    assert sum(at_steps(graph, found).values()) + len(found.rest) == len(recorded)
    sums: Counter[str] = Counter()
    for node in at_steps(graph, found):
        sums.update(found.nodes[node].counts)
    sums.update(each.state for each in found.rest)
    assert sums == Counter(each.state for each in recorded)
    known = {place.node: place for place in places(graph)}
    for node, each in found.nodes.items():
        document = each.json()
        assert each.total == sum(document["counts"].values()) > 0
        assert each.state in document["counts"]
        assert (document["finished_at"] is None) or OPEN.isdisjoint(document["counts"])
        for around in known[node].frames:  # a frame has at least what is in it, and hides nothing of it
            assert found.nodes[around].total >= each.total or known[around].document["type"] == "step_do"
        assert set(known[node].parts) <= found.entered
    assert json.loads(json.dumps(found.json())) == found.json()
    assert {STATES.index(each["state"]) for each in found.json()["nodes"].values()} <= set(range(len(STATES)))


@LAWS
@given(st.sampled_from(sorted(GRAPHS)), recorded_steps)
def test_where_a_step_is_does_not_depend_on_others(name: str, recorded: list[TracedStep]) -> None:
    """So a page of the steps of an instance tells of them what all of them tell."""
    whole = at_steps(GRAPHS[name], trace(GRAPHS[name], recorded))
    one_by_one: Counter[str] = Counter()
    for each in recorded:
        one_by_one.update(at_steps(GRAPHS[name], trace(GRAPHS[name], [each])))
    assert one_by_one == whole

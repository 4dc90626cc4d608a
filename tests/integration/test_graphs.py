"""The graph of each workflow version is stored when a worker starts, for whoever shows instances without its code."""

from __future__ import annotations

import json
import os
import textwrap
import threading
from typing import Any

import pytest

from orchestrator.cli import main
from orchestrator.client import orchestrator as client
from orchestrator.engine import drawing, sources
from orchestrator.store import workers
from orchestrator.store.session import Engine
from orchestrator.workflow.language.definition import Registry
from tests.integration.harness import Site, eventually

pytestmark = pytest.mark.integration


async def graphs_flow(event: Any, step: Any) -> None:
    await step.do("first", print)
    await step.sleep("then", 1)


def other() -> Any:
    async def graphs_flow(event: Any, step: Any) -> None:
        await step.do("other", print)

    return graphs_flow


def stored(site: Site, name: str = "graphs_flow", version: str = "1") -> Any:
    with site.engine.connect() as connection:
        text = workers.graph(connection, site.settings.account, name, version)
    return None if text is None else json.loads(text)


def names(graph: Any) -> list[str]:
    return [node["name"] for node in graph["workflow"]["nodes"]]


def test_a_worker_stores_the_graphs_of_its_workflows(site: Site) -> None:
    """semantics §8: what ``Workflow.diagram()`` gives is kept by name and version; other code replaces it."""
    flow = site.workflow(graphs_flow)
    site.workflow(other(), version="2")
    site.worker()
    assert eventually(lambda: stored(site)) == flow.diagram()
    assert names(eventually(lambda: stored(site, version="2"))) == ["other"]
    assert stored(site, version="3") is None
    changed = Registry()
    site.workflow(other(), changed)
    site.worker(changed)
    eventually(lambda: names(stored(site)) == ["other"])


def test_code_that_was_replaced_meanwhile_leaves_the_newer_graph(site: Site) -> None:
    account = site.settings.account
    with site.engine.begin() as connection:
        workers.register_workflows(connection, account, [("a", "1", "new", "{}")])
        workers.keep_graphs(connection, account, [workers.Drawn("a", "1", "new", '"new"')])
        workers.keep_graphs(connection, account, [workers.Drawn("a", "1", "old", '"old"')])
        assert workers.graph(connection, account, "a", "1") == '"new"'
        workers.keep_graphs(connection, account, [workers.Drawn("a", "1", "new", None)])
        assert workers.graph(connection, account, "a", "1") is None


def test_what_cannot_be_drawn_has_no_graph_and_runs(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No source, or a parser that fails: the worker starts, and runs it, all the same."""
    made: dict[str, Any] = {"__name__": "nowhere"}
    exec("async def graphs_made(event, step):\n    return await step.do('a', int)\n", made)
    without, flow = site.workflow(made["graphs_made"]), site.workflow(graphs_flow)
    draw = sources.diagram

    def fail(definition: Any) -> Any:
        if definition.name == "graphs_flow":
            raise ZeroDivisionError
        return draw(definition)

    monkeypatch.setattr(sources, "diagram", fail)
    site.worker()
    assert without.create().result(timeout=30) == 0
    eventually(lambda: "'graphs_flow' runs, but cannot be drawn" in caplog.text)
    assert (stored(site, "graphs_made"), stored(site)) == (None, None)
    assert flow.create().id


def test_a_tree_that_another_thread_disturbs_is_built_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CPython 3.11 raises ``SystemError`` for it."""
    flow, draw, tries = site.workflow(graphs_flow), sources.diagram, []

    def disturbed(definition: Any) -> Any:
        tries.append(definition)
        if len(tries) < 3:
            raise SystemError("AST constructor recursion depth mismatch")
        return draw(definition)

    monkeypatch.setattr(sources, "diagram", disturbed)
    assert json.loads(drawing.graph_text(flow.definition) or "") == draw(flow.definition)


def test_graphs_wait_for_a_postgres_that_is_away(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    flow, tried = site.workflow(graphs_flow), threading.Event()
    monkeypatch.setattr(drawing, "AGAIN_S", 0.01)
    keep = workers.keep_graphs

    def away(*arguments: Any) -> None:
        if not tried.is_set():
            tried.set()
            raise ConnectionRefusedError
        keep(*arguments)

    monkeypatch.setattr(drawing.session, "is_away", lambda error: isinstance(error, ConnectionRefusedError))
    monkeypatch.setattr(workers, "keep_graphs", away)
    with site.engine.begin() as connection:
        definition = flow.definition
        known = [(definition.name, definition.version, definition.source_hash, "{}")]
        workers.register_workflows(connection, site.settings.account, known)
    engine: Engine = site.engine
    thread = drawing.Drawing(engine, site.settings.account, site.registry)
    thread.start()
    thread.start()
    eventually(lambda: stored(site))
    thread.stop()
    assert tried.is_set()


# -- the picture of an instance --------------------------------------------------------------------------------


@pytest.fixture
def run(site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run ``orchestrator instances diagram``; returns status, stdout, stderr."""
    for name in [name for name in os.environ if name.startswith("ORCHESTRATOR_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(client, "_default", site.client)

    def command(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        return (main(["instances", "diagram", *arguments]), *capsys.readouterr())

    return command


async def graphs_traced(event: Any, step: Any) -> None:
    for each in range(3):
        await step.do(f"load {each}", int, rollback=print)
    if event.payload:
        await step.wait_for_event("approval", type="ok")
    await step.do("notify", int)


async def graphs_other(event: Any, step: Any) -> None:
    await step.wait_for_event("approval", type="ok")


def test_the_picture_of_an_instance(site: Site, run: Any) -> None:
    """semantics §8: a live trace is laid over the graph that a worker stored; no code of the workflow is needed."""
    flow = site.workflow(graphs_traced)
    site.worker()
    flow.create(True, id="g-1")
    eventually(lambda: stored(site, "graphs_traced"))
    eventually(lambda: "… wait" in run("graphs_traced", "g-1")[1])
    assert run("graphs_traced", "latest") == (
        0,
        textwrap.dedent("""\
            workflow graphs_traced
            ├─ for each in range(3)
            │  └─ ✓ do "load ${...}"  rollback  (done 3 times)
            ├─ if event.payload
            │  └─ … wait for event "approval"  type ok, timeout 24 hours  (waiting)
            └─ · do "notify"
            """),
        "",
    )
    document = json.loads(run("graphs_traced", "g-1", "--json")[1])
    assert document["graph"] == stored(site, "graphs_traced")
    assert document["trace"]["nodes"]["main.1.0.0"]["state"] == "waiting"
    picture = run("graphs_traced", "g-1", "--format", "svg")[1]
    assert 'data-node="main.1.0.0" data-type="step_wait_for_event"' in picture
    assert 'data-state="waiting"' in picture
    assert "class n5 waiting" in run("graphs_traced", "g-1", "--format", "mermaid")[1]


def test_steps_of_other_code_are_named_below_the_picture(site: Site, run: Any) -> None:
    flow, account = site.workflow(graphs_traced), site.settings.account
    site.worker()
    flow.create(True, id="g-2")
    eventually(lambda: stored(site, "graphs_traced"))
    eventually(lambda: "… wait" in run("graphs_traced", "g-2")[1])
    other = json.dumps(sources.diagram(site.workflow(graphs_other, Registry()).definition))
    with site.engine.begin() as connection:
        drawn = workers.Drawn("graphs_traced", "1", flow.definition.source_hash, other)
        workers.keep_graphs(connection, account, [drawn])
    lines = run("graphs_traced", "g-2")[1].splitlines()
    assert lines[-3:] == [f"not in the picture: do:load {n}:1 (done)" for n in range(3)]


def test_what_was_never_drawn_is_refused(site: Site, run: Any) -> None:
    site.workflow(graphs_flow).create(id="g-3")
    status, _, said = run("graphs_flow", "g-3")
    assert (status, said.partition(":")[0]) == (1, "unknown_workflow")
    assert json.loads(run("graphs_flow", "g-3", "--json")[1])["error"]["code"] == "unknown_workflow"
    assert run("graphs_flow", "nope")[2].startswith("instance_not_found: ")
    assert run("graphs_flow", "g-3", "--open", "--json")[0] == 2

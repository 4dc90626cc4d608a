"""``Workflow.diagram()`` and ``orchestrator workflows diagram``: no server is needed, and nothing is run."""

from __future__ import annotations

import json
import linecache
import os
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator import WorkflowStep, workflow
from orchestrator.cli import diagrams as command
from orchestrator.cli import main
from orchestrator.demo.workflows import transfer
from orchestrator.errors import InvalidConfig, NotDurable
from orchestrator.workflow.loop import workflow_context

Run = Callable[..., tuple[int, str, str]]
STEPS = ["debit-bank-a", "approval", "credit-bank-b", "notify"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    for name in [name for name in os.environ if name.startswith("ORCHESTRATOR_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ORCHESTRATOR_WORKFLOWS", "orchestrator.demo.workflows")

    def command(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["workflows", "diagram", *arguments])
        return (status, *capsys.readouterr())

    return command


def names(graph: dict[str, Any]) -> list[str]:
    return [node["name"] for node in graph["workflow"]["nodes"]]


def test_the_graph_of_the_demo() -> None:
    graph = transfer.diagram()
    assert names(graph) == STEPS
    assert graph["workflow"]["payload"] == "Transfer"
    assert [node.get("rollback") for node in graph["workflow"]["nodes"]] == [True, None, True, None]
    assert json.loads(json.dumps(graph)) == graph


def test_every_format(run: Run) -> None:
    graph = transfer.diagram()
    status, printed, said = run("transfer")
    assert (status, said) == (0, "")
    assert printed.startswith("workflow transfer\n")
    assert printed == run("transfer", "--format", "text")[1]
    assert json.loads(run("transfer", "--format", "json")[1]) == graph
    assert json.loads(run("transfer", "--json")[1]) == graph
    assert run("transfer", "--format", "mermaid")[1].startswith("flowchart TD\n")
    picture = ET.fromstring(run("transfer", "--format", "svg")[1])
    assert [each.get("data-step") for each in picture.iter() if "data-step" in each.attrib] == STEPS


@pytest.mark.parametrize("has_browser", [True, False])
def test_open_shows_the_picture(run: Run, monkeypatch: pytest.MonkeyPatch, has_browser: bool) -> None:
    opened: list[str] = []
    monkeypatch.setattr(command.webbrowser, "open", lambda uri: opened.append(uri) or has_browser)
    status, printed, said = run("transfer", "--open")
    path = Path(printed.strip())
    assert (status, opened, "no browser" in said) == (0, [path.as_uri()], not has_browser)
    assert ET.fromstring(path.read_text(encoding="utf-8")).get("class") == "orchestrator-diagram"
    path.unlink()
    path.parent.rmdir()


def test_refusals(run: Run) -> None:
    assert run("nope")[2].startswith("unknown_workflow: ")
    status, printed, _ = run("nope", "--json")
    assert (status, json.loads(printed)["error"]["code"]) == (1, "unknown_workflow")
    assert run("transfer", "--format", "png")[0] == 2
    assert run("transfer", "--open", "--format", "text")[0] == 2
    assert run("transfer", "--json", "--format", "svg")[0] == 2


def test_versions_of_one_name_are_told_apart() -> None:
    @workflow(name="diagram-of-two", version="1")
    async def flow(event: Any, step: WorkflowStep) -> None:
        await step.do("old", print)

    old = flow

    @workflow(name="diagram-of-two", version="2")
    async def flow(event: Any, step: WorkflowStep) -> None:
        await step.do("new", print)

    assert (names(old.diagram()), names(flow.diagram())) == (["old"], ["new"])


def test_a_class_is_drawn() -> None:
    @workflow(name="diagram-of-a-class")
    class Flow:
        async def run(self, event: Any, step: WorkflowStep) -> None:
            await self.part(step)

        async def part(self, step: WorkflowStep) -> None:
            await step.do("part", print)

    graph = Flow.diagram()
    assert (graph["workflow"]["class_name"], names(graph)) == ("Flow", ["part"])


def test_what_has_no_source_says_so() -> None:
    code = "async def flow(event, step):\n    await step.do('a', print)\n"
    made: dict[str, Any] = {"__name__": "nowhere"}
    exec(compile(code, "<made up>", "exec"), made)
    without = workflow(name="diagram-without-source")(made["flow"])
    with pytest.raises(InvalidConfig, match=r"diagram-without-source.*<made up>.*cannot be read"):
        without.diagram()
    linecache.cache["<made up>"] = (3, None, ["# changed\n", "x = (\n"], "<made up>")
    with pytest.raises(InvalidConfig, match="not Python that can be drawn"):
        without.diagram()
    linecache.cache["<made up>"] = (3, None, ["x = 1\n"], "<made up>")
    with pytest.raises(InvalidConfig, match="has no function or class 'flow'"):
        without.diagram()


def test_workflow_code_does_not_draw() -> None:
    with pytest.raises(NotDurable, match="diagram"):
        workflow_context().run(transfer.diagram)

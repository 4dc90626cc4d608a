"""Code that is too long, too deep or too clever: it is drawn as far as it is understood, and the rest is marked."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from orchestrator.diagrams.parser import parse
from orchestrator.diagrams.parsing.sources import Source
from orchestrator.diagrams.render.layout import steps_of
from orchestrator.diagrams.render.mermaid import mermaid
from orchestrator.diagrams.render.svg import svg
from orchestrator.diagrams.render.text import text
from orchestrator.errors import InvalidConfig

HEAD = "async def flow(event, step):\n"


def drawn(source: str) -> dict[str, Any]:
    graph = parse(Source("flows", source), "flow")
    for render in (text, svg, mermaid):
        assert "flow" in render(graph)
    return graph


def names(graph: dict[str, Any]) -> list[str]:
    return [step["name"] for step in steps_of(graph)]


def test_a_long_chain_of_functions() -> None:
    source = "".join(f"async def f{n}(step):\n    await f{n + 1}(step)\n" for n in range(400))
    graph = drawn(
        f"{source}async def f400(step):\n    await step.do('deep', work)\n{HEAD}    await f0(step)\n"
    )
    assert names(graph) == ["deep"]
    assert len(graph["workflow"]["functions"]) == 401


def test_a_long_chain_of_branches() -> None:
    chain = "".join(f"    elif event.x == {n}:\n        await step.do('s{n}', work)\n" for n in range(1_200))
    graph = drawn(f"{HEAD}    if not event:\n        pass\n{chain}")
    assert names(graph) == [f"s{n}" for n in range(1_200)]
    assert len(graph["workflow"]["nodes"]) == 1


def test_an_expression_nested_too_deep_is_marked_and_the_rest_is_drawn() -> None:
    chain = " + ".join(["event.x"] * 800)
    graph = drawn(
        f"{HEAD}    await step.do('before', work)\n    x = {chain}\n    await step.do('after', work)\n"
    )
    assert names(graph) == ["before", "after"]
    assert [node.get("marked") for node in graph["workflow"]["nodes"]] == [
        None,
        "nested too deep to be drawn",
        None,
    ]


def test_deep_blocks() -> None:
    """Python allows a hundred levels of indentation, and twenty loops in loops."""
    blocks = "".join(f"{' ' * depth}if event.x{depth}:\n" for depth in range(1, 95))
    assert names(drawn(f"{HEAD}{blocks}{' ' * 95}await step.do('in', work)\n")) == ["in"]
    loops = "".join(f"{' ' * depth}for x{depth} in event:\n" for depth in range(1, 20))
    assert names(drawn(f"{HEAD}{loops}{' ' * 20}await step.do('in', work)\n")) == ["in"]


def test_a_hundred_callbacks_are_marked() -> None:
    functions = "".join(f"async def f{n}(step):\n    await step.do('s{n}', work)\n" for n in range(100))
    table = ", ".join(f"f{n}" for n in range(100))
    graph = drawn(f"{functions}{HEAD}    for each in [{table}]:\n        await each(step)\n")
    (loop,) = graph["workflow"]["nodes"]
    assert [node["marked"] for node in loop["nodes"]] == ["each may be one of 100 functions"]


@pytest.mark.parametrize("link", [".x.add({n})", ".x.cancel({n})", ".x['k'].add({n})", ".x.put({n}).y"])
def test_a_chain_of_calls_takes_time_in_proportion(link: str) -> None:
    """Each link is looked at as often as it stands there: a few times more, and this would not end."""
    chain = "".join(link.format(n=n) for n in range(60))
    graph = drawn(f"{HEAD}    b = Box()\n    b{chain}\n    (await step.do('load', work)){chain}\n")
    assert names(graph) == ["load"]


def test_numbers_that_python_does_not_write() -> None:
    """Those over 4,300 digits: they are shown as they stand in the source, and are no part of a name."""
    number = f"0x{'F' * 4_000}"
    graph = drawn(
        "async def flow(event: WorkflowEvent[" + number + "], step):\n"
        f"    n = {number}\n"
        "    await step.do(f'n{n}', work, timeout=n)\n"
        "    await step.sleep(str(n), -n)\n"
        f"    await step.sleep('long', {number} * 2)\n"
        f"    if n == {number}:\n"
        f"        await step.do('n%s' % {number}, work, retries=Retries(limit={number}))\n"
    )
    assert names(graph) == ["n${...}", "unknown", "long", "n${...}"]
    first, second, third, _ = graph["workflow"]["nodes"]
    assert first["config"]["timeout"].startswith("0xFFF")
    assert second["duration"] == "-n"
    assert third["duration"].startswith("0xFFF")


GROWING = """
async def grow(step, name, held, made):
    name = name + "x"
    held = [held, name, {"k": held}]
    made = (lambda: made, made, name)
    for i in range(3):
        name += str(i)
        held = (held, held)
    await step.do(name, work)
    await grow(step, name, held, made)
    await grow(step, f"{name}y", [made], [held, made])

async def flow(event, step):
    await grow(step, "a", 1, None)
"""


def test_values_that_grow_come_to_an_end() -> None:
    graph = drawn(GROWING)
    assert Counter(node["type"] for node in graph["workflow"]["functions"]["grow"]["nodes"]) == {
        "step_do": 1,
        "function_call": 2,
    }


@pytest.mark.parametrize(
    ("source", "qualname", "message"),
    [
        ("async def other(event, step): ...", "flow", "has no function or class 'flow'"),
        ("class flow: ...", "flow", "has no method `run`"),
        ("async def flow(event, step:", "flow", "is not Python that can be drawn"),
        ("async def flow(event, step): '\0'", "flow", "is not Python that can be drawn"),
        ("x = '\ud800'", "flow", "is not Python that can be drawn"),
    ],
)
def test_what_cannot_be_drawn_says_why(source: str, qualname: str, message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        parse(Source("flows", source), qualname)

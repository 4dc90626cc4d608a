"""What runs is in the picture: every step that a replay starts appears as a node, under its name, on its line."""

from __future__ import annotations

import linecache
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.diagrams.parser import parse
from orchestrator.diagrams.parsing.sources import Source
from orchestrator.diagrams.render.mermaid import mermaid
from orchestrator.diagrams.render.svg import svg
from orchestrator.diagrams.render.text import text
from orchestrator.engine.sources import diagram, find
from orchestrator.workflow.language.definition import define
from tests.laws import corpus
from tests.laws.corpus import SHAPES, Shape
from tests.laws.schedules import Schedule

KINDS = {
    "step_do": "do",
    "step_sleep": "sleep",
    "step_sleep_until": "sleep",
    "step_wait_for_event": "wait",
    "step_invoke": "invoke",
}
LAWS = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
choices = st.lists(st.integers(0, 719), max_size=60)


def steps_in(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if node.get("type") in KINDS:
            yield node
        for each in node.values():
            yield from steps_in(each)
    elif isinstance(node, list):
        for each in node:
            yield from steps_in(each)


def fits(template: str, name: str) -> bool:
    """Whether a step of that name may be the one drawn as ``template``."""
    pattern = ".*".join(map(re.escape, template.split("${...}")))
    return template == "unknown" or re.fullmatch(pattern, name, re.S) is not None


def missing(graph: dict[str, Any], shape: Shape, choices: list[int]) -> list[Any]:
    """The steps of one run that the graph does not have."""
    drawn = [(KINDS[node["type"]], node["line"], node["name"]) for node in steps_in(graph)]
    world = Schedule(shape, choices).run()
    found = []
    for row in world.rows.values():
        if row.kind in ("rollback", "patch"):  # a mark is part of a condition
            continue
        kind, _, rest = row.key.partition(":")
        name = rest.rpartition(":")[0]
        if not any((kind, row.line) == (k, line) and fits(template, name) for k, line, template in drawn):
            found.append((row.key, row.line))
    return found


@pytest.mark.parametrize("shape", SHAPES.values(), ids=str)
def test_every_executed_step_of_the_laws_corpus_is_drawn(shape: Shape) -> None:
    graph = diagram(shape.definition)
    for choices in ([], [5, 1, 2, 3] * 30, list(range(60))):
        assert missing(graph, shape, choices) == []


def test_the_finder_reads_modules_without_importing_them(tmp_path: Path, monkeypatch: Any) -> None:
    package = tmp_path / "never_imported"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "part.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    part, whole = find("never_imported.part"), find("never_imported")
    assert part is not None
    assert (part.is_package, whole is not None and whole.is_package) == (False, True)
    assert [find(name) for name in ("asyncio", "json.decoder", "not_there", "not_there.at_all")] == [None] * 4
    own = find(corpus.__name__)
    assert own is not None
    assert own.text == Path(corpus.__file__).read_text(encoding="utf-8")


# -- generated workflows ---------------------------------------------------------------------------------------

EXPRESSIONS = (
    'step.do("s{n}", give, {n})',
    'step.sleep("z{n}", 1)',
    'helper(step, "{n}")',
    "nested({n})",
    'look(step.do(f"l{n} {{x}}", give, {n}))',
    'box.part("{n}")',
    'asyncio.gather(step.do("ga{n}", give, 1), helper(step, "g{n}"))',
    'asyncio.gather(*[step.do(f"gc{n} {{y}}", give, y) for y in range(2)])',
    'asyncio.gather(*[helper(step, f"h{n}{{y}}") for y in range(2)], return_exceptions=True)',
    'asyncio.wait([step.do("wa{n}", give, 1), step.sleep("wb{n}", 2)], return_when=asyncio.FIRST_COMPLETED)',
    'asyncio.create_task(helper(step, "t{n}"))',
    '(lambda: step.do("lambda{n}", give, {n}))()',
    'partial(step.do, "partial{n}")(give, {n})',
)
"""What can be awaited; ``{n}`` makes names unique."""

BLOCKS = (
    "if coin(2):",
    "for x in range(coin(3)):",
    "while coin(2):",
    "try:",
    "with contextlib.suppress(ValueError):",
    "match coin(2):\n    case 0:",
    "async with asyncio.TaskGroup() as group:",
)

HEADER = """
import asyncio, contextlib, random
from functools import partial
from tests.laws.corpus import give, look, boom, ONCE

async def helper(step, name):
    await step.do(f"helper {name}", give, name)
    return 1

class Box:
    def __init__(self, step):
        self.step = step

    async def part(self, name):
        return await self.step.do(f"box {name}", give, name)

async def generated(event, step):
    coin = random.Random({seed}).randrange  # the same on every replay
    x = 1
    box = Box(step)
    kept = []

    async def nested(number):
        if number % 2:
            await step.do(f"nested {number}", give, number)

"""


@st.composite
def statement(draw: st.DrawFn, depth: int, in_loop: bool) -> str:
    number = draw(st.integers(0, 99))
    awaited = draw(st.sampled_from(EXPRESSIONS)).format(n=number)
    form = draw(st.integers(0, 13 if depth else 8))
    match form:
        case 0 | 1:
            return f"await {awaited}"
        case 2:
            return f"x = x + (1 if await {awaited} else 2)"
        case 3:
            return f"kept.append({awaited})\nawait asyncio.gather(*kept)\nkept = []"
        case 4:
            return draw(st.sampled_from(("coin(2) or {}", "coin(2) and {}"))).format(f"await {awaited}")
        case 5:
            return f"later = {awaited}\nawait step.sleep('in between', 1)\nawait later"
        case 6:
            return f"[await {awaited} for x in range(2) if coin(2)]"
        case 7:
            leave = ("break", "continue", "return x") if in_loop else ("return x", "raise ValueError(x)")
            return f"if not coin(8):\n    {draw(st.sampled_from(leave))}"
        case 8:
            return f"await {awaited} if coin(2) else await step.sleep('else', 1)"
    return draw(compound(depth - 1, in_loop))


@st.composite
def compound(draw: st.DrawFn, depth: int, in_loop: bool) -> str:
    head = draw(st.sampled_from(BLOCKS))
    is_loop = head.startswith(("for", "while"))
    body = textwrap.indent(draw(block(depth, in_loop or is_loop)), "    ")
    if head == "try:":
        other = textwrap.indent(draw(block(depth, in_loop)), "    ")
        last = draw(st.sampled_from(("", "finally:\n    await step.do('finally', give)\n")))
        fails = "await step.do('fails', boom, 'no', retries=ONCE)"
        return f"try:\n    {fails}\n{body}\nexcept ValueError:\n{other}\n{last}"
    if head.startswith("match"):
        return f"{head}\n{textwrap.indent(body, '    ')}\n    case _:\n        x = 1"
    if head.startswith("async with"):
        # Nobody may leave the group before its tasks have ended, so what leaves stands in no group.
        first, second = "step.do('grouped', give, x)", "helper(step, 'grouped')"
        return f"{head}\n    group.create_task({first})\n    group.create_task({second})"
    if head.startswith("if"):
        other = textwrap.indent(draw(block(depth, in_loop)), "    ")
        return f"{head}\n{body}\nelse:\n{other}"
    return f"{head}\n{body}"


@st.composite
def block(draw: st.DrawFn, depth: int, in_loop: bool) -> str:
    return "\n".join(draw(st.lists(statement(depth, in_loop), min_size=1, max_size=4)))


@LAWS
@given(st.lists(statement(2, False), min_size=4, max_size=8).map("\n".join), st.integers(0, 10_000), choices)
def test_every_executed_step_of_a_generated_workflow_is_drawn(
    body: str, seed: int, choices: list[int]
) -> None:
    source = HEADER.replace("{seed}", str(seed)) + textwrap.indent(body, "    ") + "\n    return x\n"
    filename = f"<generated {hash(source)}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    names: dict[str, Any] = {"__name__": "generated"}
    try:
        exec(compile(source, filename, "exec"), names)
        shape = Shape(define(names["generated"]))
        graph = parse(Source("generated", source), "generated", find=find)
        assert missing(graph, shape, choices) == [], source
        for render in (text, svg, mermaid):
            assert "generated" in render(graph)
    finally:
        del linecache.cache[filename]

"""Made-up programs are drawn whatever they are, and every step call stands in the picture exactly once."""

from __future__ import annotations

import ast
import textwrap
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.diagrams.parser import parse
from orchestrator.diagrams.parsing.sources import Source
from orchestrator.diagrams.parts import places
from orchestrator.diagrams.render.mermaid import mermaid
from orchestrator.diagrams.render.svg import svg
from orchestrator.diagrams.render.text import text

LAWS = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=300,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

# What one step may stand in: `@` is the call itself, `&` stands for code below it, `#` makes names unique.
AWAITED = (
    "await @",
    "x = await @",
    "x: int = await @",
    "x += await @",
    "x = y = await @",
    "x, y = await @",
    "later = @\nawait later",
    "task = asyncio.create_task(@)\nawait task",
    "await asyncio.gather(@, keep())",
    "await asyncio.gather(*[@ for each in event.payload])",
    "await asyncio.gather(*(@ for each in event.payload if each))",
    "await asyncio.wait([@], return_when=asyncio.FIRST_COMPLETED)",
    "for done in asyncio.as_completed([@]):\n    await done",
    "async with asyncio.TaskGroup() as group:\n    group.create_task(@)",
    "kept = []\nfor each in event.payload:\n    kept.append(@)\nawait asyncio.gather(*kept)",
    "x = [await @ for each in event.payload if each]",
    "x = {each: await @ for each in event.payload}",
    "x = (await @).total + 1",
    "x = f'{await @} of'",
    "x = (await @)[event.index]",
    "x = event.first or await @",
    "x = event.first and await @",
    "x = await @ if event.first else 1",
    "x = 1 if event.first else await @",
    "x = not (a := await @)",
    "if await @:\n    x = 1",
    "if (found := await @) and found.good:\n    x = 1",
    "while await @:\n    x = 1",
    "for each in await @:\n    x = each",
    "match await @:\n    case 1:\n        x = 1",
    "assert await @, 'no'",
    "keep(await @, *event.payload, key=1)",
    "print(await @)",
    "del (await @)[0]",
    "async def part#():\n    return await @\nx = await part#()",
    "async def part#(step):\n    await @\nawait asyncio.gather(part#(step), part#(step))",
    "def make#():\n    return @\nawait make#()",
    "await (lambda: @)()",
    "run# = lambda each: @\nawait run#(1)",
    "await functools.partial(lambda each: @, 1)()",
    "class Part#:\n    async def run(self, step):\n        return await @\nawait Part#().run(step)",
    "class Held#:\n    def __init__(self, step):\n        self.s = step\n\n    async def __call__(self):\n"
    "        step = self.s\n        return await @\nawait Held#(step)()",
    "async def pages#():\n    yield await @\nasync for each in pages#():\n    x = each",
)
CALLS = (
    'step.do("s#", work)',
    'step.do("s#", work, 1, retries=Retries(limit=2), rollback=undo)',
    'step.do(f"s#", work)',
    'step.do(name="s#", fn=work)',
    'step.sleep("s#", 1)',
    'step.sleep_until("s#", event.timestamp)',
    'step.wait_for_event("s#", type="x")',
    'step.invoke("s#", child)',
)
AROUND = (
    "if event.first:\n    &",
    "if event.first:\n    x = 1\nelif event.second:\n    &\nelse:\n    x = 2",
    "if event.first:\n    x = 1\nelse:\n    &",
    "for each in event.payload:\n    &",
    "for each in event.payload:\n    x = each\nelse:\n    &",
    "async for each in event.payload:\n    &",
    "while event.first:\n    &",
    "while True:\n    &\n    if event.second:\n        break",
    "try:\n    &\nexcept ValueError:\n    x = 1",
    "try:\n    x = event.first()\nexcept (ValueError, KeyError) as error:\n    &",
    "try:\n    x = event.first()\nexcept* ValueError:\n    &",
    "try:\n    x = 1\nexcept ValueError:\n    x = 2\nelse:\n    &\nfinally:\n    x = 3",
    "try:\n    x = 1\nfinally:\n    &",
    "with event.context as held:\n    &",
    "async with event.context, event.other:\n    &",
    "match event.payload:\n    case {'a': 1} if event.first:\n        &\n    case _:\n        x = 1",
    "match event.payload:\n    case 1 | 2:\n        x = 1\n    case _:\n        &",
    "async def around#(step, each):\n    &\nawait around#(step, 1)\nawait around#(step, each=2)",
    "for each in event.payload:\n    if each:\n        continue\n    &",
    "if event.first:\n    return x\n&",
)


def filled(template: str, mark: str, what: str) -> str:
    """The template with ``what`` for ``mark``; every line of it is indented as the mark is."""
    lines = []
    for line in template.splitlines():
        margin = line[: len(line) - len(line.lstrip())]
        lines.append(line.replace(mark, what.replace("\n", f"\n{margin}")))
    return "\n".join(lines)


@st.composite
def program(draw: st.DrawFn) -> tuple[str, list[str]]:
    """The body of a workflow, and the names of the steps in it."""
    numbers = iter(range(1_000))
    names: list[str] = []

    def one(depth: int) -> str:
        number = str(next(numbers))
        if depth and draw(st.booleans()):
            return filled(draw(st.sampled_from(AROUND)), "&", several(depth - 1)).replace("#", number)
        names.append(f"s{number}")
        call = draw(st.sampled_from(CALLS))
        template = draw(st.sampled_from(AWAITED))
        return template.replace("@", call).replace("#", number)

    def several(depth: int) -> str:
        return "\n".join(one(depth) for _ in range(draw(st.integers(1, 3))))

    return several(3), names


def drawn(body: str) -> dict[str, Any]:
    source = "import asyncio, functools\n\n\nasync def flow(event, step):\n    x = y = 0\n"
    source += textwrap.indent(body, "    ") + "\n"
    ast.parse(source)
    return parse(Source("flows", source), "flow")


def step_names(graph: dict[str, Any]) -> Counter[str]:
    return Counter(p.document["name"] for p in places(graph) if p.document["type"].startswith("step_"))


@LAWS
@given(program())
def test_every_step_call_is_drawn_exactly_once(made: tuple[str, list[str]]) -> None:
    """Semantics §8: whatever it stands in, a step is one node; a function that is called twice is drawn once."""
    body, names = made
    graph = drawn(body)
    assert step_names(graph) == Counter(names), body
    for render in (text, mermaid, svg):
        assert all(name in render(graph) for name in names)


def test_each_way_to_write_a_step_is_tried() -> None:
    """Semantics §8: each of them by itself, so that none is left to chance."""
    for template in AWAITED:
        for call in CALLS:
            body = template.replace("@", call).replace("#", "1")
            assert step_names(drawn(body)) == {"s1": 1}, body
    for template in AROUND:
        body = filled(template, "&", "await step.do('s1', work)\nawait step.do('s2', work)").replace("#", "1")
        assert step_names(drawn(body)) == {"s1": 1, "s2": 1}, body


# -- any Python at all -----------------------------------------------------------------------------------------

WORDS = (
    "event", "step", "step.do", "step.do('a', f)", "await step.sleep('b', 1)", "x", "self", "1", "'t'", "None", "True",
    "asyncio.gather", "asyncio", "lambda: step", "[x for x in step]", "{**event}", "(yield)", "x.y", "x[0]", "f'{x}'",
    "...", "-x", "not x", "x if x else step", "*event", "(x := step)", "Flow", "flow", "super()", "partial(step.do)",
)  # fmt: skip
SENTENCES = (
    "{0}({1}, {2})", "{0} = {1}", "{0}.{1}", "await {0}({1})", "{0} + {1}", "if {0}:\n    {1}",
    "for x in {0}:\n    {1}",
    "while {0}:\n    {1}\n    break", "with {0} as x:\n    {1}", "try:\n    {0}\nfinally:\n    {1}", "return {0}",
    "def g(a={0}, *b, c={1}, **d):\n    return {2}", "class C({0}):\n    a = {1}", "@{0}\nasync def h({3}):\n    {1}",
    "match {0}:\n    case [x, *_]:\n        {1}\n    case C(a=1) | None:\n        {2}", "del x", "raise {0} from {1}",
    "global x", "import a.b as c", "from . import *", "assert {0}", "x: {0} = {1}", "{0}[{1}:{2}] += {0}", "{0} is {1}",
    "async for x in {0}:\n    {1}\nelse:\n    {2}", "[{0} async for x in {1} if {2}]", "{{{0}: {1}}}", "pass",
)  # fmt: skip


@LAWS
@given(
    st.lists(
        st.tuples(st.sampled_from(SENTENCES), st.lists(st.sampled_from(WORDS), min_size=4, max_size=4)),
        max_size=12,
    )
)
def test_any_valid_python_is_drawn(sentences: list[tuple[str, list[str]]]) -> None:
    """Semantics §8: the parser never raises on valid Python, be it ever so senseless."""
    lines: list[str] = []
    for sentence, words in sentences:
        line = sentence.format(*words)
        try:
            ast.parse("async def flow(event, step):\n" + textwrap.indent("\n".join([*lines, line]), "    "))
        except SyntaxError:
            continue
        lines.append(line)
    graph = drawn("\n".join([*lines, "pass"]))
    for render in (text, mermaid, svg):
        assert "flow" in render(graph)

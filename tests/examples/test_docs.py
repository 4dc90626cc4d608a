"""The docs say what is so: every Python block runs, every link leads somewhere, and what is generated is fresh.

The blocks of a page run one after the other in one module, on a real engine: a worker serves what they define. A block
that needs what a test cannot have (a Celery app of the reader's, days of waiting) is marked ``python norun`` and is
compiled only.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import linecache
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from markdown_it import MarkdownIt

import orchestrator
from docs.generator import __main__ as generator
from orchestrator.client import orchestrator as client
from orchestrator.workflow.language import definition
from tests.examples import prelude
from tests.integration.harness import Site

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
GENERATED = {ROOT / "docs" / name for name in generator.PAGES}
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


def blocks(page: Path) -> Iterator[tuple[str, int, list[str]]]:
    """The Python blocks of a page: text, line, and what is said behind ``python``."""
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        words = token.info.split()
        if token.type == "fence" and words[:1] == ["python"]:
            assert token.map is not None
            yield token.content, token.map[0] + 2, words[1:]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def compiled(text: str, page: Path, line: int) -> Any:
    """A block as code that knows where it stands; it may await at its top."""
    name = f"{page}:{line}"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    return compile(text, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_python_block_compiles(page: Path) -> None:
    for text, line, _ in blocks(page):
        compiled(text, page, line)


RUN = [
    page
    for page in PAGES
    if page not in GENERATED and any("norun" not in words for _, _, words in blocks(page))
]


@pytest.mark.integration
@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_the_python_blocks_of_a_page_run(page: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(definition.registry, "_known", {})
    monkeypatch.setattr(client, "_default", site.client)
    site.worker(definition.registry)
    module = ModuleType("page")
    monkeypatch.setitem(__import__("sys").modules, "page", module)
    module.__dict__.update({k: v for k, v in vars(orchestrator).items() if k in orchestrator.__all__})
    module.__dict__.update({k: v for k, v in vars(prelude).items() if not k.startswith("_")})
    for text, line, words in blocks(page):
        if "norun" not in words:
            run(compiled(text, page, line), module)


def run(code: Any, module: ModuleType) -> None:
    if code.co_flags & inspect.CO_COROUTINE:

        async def awaited() -> None:
            await eval(code, module.__dict__)

        asyncio.run(awaited())
    else:
        exec(code, module.__dict__)


def test_what_is_generated_is_fresh() -> None:
    """Run ``make docs`` if this fails: signatures, settings, commands, errors or statuses have changed.

    The page of promises may name fewer tests than there are; tests/unit/test_parity.py says what it must hold.
    """
    assert [page for page in generator.stale() if page != "parity.md"] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [target for target in LINK.findall(text) if "://" not in target]
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert missing == []


def test_every_page_can_be_reached_from_the_index() -> None:
    seen: set[Path] = set()
    ahead = [ROOT / "docs" / "index.md"]
    while ahead:
        page = ahead.pop().resolve()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        links = LINK.findall(page.read_text(encoding="utf-8")) if page.exists() else []
        ahead += [page.parent / target for target in links]
    pages = {p for p in PAGES if "decisions" not in p.parts and p.name != "README.md"}
    assert sorted(name_of(page) for page in pages - seen) == []

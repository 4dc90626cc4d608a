"""Every promise, and the tests that show it.

A test shows a rule by naming it in its docstring (``semantics §2.4: …``). Where a section is not numbered, a pattern
over name and docstring says which of its tests belong to a line; tests that show a rule without naming it are listed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHOWN = 5
"""Tests on one line; more are counted."""


@dataclass(frozen=True)
class Rule:
    """One line of the page. ``pattern`` picks among the tests that name the section; ``also`` are further tests."""

    id: str
    text: str
    pattern: str = ""
    also: tuple[str, ...] = ()

    @property
    def section(self) -> str:
        """What a docstring names: the rule, or the section that it is a part of."""
        return self.id.partition(":")[0]


@cache
def named() -> dict[str, list[tuple[str, str]]]:
    """For each rule that docstrings name: the tests, as path::name and the text to look at."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                said = ast.get_docstring(node) or ""
                at = f"{path.relative_to(ROOT)}::{node.name}"
                for rule in _rules_in(said):
                    found.setdefault(rule, []).append((at, f"{node.name.replace('_', ' ')} {said}"))
    return found


def _rules_in(said: str) -> set[str]:
    """``Semantics §4, §5.7, protocols §20: …`` names three rules, and semantics §5 along with its seventh."""
    found: set[str] = set()
    for page, numbers in re.findall(
        r"(semantics|protocols)((?:,? (?:and )?§\d+(?:\.\d+)?)+)", said, re.IGNORECASE
    ):
        for number in re.findall(r"\d+(?:\.\d+)?", numbers):
            found.add(f"{page.lower()} §{number}")
    return found


def tests_of(rule: Rule) -> list[str]:
    """The tests of one line: those listed first, then those that name it."""
    naming = [
        at for at, said in named().get(rule.section, []) if re.search(rule.pattern, said, re.IGNORECASE)
    ]
    return list(dict.fromkeys([*rule.also, *naming]))


def table() -> str:
    """The rules that have tests, one line each."""
    from docs.generator.promises import RULES

    return "\n".join(
        ["| rule | | tests |", "|---|---|---|", *(_line(rule) for rule in RULES if tests_of(rule))]
    )


def missing() -> str:
    """The rules without a test, one line each."""
    from docs.generator.promises import RULES

    lines = [f"- {rule.id}: {rule.text}" for rule in RULES if not tests_of(rule)]
    return "\n".join(lines) or "None: every rule above has a test."


def _line(rule: Rule) -> str:
    tests = tests_of(rule)
    more = [f"and {len(tests) - SHOWN} more"] if len(tests) > SHOWN else []
    return f"| {rule.id} | {rule.text} | {'<br>'.join([*_links(tests[:SHOWN]), *more])} |"


def _links(tests: list[str]) -> Iterator[str]:
    for test in tests:
        path, _, name = test.partition("::")
        yield f"[`{path.removeprefix('tests/')}::{name}`](../{path})"

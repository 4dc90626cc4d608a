"""docs/parity.md: every rule has a line there, and every test that it names exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
HOLDS, _, REST = PAGE.partition("## Not shown yet")
OPEN = REST.partition("\n## ")[0]

NUMBERED = {1: range(1, 8), 2: range(1, 9), 3: range(1, 6), 5: range(9)}
"""The numbered rules of the semantics, by section."""
NAMED = {
    "semantics §4": "transitions, slots, pause, terminate, restart, restart from a step, delete, create, abandoned, "
    "retention",
    "protocols §10": "pause, restart",
    "protocols §20": "connection, listing, state, durations, schedules, patched, news, queues, parallel rollback, "
    "callers, operators, pgbouncer, cluster",
}
"""What the sections without numbers say."""
WHOLE = ["semantics §7", "protocols §15", "protocols §16", "protocols §17"]


def rules() -> list[str]:
    numbered = [f"semantics §{section}.{n}" for section, numbers in NUMBERED.items() for n in numbers]
    return [
        *numbered,
        *(f"{section}: {name}" for section, names in NAMED.items() for name in names.split(", ")),
        *WHOLE,
    ]


def lines() -> dict[str, list[str]]:
    """The tests of each rule in the table."""
    found = {}
    for rule, tests in re.findall(
        r"^\| ((?:semantics|protocols) §[^|]+?) \| [^|]+ \| ([^|]+) \|$", HOLDS, re.MULTILINE
    ):
        found[rule] = re.findall(r"\[`[^`]+::(\w+)`\]\(\.\./([^)]+)\)", tests)
    return found


@cache
def names_in(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = (each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(each.name for each in functions if each.name.startswith("test_"))


def test_every_rule_has_a_line_with_a_test_or_is_listed_as_open() -> None:
    table = lines()
    unshown = re.findall(r"^- ((?:semantics|protocols) §\d+(?:\.\d+|: [a-z ]+)?): ", OPEN, re.MULTILINE)
    assert [rule for rule in rules() if not table.get(rule) and rule not in unshown] == []
    assert [rule for rule in unshown if rule in table] == [], "both shown and not shown"


def test_most_rules_are_shown() -> None:
    """The list of what is open is for the few."""
    assert len(lines()) >= 0.9 * len(rules())


def test_every_named_test_exists() -> None:
    named = [(path, name) for tests in lines().values() for name, path in tests]
    assert len(named) > len(rules())
    assert [f"{path}::{name}" for path, name in named if name not in names_in(path)] == []

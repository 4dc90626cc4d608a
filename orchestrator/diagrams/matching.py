"""Which node of a graph a recorded step belongs to.

Owns: the comparison of names and lines; the rule stands in ``tracing``. Does not own states or counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestrator.diagrams.nodes import DYNAMIC, UNKNOWN
from orchestrator.diagrams.parts import Place

KINDS = {
    "step_do": "do",
    "step_sleep": "sleep",
    "step_sleep_until": "sleep",
    "step_wait_for_event": "wait",
    "step_invoke": "invoke",
}
"""The kind of the steps that a type of node starts."""


class Step(Protocol):
    """A recorded step, as far as it matters here."""

    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def count(self) -> int: ...
    @property
    def line(self) -> int | None: ...
    @property
    def label(self) -> str: ...


def fits(template: str, name: str) -> bool:
    """Whether ``name`` may be what the source calls ``template``."""
    if template == UNKNOWN:
        return True
    first, *middle = template.split(DYNAMIC)
    if not middle:
        return name == first
    last = middle.pop()
    end = len(name) - len(last)
    if end < len(first) or not name.startswith(first) or not name.endswith(last):
        return False
    position = len(first)
    for each in middle:
        position = name.find(each, position, end)
        if position < 0:
            return False
        position += len(each)
    return True


@dataclass(frozen=True, slots=True)
class Target:
    """A step of the graph."""

    node: str
    template: str
    line: int

    @property
    def is_static(self) -> bool:
        return self.template != UNKNOWN and DYNAMIC not in self.template

    @property
    def fixed(self) -> int:
        """How many characters of the name are certain."""
        return 0 if self.template == UNKNOWN else len(self.template.replace(DYNAMIC, ""))


Known = tuple[str, str, str, int | None]


class Index:
    """The steps of a graph by what is known of a recorded one."""

    def __init__(self, found: Sequence[Place]) -> None:
        self._static: dict[tuple[str, str], list[Target]] = defaultdict(list)
        self._dynamic: dict[str, list[Target]] = defaultdict(list)
        self._found: dict[Known, list[Target]] = {}
        for place in found:
            kind = KINDS.get(place.document["type"])
            if kind is None:
                continue
            target = Target(place.node, place.document["name"], place.document["line"])
            if target.is_static:
                self._static[kind, target.template].append(target)
            else:
                self._dynamic[kind].append(target)

    def node_of(self, step: Step) -> str | None:
        """The id of the node that a step belongs to; ``None`` if none fits."""
        known = (step.kind, step.name, step.label, step.line)
        if known not in self._found:
            self._found[known] = self._best(step)
        best = self._found[known]
        return best[(step.count - 1) % len(best)].node if best else None

    def _best(self, step: Step) -> list[Target]:
        """Those that fit best; several only if nothing tells them apart."""
        found = list(self._static.get((step.kind, step.name), ()))
        found += [each for each in self._dynamic.get(step.kind, ()) if fits(each.template, step.name)]
        if not found:
            return []

        def rank(target: Target) -> tuple[bool, bool, bool, int, int]:
            away = 0 if step.line is None else abs(target.line - step.line)
            is_other = bool(step.label) and target.template != step.label
            return (step.line is not None and away > 0, is_other, not target.is_static, -target.fixed, away)

        best = min(map(rank, found))
        return [each for each in found if rank(each) == best]

"""Who gets what there is: the pure policy of queue and slots.

Owns: max-min shares with weights, and which of the candidates of a queue come first. Does not own: slots (their script
divides by the rule of ``fill``), nor the rows (``store.control.queue``).

Max-min: nobody can get more without somebody getting less who has no more than he. So whoever wants little has all of
it, and a flood gets what is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from orchestrator.store.control.queue import Queued

K = TypeVar("K")
_ROUNDS = 50


class Claim(NamedTuple):
    """What somebody wants more of what there is. Whoever has more ``weight`` is due more, in proportion."""

    wanted: int
    weight: float = 1.0
    held: int = 0
    """What he has already: those who have less catch up first."""


def fill(free: int, claims: Sequence[Claim]) -> list[int]:
    """How many of ``free`` units each claim gets. Each unit goes to whoever holds least for his weight with it, among
    equals to the first: who asks again and again turns the order.

    Nothing is left over while anybody wants more. Takes time by the number of claims, not of units.
    """
    total = sum(max(0, claim.wanted) for claim in claims)
    if free >= total:
        return [max(0, claim.wanted) for claim in claims]
    low, high = 0.0, max((c.held + c.wanted) / c.weight for c in claims) if claims else 0.0
    for _ in range(_ROUNDS):
        level = (low + high) / 2
        given = sum(_below(claim, level) for claim in claims)
        if given <= free:
            low = level
        else:
            high = level
        if given == free:
            break
    shares = [_below(claim, low) for claim in claims]
    for _ in range(free - sum(shares)):
        shares[_neediest(claims, shares)] += 1
    return shares


def _below(claim: Claim, level: float) -> int:
    """Units that lift the claim no higher than ``level`` units for each of its weight."""
    return min(max(0, int(level * claim.weight) - claim.held), max(0, claim.wanted))


def _neediest(claims: Sequence[Claim], shares: Sequence[int]) -> int:
    open_ones = (at for at, claim in enumerate(claims) if shares[at] < claim.wanted)
    return min(open_ones, key=lambda at: (claims[at].held + shares[at] + 1) / claims[at].weight)


def divide(room: int, wanted: Mapping[K, int]) -> dict[K, int]:
    """``fill`` by name, all with the same weight and nothing held."""
    return dict(zip(wanted, fill(room, [Claim(count) for count in wanted.values()]), strict=True))


def choose(room: int, candidates: Sequence[Queued]) -> list[Queued]:
    """Those for which slots are asked, at most ``room``: max-min over workflows, of each the first in their places."""
    by_workflow: dict[str, list[Queued]] = {}
    for each in candidates:
        by_workflow.setdefault(each.workflow, []).append(each)
    parts = divide(room, {name: len(found) for name, found in by_workflow.items()})
    return [
        each
        for name, found in by_workflow.items()
        for each in sorted(found, key=attrgetter("place"))[: parts[name]]
    ]

"""Small delays, drawn by a seed, at the places where a turn, a claim or a verb may be overtaken.

Owns: the places, and the wrapping for the time of one test. Does not own: what is judged afterwards.
"""

import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.engine import claims
from orchestrator.engine.turning import coordinator
from orchestrator.store import histories, steps, turns

OFTEN = 0.3
MOST_S = 0.008


def dawdling(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Let every engine and verb of this process dawdle now and then, until ``monkeypatch`` undoes it."""
    dice = random.Random(-1 - seed)

    def dawdle(*_: Any) -> None:
        if dice.random() < OFTEN:
            time.sleep(dice.random() * MOST_S)

    for module in (coordinator, claims):
        monkeypatch.setattr(module, "reach", dawdle)
    for module, name in ((histories, "load"), (steps, "lock"), (turns, "commit"), (turns, "lock")):
        monkeypatch.setattr(module, name, _after(dawdle, getattr(module, name)))


def _after(dawdle: Callable[[], None], verb: Callable[..., Any]) -> Callable[..., Any]:
    def late(*args: Any, **kwargs: Any) -> Any:
        dawdle()
        return verb(*args, **kwargs)

    return late

"""Named places where a test may kill this process: ``ORCHESTRATOR_FAILPOINT=turn.after_commit``.

Owns: reading the variable and the kill. Does not own the places: each is one ``reach("name")`` in the code.
``name:3`` kills at the third time the place is reached; several names are separated by commas.
Unset (production), ``reach`` is a dictionary look-up in an empty dictionary.
"""

from __future__ import annotations

import os
import signal


def parse(text: str) -> dict[str, int]:
    """``"a,b:3"`` → ``{"a": 1, "b": 3}``: which place kills, and at which visit."""
    armed: dict[str, int] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, count = part.partition(":")
        armed[name] = int(count or 1)
    return armed


_armed = parse(os.environ.get("ORCHESTRATOR_FAILPOINT", ""))


def reach(name: str) -> None:
    """Die here by SIGKILL if this place is armed and its count is used up."""
    if name in _armed:
        _armed[name] -= 1
        if _armed[name] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

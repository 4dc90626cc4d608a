"""Where another thread stands, for the log.

Owns: asking the interpreter without a risk to it. Does not own: when to ask (``liveness``, ``turning.watch``).
"""

from __future__ import annotations

import gc
import operator
import sys
import traceback
from collections.abc import Callable
from typing import Any

# While it makes its list, ``sys._current_frames`` holds the lock on the interpreter's threads. If a collection of
# garbage began there (CPython up to 3.11), a finalizer could let another thread run, or end this one at the end of the
# process: whichever thread ended next would wait for that lock, and for ever. ``map`` makes both calls without a gap in
# which somebody might switch the collector on. (``faulthandler`` needs no lock, but tells of a hundred threads only.)
_CALLS: tuple[Callable[[], Any], ...] = (gc.isenabled, gc.disable, sys._current_frames)


def stack_of(thread: int, frames: int = 0) -> str:
    """The stack of the thread with that identity, innermost call last, as in a traceback; with ``frames``, only so many
    of the innermost calls. Empty if there is no such thread."""
    was_enabled, _, found = list(map(operator.call, _CALLS))
    if was_enabled:
        gc.enable()
    frame = found.get(thread)
    return "" if frame is None else "".join(traceback.format_stack(frame)[-frames:])

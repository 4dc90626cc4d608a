"""Where another thread stands, for the log.

Owns: asking the interpreter, and reading its answer. Does not own: when to ask (``liveness``, ``turning.watch``).

``sys._current_frames`` would be shorter, but it allocates while it holds the interpreter's lock on its list of threads:
a garbage collection that begins there may let a thread run that is about to end, which then waits for that lock, and
never lets go of the interpreter (CPython 3.11.7). ``faulthandler`` takes no lock and allocates nothing.
"""

from __future__ import annotations

import faulthandler
import re
import tempfile
import traceback
from contextlib import suppress

_THREAD = re.compile(r"^(?:Current t|T)hread 0x([0-9a-f]+)", re.MULTILINE)
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$', re.MULTILINE)


def stack_of(thread: int, frames: int | None = None) -> str:
    """The stack of the thread with that identity, innermost call last, as in a traceback; with ``frames``, only so many
    of the innermost calls. Empty if there is no such thread, over a hundred younger ones, or no place for a file."""
    told = ""
    with suppress(OSError), tempfile.TemporaryFile() as file:  # no pipe: a full one would stop everything
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        told = file.read().decode("ascii", "replace")
    parts = _THREAD.split(told)[1:]
    for identity, text in zip(parts[::2], parts[1::2], strict=True):
        if int(identity, 16) == thread:
            calls = [traceback.FrameSummary(name, int(line), of) for name, line, of in _FRAME.findall(text)]
            return "".join(traceback.format_list(calls[:frames][::-1]))
    return ""

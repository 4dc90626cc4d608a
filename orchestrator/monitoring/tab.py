"""What all handlers of one Flower share: the client of the account, and the threads that ask Postgres.

Owns: both, from the first request to the end of the process. Does not own: what is asked (``documents``), or the
handlers.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from orchestrator.client.orchestrator import Orchestrator

THREADS = 8
"""Questions to Postgres at once; more of them queue. Flower has one event loop, which must never wait."""

P = ParamSpec("P")
T = TypeVar("T")


class Tab:
    """One per Flower. ``orchestrator`` opens its connections when first asked."""

    def __init__(self, orchestrator: Orchestrator) -> None:
        self.orchestrator = orchestrator
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="workflows-tab")

    async def offload(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what may block in one of the threads, and wait for what it gives without holding up the event loop."""
        call = functools.partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def close(self) -> None:
        """Give connections and threads back; what still waits for a thread is told that it was cancelled."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.orchestrator.close()

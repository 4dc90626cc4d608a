"""The workflows that are started by the thousand, and the notes that their bodies leave.

Owns: the code that workers run for these measurements. Does not own: reading the notes (``notes``).
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from orchestrator import StepContext, WorkflowEvent, WorkflowStep, workflow

FOLDER = "BENCH_NOTES"
"""The variable that names the folder of the notes; without it none are taken."""
HAMMERED = tuple(f"hammered-{number}" for number in range(4))

_file: int | None = None


def note(word: str, ctx: StepContext) -> None:
    """Write down at once that a body begins or ends: a process that is killed loses nothing it has said."""
    global _file
    if _file is None:
        folder = os.environ.get(FOLDER)
        path = Path(folder) / f"{os.getpid()}.notes" if folder else Path(os.devnull)
        _file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(_file, f"{word} {time.monotonic():.6f} {ctx.instance_id} {ctx.name} {ctx.attempt}\n".encode())


async def stay(seconds: float, ctx: StepContext) -> int:
    """Await, and note begin and end."""
    note("began", ctx)
    await asyncio.sleep(seconds)
    note("ended", ctx)
    return ctx.attempt


async def stay_at_first(seconds: float, ctx: StepContext) -> int:
    """The first attempt awaits, those after it end at once."""
    return await stay(seconds if ctx.attempt == 1 else 0.0, ctx)


@workflow
async def brief(event: WorkflowEvent[float], step: WorkflowStep) -> int:
    """One step that awaits ``payload`` seconds."""
    attempt: int = await step.do("stay", stay, event.payload)
    return attempt


@workflow
async def held(event: WorkflowEvent[float], step: WorkflowStep) -> int:
    """One step that its first worker keeps for ``payload`` seconds."""
    attempt: int = await step.do("stay", stay_at_first, event.payload, timeout="1 hour")
    return attempt


@workflow
async def flood(event: WorkflowEvent[None], step: WorkflowStep) -> int:
    """Ends in its first turn."""
    return 0


@workflow
async def trickle(event: WorkflowEvent[None], step: WorkflowStep) -> int:
    """Ends in its first turn; few of these stand beside many of the others."""
    return 0


@workflow
async def napping(event: WorkflowEvent[float], step: WorkflowStep) -> int:
    """Sleeps for ``payload`` seconds between two steps."""
    await step.do("before", stay, 0.0)
    await step.sleep("nap", event.payload)
    await step.do("after", stay, 0.0)
    return 2


async def _hammered(event: WorkflowEvent[None], step: WorkflowStep) -> None:
    """Nothing."""


hammered = {name: workflow(name=name)(_hammered) for name in HAMMERED}

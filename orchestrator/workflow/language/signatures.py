"""A Celery signature where a step has its function: told by its shape, for this room knows no Celery.

Owns: what counts as a signature, what is refused of it, and the copy that a step keeps. Does not own: sending it
(``dispatch.foreign``), nor what becomes of the attempt (``deciding.signatures``).
"""

from __future__ import annotations

from typing import Any

from orchestrator.errors import InvalidConfig
from orchestrator.workflow import codec

_CANVAS = (
    "step.do({name!r}) was given a {kind}: Celery runs its parts by itself, and no one result of it would be recorded. "
    "Make each part a step: step.do(…, one.s(…)), awaited one after the other or together with asyncio.gather."
)


def is_signature(fn: Any) -> bool:
    """Whether ``fn`` is a Celery signature (or a canvas of them) rather than a function."""
    return isinstance(fn, dict) and "task" in fn and hasattr(fn, "apply_async")


def queue_of(signature: Any) -> str | None:
    """The queue that a signature names itself, if it names one."""
    queue = signature["options"].get("queue")
    return None if queue is None else str(getattr(queue, "name", queue))


def kept(name: str, signature: Any, args: tuple[Any, ...]) -> Any:
    """A copy of ``signature`` for the step ``name``: what the caller does to its own later changes nothing.

    ``args`` are those of ``step.do`` after the signature. Raises ``InvalidConfig`` for them, and for a canvas.
    """
    kind = signature.get("subtask_type")
    if kind:
        raise InvalidConfig(_CANVAS.format(name=name, kind=kind))
    if args:
        raise InvalidConfig(
            f"step.do({name!r}) has arguments after a signature: give them to the signature itself, as in "
            f"step.do({name!r}, task.s(…))."
        )
    copy = signature.clone()
    copy["args"] = codec.copied(tuple(signature.get("args") or ()))
    copy["kwargs"] = codec.copied((dict(signature.get("kwargs") or {}),))[0]
    return copy

"""Async twins of the kit's verbs, for tests that are coroutines.

Owns: the twins. Does not own: what the verbs do. Each runs its verb in a thread, so that the test's own loop goes on:
bodies that need it are served.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

from orchestrator.client.orchestrator import check_outside, offload
from orchestrator.client.records import InstanceStatus, StepRecord
from orchestrator.workflow.language.durations import Duration
from orchestrator.workflow.lifecycle import LifecycleEvent
from orchestrator.workflow.status import Status


class InstanceTwins:
    """The twins of ``InstanceUnderTest``."""

    async def astatus(self) -> InstanceStatus:
        """``status`` for asyncio."""
        found: InstanceStatus = await _twin(self, "status")
        return found

    async def aresult(self, timeout: float | None = None) -> Any:
        """``result`` for asyncio."""
        return await _twin(self, "result", timeout)

    async def asteps(self) -> list[StepRecord]:
        """``steps`` for asyncio."""
        found: list[StepRecord] = await _twin(self, "steps")
        return found

    async def aexport_history(self, *, include_sensitive: bool = False) -> dict[str, Any]:
        """``export_history`` for asyncio."""
        found: dict[str, Any] = await _twin(self, "export_history", include_sensitive=include_sensitive)
        return found

    async def await_for_step_result(self, name: str, count: int = 1) -> Any:
        """``wait_for_step_result`` for asyncio."""
        return await _twin(self, "wait_for_step_result", name, count)

    async def await_for_status(self, status: Status | str) -> InstanceStatus:
        """``wait_for_status`` for asyncio."""
        found: InstanceStatus = await _twin(self, "wait_for_status", status)
        return found

    async def asend_event(self, type: str, payload: Any = None) -> None:
        """``send_event`` for asyncio."""
        await _twin(self, "send_event", type, payload)

    async def aterminate(self, rollback: bool = False) -> None:
        """``terminate`` for asyncio."""
        await _twin(self, "terminate", rollback)

    async def apause(self) -> None:
        """``pause`` for asyncio."""
        await _twin(self, "pause")

    async def aresume(self) -> None:
        """``resume`` for asyncio."""
        await _twin(self, "resume")

    async def arestart(self, from_step: str | None = None, count: int = 1, kind: str = "do") -> None:
        """``restart`` for asyncio."""
        await _twin(self, "restart", from_step, count, kind)

    async def aretry_rollback(self) -> None:
        """``retry_rollback`` for asyncio."""
        await _twin(self, "retry_rollback")

    async def askip_rollback(self, step: str, count: int = 1) -> None:
        """``skip_rollback`` for asyncio."""
        await _twin(self, "skip_rollback", step, count)

    async def asubscribe(
        self, cursor: int | None = None, types: Iterable[str] | None = None
    ) -> AsyncIterator[LifecycleEvent]:
        """``subscribe`` for asyncio."""
        told = await _twin(self, "subscribe", cursor, types)
        while (event := await offload(next, told, None)) is not None:
            yield event

    async def adelete(self) -> None:
        """``delete`` for asyncio."""
        await _twin(self, "delete")


class EnvironmentTwins:
    """The twins of ``WorkflowEnvironment``."""

    async def acreate(self, workflow: Any, params: Any = None, **options: Any) -> Any:
        """``create`` for asyncio."""
        return await _twin(self, "create", workflow, params, **options)

    async def arun_until_idle(self) -> None:
        """``run_until_idle`` for asyncio."""
        await _twin(self, "run_until_idle")

    async def aadvance(self, duration: Duration) -> None:
        """``advance`` for asyncio."""
        await _twin(self, "advance", duration)

    async def await_for_status(self, status: Status | str) -> None:
        """``wait_for_status`` for asyncio."""
        await _twin(self, "wait_for_status", status)

    async def await_for_step_result(self, name: str, count: int = 1) -> Any:
        """``wait_for_step_result`` for asyncio."""
        return await _twin(self, "wait_for_step_result", name, count)


async def _twin(subject: Any, verb: str, *args: Any, **options: Any) -> Any:
    check_outside(f"a{verb}")
    return await offload(getattr(subject, verb), *args, **options)

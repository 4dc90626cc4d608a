"""What bodies and handlers are told of the attempt they are, from its row and the call that today's code makes.

Owns: filling ``StepContext`` and ``RollbackContext``, and the idempotency key. Does not own: their shapes
(``language.config``), nor calling anything (``engine.running``, ``testing``).
"""

from __future__ import annotations

from uuid import UUID

from orchestrator.workflow import codec, saga
from orchestrator.workflow.deciding.ending import TERMINATED
from orchestrator.workflow.history import StepRow
from orchestrator.workflow.language.commands import StepCall
from orchestrator.workflow.language.config import CancelFlag, RollbackContext, StepConfig, StepContext
from orchestrator.workflow.replay import revive_output


def idempotency_key(instance: UUID, run: int, key: str) -> str:
    """The same on every attempt and duplicate; another one for the handler, and after a restart (protocols §3)."""
    return f"{instance}:{run}:{key}"


def step_context(
    instance: UUID,
    name_id: str,
    workflow: str,
    call: StepCall,
    row: StepRow,
    config: StepConfig,
    flag: CancelFlag,
) -> StepContext:
    """What a body, or a delay function, is told of its attempt."""
    delay = call.rollback_delay if row.kind == "rollback" else call.delay
    return StepContext(
        name=call.name,
        count=call.count,
        attempt=row.attempt,
        instance_id=name_id,
        workflow_name=workflow,
        retries=config.retries(delay),
        timeout=config.timeout_s,
        idempotency_key=idempotency_key(instance, row.run, row.key),
        cancelled=flag,
    )


def rollback_context(
    instance: UUID,
    call: StepCall,
    row: StepRow,
    context: StepContext,
    *,
    output: str | None,
    forward_attempt: int | None,
    error: str | None,
) -> RollbackContext:
    """What a handler is told. ``context`` is that of its own attempt; ``output``, ``forward_attempt`` come from the
    forward step's row; ``error`` is the text the instance fails with, ``None`` where it is being terminated."""
    forward = StepContext(
        name=context.name,
        count=context.count,
        attempt=forward_attempt or 1,
        instance_id=context.instance_id,
        workflow_name=context.workflow_name,
        retries=call.config.retries(call.delay) if call.config is not None else context.retries,
        timeout=call.config.timeout_s if call.config is not None else context.timeout,
        idempotency_key=idempotency_key(instance, row.run, saga.forward_key(row.key)),
        cancelled=context.cancelled,
    )
    return RollbackContext(
        error=TERMINATED if error is None else codec.error_info(error),
        output=None if output is None else revive_output(call.kind, output, call.annotation),
        has_output=output is not None,
        args=codec.copied(call.args),
        step=forward,
        attempt=row.attempt,
        idempotency_key=context.idempotency_key,
    )

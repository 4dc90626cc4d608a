"""Celery signatures as steps, as far as the language goes: what is taken, what is refused, what is kept of it."""

from typing import Any
from uuid import UUID

import pytest
from celery import Celery, chain, chord, group
from kombu import Queue

from orchestrator import InvalidConfig
from orchestrator.testing import WorkflowEnvironment
from orchestrator.workflow.history import Began
from orchestrator.workflow.language import binding, signatures
from orchestrator.workflow.language.config import StepConfig
from orchestrator.workflow.language.definition import define
from orchestrator.workflow.replay import Origin, Replay

app = Celery("signatures", broker="memory://", set_as_current=False)


@app.task
def add(a: int, b: int = 0) -> int:
    return a + b


def started(*args: Any, **options: Any) -> Any:
    """The call of a step with these arguments; raises what ``step.do`` raises."""
    caught: list[BaseException] = []

    async def flow(event: Any, step: Any) -> None:
        try:
            await step.do("add", *args, **options)
        except InvalidConfig as error:
            caught.append(error)

    replay = Replay(define(flow), Origin(UUID(int=7), "i", 0, "null", 1.0))
    replay.feed([Began(0, 1.0)])
    if caught:
        raise caught[0]
    return replay.calls["do:add:1"]


def test_a_signature_is_kept_with_its_arguments() -> None:
    """protocols §16: its arguments are the step's, for handlers; its task is recorded; its queue is the step's."""
    call = started(add.s(1, b=2).set(queue="sums", priority=3))
    assert (call.args, call.config.task, call.config.queue) == ((1,), add.name, "sums")
    assert call.fn["kwargs"] == {"b": 2}
    assert call.fn["options"] == {"queue": "sums", "priority": 3}
    assert StepConfig.from_json(call.config.to_json()) == call.config


def test_the_queue_of_the_step_overrides() -> None:
    """api §2: ``queue=`` of the step wins over the signature's."""
    assert started(add.s(1).set(queue="sums"), queue="mine").config.queue == "mine"
    assert started(add.s(1).set(queue=Queue("entity"))).config.queue == "entity"
    assert started(add.s(1)).config.queue is None


def test_what_becomes_of_the_signature_later_changes_nothing() -> None:
    """semantics §1.3: arguments are bound when the step starts."""
    numbers = [1]
    signature = add.s(numbers)
    call = started(signature)
    numbers.append(2)
    signature.set(queue="elsewhere")
    assert call.fn["args"] == ([1],)
    assert call.fn["options"] == {}


@pytest.mark.parametrize(
    ("kind", "canvas"),
    [
        ("chain", chain(add.s(1), add.s(2))),
        ("group", group(add.s(1), add.s(2))),
        ("chord", chord([add.s(1)], add.s(2))),
    ],
)
def test_a_canvas_is_refused_by_name(kind: str, canvas: Any) -> None:
    """protocols §16: chain, group and chord are no one task; the error says what to write instead."""
    with pytest.raises(InvalidConfig, match=f"was given a {kind}.*Make each part a step"):
        started(canvas)


def test_arguments_after_a_signature_are_refused() -> None:
    """api §2: Celery would put them first, people expect them last."""
    with pytest.raises(InvalidConfig, match="give them to the signature itself"):
        started(add.s(1), 2)


def test_a_signature_is_no_handler() -> None:
    """semantics §5: a handler must be told what to undo."""
    with pytest.raises(InvalidConfig, match="is a Celery signature; it must be a function"):
        started(add.s(1), rollback=add.s(2))


def test_a_handler_runs_on_the_queue_of_the_workflows() -> None:
    """semantics §5.3: the task's queue is served by workers that know no handlers."""
    call = started(add.s(1).set(queue="sums"), rollback=lambda r: None)
    assert call.rollback_config.queue is None


def test_the_configuration_of_other_steps_says_nothing_of_tasks() -> None:
    """semantics §1.3: a step without a task is recorded as ever."""
    assert "task" not in started(lambda: 1).config.to_json()


def test_a_task_itself_is_a_function() -> None:
    """api §2: only a signature is sent; a task that is given as it is runs as any function."""
    assert started(add, 1, 2).config.task is None


def test_a_signature_can_be_run_on_the_spot() -> None:
    """api §6: the testing kit has no workers, so the task runs in the test's own process."""
    assert binding.call(signatures.kept("add", add.s(1, b=2), ()), (1,), None) == 3

    async def kit_signature(event: Any, step: Any) -> Any:
        return await step.do("add", add.s(event.payload, b=2))

    from orchestrator.client.workflow import Workflow

    with WorkflowEnvironment() as env:
        instance = env.create(Workflow(define(kit_signature)), 5)
        env.run_until_idle()
        assert instance.result() == 7

"""What a replay asks for. Owns the shapes; ``turn`` decides what becomes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestrator.workflow.language.config import StepConfig, WaitConfig
from orchestrator.workflow.language.invocation import Invocation

DO, SLEEP, WAIT, INVOKE, ROLLBACK, PATCH = "do", "sleep", "wait", "invoke", "rollback", "patch"


@dataclass(slots=True)
class StepCall:
    """One ``step.*`` call as today's code makes it: what a worker needs to run it. Never stored."""

    key: str
    kind: str
    name: str
    count: int
    label: str
    """The name with its dynamic parts as ``${...}``: bounded, fit for a metric label."""
    line: int | None
    fn: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    annotation: Any = Any
    config: StepConfig | None = None
    delay: Callable[..., Any] | None = None
    rollback: Callable[..., Any] | None = None
    rollback_config: StepConfig | None = None
    rollback_delay: Callable[..., Any] | None = None


@dataclass(slots=True)
class StartStep:
    """Start a step. Exactly one of ``call.config``, ``wait``, ``sleep_s``, ``until`` and ``invoke`` is set."""

    call: StepCall
    wait: WaitConfig | None = None
    sleep_s: float | None = None
    until: float | None = None
    invoke: Invocation | None = None

    @property
    def key(self) -> str:
        return self.call.key


@dataclass(slots=True, frozen=True)
class CancelStep:
    """The code cancelled a step it had started."""

    key: str


@dataclass(slots=True, frozen=True)
class Mark:
    """``step.patched`` was true: a mark with a place in the order, and nothing to wait for."""

    key: str
    line: int | None

    @property
    def name(self) -> str:
        return self.key.partition(":")[2].rpartition(":")[0]


@dataclass(slots=True, frozen=True)
class Complete:
    """The workflow returned; ``output`` is the codec's text."""

    output: str


@dataclass(slots=True, frozen=True)
class Fail:
    """The workflow raised; ``error`` is the codec's text, ``traceback`` is for people."""

    error: str
    traceback: str


Command = StartStep | CancelStep | Mark | Complete | Fail

"""The types of lifecycle events, from ``orchestrator.workflow.lifecycle``."""

from __future__ import annotations

from docs.generator.api import package, prose
from orchestrator.workflow.lifecycle import NUMBERS, PER_SEQ, TERMINAL

INTRODUCTION = f"""# Lifecycle events

What `instance.subscribe()` and `orchestrator instances subscribe` give. Events are derived from the records of an
instance, so they can be read again at any time: `cursor=event_id` goes on behind that event. `event_id` is
`{PER_SEQ} * seq + n`, with the number of the fact it tells of and an n of its type; it grows with every event of an
instance. A subscription ends with the terminal event.
"""

MEANINGS = {
    "workflow_queued": "Created or restarted, or woken without a slot that is free.",
    "workflow_started": "The code began.",
    "workflow_running": "At least one step is handed out again.",
    "workflow_waiting": "Only sleeps, event waits, retry waits or children are open.",
    "workflow_waiting_for_pause": "A pause was asked for; steps in flight still end.",
    "workflow_paused": "Nothing runs, and nothing starts before it is resumed.",
    "workflow_completed": "The code returned; `output`.",
    "workflow_errored": "It failed for good; `error`.",
    "workflow_terminated": "It was terminated.",
    "step_started": "A `do` step started, or a child; `config`.",
    "step_completed": "Its result is recorded; `output`, `duration`.",
    "step_errored": "It failed for good, was cancelled or abandoned; `error`.",
    "attempt_started": "An attempt was handed out; `attempt`.",
    "attempt_completed": "The attempt that succeeded.",
    "attempt_errored": "An attempt failed; `error`, and `retry_delay` if there is another.",
    "sleep_started": "A sleep began; `duration`.",
    "sleep_completed": "It is over.",
    "wait_started": "A wait for an event began; `event_type`.",
    "wait_completed": "It has its event; `output`.",
    "wait_timed_out": "No event came in time.",
    "rollback_started": "The compensations begin; `error` is why.",
    "rollback_completed": "All of them are done.",
    "rollback_errored": "One failed for good.",
    "rollback_step_started": "The handler of a step started.",
    "rollback_step_completed": "It is done.",
    "rollback_step_errored": "It failed for good; `error`.",
    "rollback_attempt_started": "As `attempt_started`, of a handler.",
    "rollback_attempt_completed": "As `attempt_completed`, of a handler.",
    "rollback_attempt_errored": "As `attempt_errored`, of a handler.",
}
"""What each type tells, in the order of the page."""


def page() -> str:
    """The page of the lifecycle events. Raises ``KeyError`` if a type has no meaning here, or a meaning no type."""
    if unlike := set(MEANINGS) ^ set(NUMBERS):
        raise KeyError(f"lifecycle events without a meaning, or meanings without a type: {sorted(unlike)}")
    lines = [INTRODUCTION, "| type | n | |", "|---|---|---|"]
    for name, meaning in MEANINGS.items():
        end = " **Terminal.**" if name in TERMINAL else ""
        lines.append(f"| `{name}` | {NUMBERS[name]} | {meaning}{end} |")
    event = package()["workflow.lifecycle.LifecycleEvent"]
    fields = ", ".join(f"`{name}`" for name in event.attributes)
    return "\n".join([*lines, "", "## Fields", "", fields + ".", "", prose(event.docstring.value)])

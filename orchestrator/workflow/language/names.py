"""The rules for names: workflows, steps, instances and event types.

Owns: which names are allowed, and the text that refuses the others. Does not own whether a name is
free or known.
"""

import re

from orchestrator.errors import InvalidInstanceId, InvalidName

MAX_WORKFLOW_NAME = 64
MAX_STEP_NAME = 256
MAX_EVENT_TYPE = 100
MAX_INSTANCE_ID = 100
MAX_SCHEDULED_ID = 271
"""Ids made by a schedule (``{cron}-{epoch ms}``) may be this long, and are not bound to the pattern."""

_PLAIN = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_-]*", re.ASCII)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_RULE = "letters, digits, '_' and '-', not starting with '-'"


def check_workflow_name(name: str) -> str:
    """The name itself, if it is 1 to 64 letters, digits, ``_`` or ``-``, not starting with ``-``.

    Raises ``InvalidName``.
    """
    return _plain(name, "workflow name", MAX_WORKFLOW_NAME)


def check_event_type(name: str) -> str:
    """The type itself, if it is 1 to 100 letters, digits, ``_`` or ``-``, not starting with ``-``.

    Raises ``InvalidName``.
    """
    return _plain(name, "event type", MAX_EVENT_TYPE)


def check_step_name(name: str) -> str:
    """The name itself, if it is 1 to 256 characters without control characters.

    Raises ``InvalidName``.
    """
    reason = _reason(name, MAX_STEP_NAME)
    if reason is None and _UNPRINTABLE.search(name):
        reason = "it contains a control character, a line separator or half of a surrogate pair"
    if reason is not None:
        raise InvalidName(f"step name {_shown(name)} is not allowed: {reason}")
    return name


def check_instance_id(instance_id: str, *, scheduled: bool = False) -> str:
    """The id itself, if it is 1 to 100 letters, digits, ``_`` or ``-``, not starting with ``-``.

    With ``scheduled`` also what a schedule makes of its cron expression: up to 271 characters without control
    characters. That is how an instance may be *addressed*; nobody may create one under such an id by hand.
    Raises ``InvalidInstanceId``.
    """
    reason = _reason(instance_id, MAX_SCHEDULED_ID if scheduled else MAX_INSTANCE_ID)
    if reason is None and scheduled and _UNPRINTABLE.search(instance_id):
        reason = "it contains a control character"
    if reason is None and not scheduled and _PLAIN.fullmatch(instance_id) is None:
        reason = f"it may hold only {_RULE}"
    if reason is not None:
        raise InvalidInstanceId(f"instance id {_shown(instance_id)} is not allowed: {reason}")
    return instance_id


def _plain(name: str, what: str, limit: int) -> str:
    reason = _reason(name, limit)
    if reason is None and _PLAIN.fullmatch(name) is None:
        reason = f"it may hold only {_RULE}"
    if reason is not None:
        raise InvalidName(f"{what} {_shown(name)} is not allowed: {reason}")
    return name


def _reason(name: object, limit: int) -> str | None:
    if not isinstance(name, str):
        return f"it must be a str, not {type(name).__name__}"
    if not name:
        return "it is empty"
    if len(name) > limit:
        return f"it has {len(name)} characters, at most {limit} are allowed"
    return None


def _shown(name: object) -> str:
    text = repr(name)
    return text if len(text) <= 120 else f"{text[:117]}…"

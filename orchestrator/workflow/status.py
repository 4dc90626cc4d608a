"""The life of an instance: its statuses, and every step from one to another that is allowed.

Owns: the one table of transitions. Does not own who makes them, nor what else has to happen when one is made.
"""

from enum import StrEnum

from orchestrator.errors import InvalidTransition


class Status(StrEnum):
    """Where an instance stands."""

    QUEUED = "queued"
    """It is new, awoken or restarted, and has no slot yet."""
    RUNNING = "running"
    """At least one of its steps is handed out or running. It holds a slot."""
    WAITING = "waiting"
    """Only sleeps, event waits, retry waits or children are open, or it is blocked. It holds no slot."""
    WAITING_FOR_PAUSE = "waiting_for_pause"
    """A pause was asked for; the steps in flight still finish. It holds its slot until they have."""
    PAUSED = "paused"
    """Nothing runs, and nothing starts before it is resumed."""
    ROLLING_BACK = "rolling_back"
    """It is about to fail, or to end as terminated, and its handlers run. It holds a slot."""
    COMPLETE = "complete"
    """It returned."""
    ERRORED = "errored"
    """It failed for good, and what could be undone has been."""
    TERMINATED = "terminated"
    """It was stopped from outside."""


_S = Status

_ENDS = frozenset({_S.COMPLETE, _S.ERRORED, _S.TERMINATED, _S.ROLLING_BACK})
# How unfinished code may end: it returned, it failed, it was stopped; the latter two by way of a rollback.

_ANEW = frozenset({_S.QUEUED, _S.RUNNING})
# Where a restart leads, from anywhere: to the queue, or straight on where a slot is held or free.

TRANSITIONS: dict[Status, frozenset[Status]] = {
    # It got its slot, or was paused before it did. What an awoken instance is fed in that same turn may leave
    # nothing to run (waiting), or be its end. One that was blocked may still have steps in flight, which a pause
    # waits for.
    _S.QUEUED: frozenset({_S.RUNNING, _S.WAITING, _S.WAITING_FOR_PAUSE, _S.PAUSED}) | _ENDS,
    # The last step in flight ended and others wait (waiting). A pause found steps in flight
    # (waiting_for_pause), or none (paused). What is due found no slot (queued).
    _S.RUNNING: frozenset({_S.WAITING, _S.WAITING_FOR_PAUSE, _S.PAUSED, _S.QUEUED}) | _ENDS,
    # Something is due: with a slot it runs, without one it queues as awoken. The end may come straight out of
    # a sleep, without any further step. Blocked with steps in flight, it is paused like a running one.
    _S.WAITING: frozenset({_S.RUNNING, _S.QUEUED, _S.WAITING_FOR_PAUSE, _S.PAUSED}) | _ENDS,
    # The last step in flight ended (paused), or the pause was taken back (running). It may also end meanwhile.
    _S.WAITING_FOR_PAUSE: frozenset({_S.PAUSED}) | _ENDS | _ANEW,
    # A resumed instance queues as awoken; a paused one may be stopped, with or without a rollback.
    _S.PAUSED: frozenset({_S.ROLLING_BACK, _S.TERMINATED}) | _ANEW,
    # A rollback ends as what began it: a failure or a termination. A restart breaks it off.
    _S.ROLLING_BACK: frozenset({_S.ERRORED, _S.TERMINATED}) | _ANEW,
    # The end. A complete child may still be undone by its parent, and only by it.
    _S.COMPLETE: frozenset({_S.ROLLING_BACK}) | _ANEW,
    # The end. retry_rollback() and skip_rollback() take a failed rollback up again.
    _S.ERRORED: frozenset({_S.ROLLING_BACK}) | _ANEW,
    _S.TERMINATED: frozenset({_S.ROLLING_BACK}) | _ANEW,
}
"""For each status, those that may follow it. Staying in a status is no transition."""

FINISHED = frozenset({Status.COMPLETE, Status.ERRORED, Status.TERMINATED})
"""Ends: nothing happens to such an instance by itself any more."""

HOLDS_SLOT = frozenset({Status.RUNNING, Status.WAITING_FOR_PAUSE, Status.ROLLING_BACK})
"""An instance in one of these counts against the concurrency limits."""


def check(old: Status, new: Status) -> None:
    """Let an allowed transition pass; raise ``InvalidTransition`` otherwise."""
    if new not in TRANSITIONS[old]:
        allowed = ", ".join(sorted(TRANSITIONS[old]))
        raise InvalidTransition(f"an instance that is {old} cannot become {new} (only: {allowed})")

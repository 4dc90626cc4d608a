"""What a parent and its children know of each other, as data.

Owns: the identity of a child, what is told of a child to its parent and the other way round, and a child still to be
created. Does not own: what follows (``deciding.children``), how it is read and written (``store``).
"""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID, uuid5

from orchestrator.workflow.status import FINISHED


def child_id(parent: UUID, run: int, key: str) -> UUID:
    """The child that step ``key`` of ``parent`` starts in ``run``: the same however often that is asked."""
    return uuid5(parent, f"{run}:{key}")


class NewChild(NamedTuple):
    """A child to be created with its parent's turn, queued. ``params`` is the codec's text, retention in seconds."""

    id: UUID
    key: str
    """The step of the parent that awaits it."""
    workflow: str
    version: str
    name_id: str
    params: str
    success_s: float
    error_s: float


class ChildState(NamedTuple):
    """A child as its parent sees it. ``status`` is ``None`` where there is no such child."""

    id: UUID
    status: str | None
    ending: str | None = None
    output: str | None = None
    error: str | None = None
    rollback: str | None = None
    """How its compensation ended, as text."""
    undoable: bool = False
    """Whether it, or a child of its own, has anything to undo. Read only while the parent is compensating."""
    is_taken: bool = False
    """Whether another instance has its id."""

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left of it that could change by itself."""
        return self.status is None or self.status in FINISHED

    @property
    def has_stopped(self) -> bool:
        """Whether its code goes on no more, though it may still have to be undone."""
        return self.is_over or self.ending is not None


class ParentState(NamedTuple):
    """A parent as its child sees it. ``status`` is ``None`` where it was deleted.

    ``step`` is the status of the step that started the child, ``None`` where there is no such step (any more);
    ``handler`` the status of the compensation of that step.
    """

    id: UUID
    status: str | None
    ending: str | None = None
    step: str | None = None
    step_error: str | None = None
    handler: str | None = None
    has_undone: bool = False
    """Whether the child has been compensated already."""

    @property
    def is_over(self) -> bool:
        """Whether it will do nothing for this child any more: it has ended, or knows it no longer."""
        return self.status is None or self.status in FINISHED or self.step is None

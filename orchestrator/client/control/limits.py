"""Limits as operators see and set them.

Owns: the check of what is set, who is said to have set it, and the record of what holds. Does not own: what wins over
what (``control.gatekeeping.limits``), the rows (``store.control.limits``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.client.asking.history import instant
from orchestrator.client.orchestrator import Orchestrator
from orchestrator.errors import InvalidConfig
from orchestrator.workflow.language.definition import registry
from orchestrator.workflow.language.names import check_workflow_name

if TYPE_CHECKING:
    from orchestrator.control.gatekeeping.limits import Chosen, Overrides
    from orchestrator.store.session import Connection

MOST = 2**31 - 1
_LEAST = {"concurrency": 0, "creation_rate": 0.001, "creation_burst": 1.0, "max_queued": 1}


@dataclass(frozen=True, slots=True)
class LimitRecord:
    """One limit as it holds now; ``None`` where there is none."""

    value: float | None
    source: str
    """Who says so: ``operator``, ``definition`` or ``settings`` (those of this process)."""


@dataclass(frozen=True, slots=True)
class LimitsRecord:
    """The limits of one workflow, or of the account (``workflow`` is ``None``)."""

    workflow: str | None
    limits: Mapping[str, LimitRecord]
    """``concurrency``, ``creation_rate`` (per second), ``creation_burst``, ``max_queued`` (in the account: of each
    workflow that has none of its own)."""
    changed_at: datetime | None
    """When an operator changed any of them last; ``None`` if none ever did."""
    changed_by: str | None
    """``user@host`` of the process that did."""
    is_known: bool
    """Some worker, or this process, has registered the workflow; of the account always. Limits of another hold as soon
    as there is one of that name."""


class Declaration(NamedTuple):
    """What a registered definition says."""

    concurrency: int | None
    creation_rate: float | None


def limits(where: Orchestrator, workflow: str | None = None) -> LimitsRecord:
    """The limits that hold for ``workflow``, or for the account. Raises ``InvalidName``, ``ServiceUnavailable``."""
    from orchestrator.store.control import limits as rows

    name = _checked(workflow)
    with where.lanes.statement() as connection:
        overrides = rows.read(connection, where.settings.account)
        declared = declarations(connection, where.settings.account, [name] if name else [])
    return record(where, overrides, name, declared.get(name))


def set_limits(where: Orchestrator, workflow: str | None = None, **values: float | None) -> LimitsRecord:
    """Set limits of a workflow, or of the account, for as long as nobody clears them; what is left out stays.

    ``concurrency`` (0: what runs goes on, nothing starts), ``creation_rate`` per second, ``creation_burst``,
    ``max_queued``; ``None`` clears one: then it is as the definition or the settings say. Takes effect at once, without
    any restart, where scripts ask Redis, and everywhere within seconds. Raises ``InvalidConfig``, ``InvalidName``,
    ``ServiceUnavailable``.
    """
    from orchestrator.client.steering import asker
    from orchestrator.store.control import limits as rows
    from orchestrator.store.session import transaction

    name, changed = _checked(workflow), {each: _value(each, value) for each, value in values.items()}
    if not changed:
        raise InvalidConfig(f"Name a limit to set: {', '.join(rows.NAMES)}.")
    unknown = "That was in the commit: it is unknown whether the limits were changed."
    with transaction(where.engine, "The limits were not changed.", unknown) as connection:
        rows.put(connection, where.settings.account, name, changed, asker())
        overrides = rows.read(connection, where.settings.account)
        declared = declarations(connection, where.settings.account, [name] if name else [])
    _put_up(where, overrides)
    return record(where, overrides, name, declared.get(name))


def clear(where: Orchestrator, workflow: str | None = None, names: Sequence[str] = ()) -> LimitsRecord:
    """Take back what operators set: these limits, or all four, of a workflow or of the account."""
    from orchestrator.store.control.limits import NAMES

    return set_limits(where, workflow, **dict.fromkeys(names or NAMES))


def declarations(
    connection: Connection, account: str, workflows: Sequence[str] | None = None
) -> dict[str, Declaration]:
    """What the definitions of these workflows say, or of all: as the worker that was started last has registered it; of
    one that no worker has registered, as this process knows it."""
    from orchestrator.store.views import registered

    found: dict[str, Declaration] = {}
    names = [None] if workflows is None else workflows
    for version in (each for name in names for each in registered.versions(connection, account, name)):
        options = json.loads(version.options)
        said = Declaration(options.get("concurrency"), options.get("creation_rate"))
        found.setdefault(version.name, said)  # the one registered last comes first
    known = {name for name, _ in registry.known()}
    for name in known.intersection(workflows or ()) - found.keys():
        options = registry.latest(name).options
        found[name] = Declaration(options.concurrency, options.creation_rate)
    return found


def record(
    where: Orchestrator, overrides: Overrides, workflow: str, declared: Declaration | None = None
) -> LimitsRecord:
    """What holds for a workflow, or with ``""`` for the account."""
    from orchestrator.control.gatekeeping.limits import of_account, of_workflow

    if workflow:
        chosen = of_workflow(where.settings, overrides, workflow, declared)
    else:
        chosen = of_account(where.settings, overrides)
    row = overrides.get(workflow)
    return LimitsRecord(
        workflow=workflow or None,
        limits={name: _record(name, chosen) for name in chosen},
        changed_at=None if row is None else instant(row.changed_at),
        changed_by=None if row is None else row.changed_by,
        is_known=not workflow or declared is not None,
    )


def _record(name: str, chosen: Mapping[str, Chosen]) -> LimitRecord:
    value, source = chosen[name]
    if name == "creation_burst" and not value:  # what one second allows
        rate, source = chosen["creation_rate"]
        value = max(1.0, rate or 0.0)
    is_count = name in ("concurrency", "max_queued") and value is not None
    return LimitRecord(int(value) if is_count else value, source)  # type: ignore[arg-type]


def _put_up(where: Orchestrator, overrides: Overrides) -> None:
    """Let scripts know at once; while Redis is away workers do it, as soon as it is back."""
    from orchestrator.control.gatekeeping.board import Board
    from orchestrator.control.gatekeeping.limits import fields

    board = Board(where.settings)
    try:
        board.put_limits(fields(overrides.values()))
    finally:
        board.close()


def _checked(workflow: str | None) -> str:
    return "" if workflow is None else check_workflow_name(workflow)


def _value(name: str, value: Any) -> float | None:
    if name not in _LEAST:
        raise InvalidConfig(f"There is no limit {name!r}; there are {', '.join(_LEAST)}.")
    if value is None:
        return None
    is_whole, least = name in ("concurrency", "max_queued"), _LEAST[name]
    kinds = int if is_whole else int | float
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= MOST:
        kind = "a whole number" if is_whole else "a number"
        raise InvalidConfig(f"{name} is {value!r:.40}; it must be {kind} from {least:g} to {MOST:,}")
    return value

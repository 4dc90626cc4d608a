"""What somebody wants created: ids, params and options, checked before anything is done.

Owns: the checks, and the record of one wish. Does not own: limits (``admittance``), the insert (``insertion``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from orchestrator.client.asking.standing import Seen
from orchestrator.client.orchestrator import Orchestrator
from orchestrator.errors import (
    InvalidConfig,
    InvalidInstanceId,
    InvalidParams,
    PayloadTooLarge,
    SerializationError,
    rebuilt,
)
from orchestrator.ports import monotonic, new_id, new_ids
from orchestrator.workflow.language.definition import Definition, validate_params
from orchestrator.workflow.language.durations import Duration, optional
from orchestrator.workflow.language.names import check_instance_id

MOST = 1000
_ENTRY = frozenset({"id", "params", "success_retention", "error_retention"})


class Wish(NamedTuple):
    """One instance somebody wants, checked. ``wished_at`` is monotonic: before that there was none."""

    id: UUID
    name_id: str
    terms: Terms
    wished_at: float

    @property
    def seen(self) -> Seen:
        """What its maker knows of it: it was not finished before it was wished for."""
        return Seen(str(self.id), self.wished_at)


class Terms(NamedTuple):
    """What instances may have in common: params as the codec's text, retention in seconds."""

    params: str
    success_s: float
    error_s: float


def wish(
    orchestrator: Orchestrator,
    definition: Definition,
    params: Any,
    name_id: str | None,
    success_retention: Duration | None,
    error_retention: Duration | None,
    uuid: UUID | None = None,
) -> Wish:
    """Check one instance. Raises ``InvalidParams``, ``InvalidInstanceId``, ``InvalidConfig``, ``PayloadTooLarge``."""
    settings, options = orchestrator.settings, definition.options
    uuid = uuid or new_id(orchestrator.now())
    name_id = str(uuid) if name_id is None else check_instance_id(name_id)
    success_s = optional(success_retention, what="success_retention")
    error_s = optional(error_retention, what="error_retention")
    most = settings.retention_limit
    terms = Terms(
        validate_params(definition, params, limit=settings.max_payload_bytes),
        _kept("success_retention", most, success_s, options.success_retention_s, settings.success_retention),
        _kept("error_retention", most, error_s, options.error_retention_s, settings.error_retention),
    )
    return Wish(uuid, name_id, terms, monotonic())


def entries(batch: Sequence[Any] | None, count: Any, params: Any) -> Sequence[Mapping[str, Any]]:
    """The entries of ``create_batch``'s arguments. Raises ``InvalidConfig``."""
    if (batch is None) == (count is None):
        raise InvalidConfig(
            "create_batch takes either a list of entries or count=, not both and not neither."
        )
    if batch is not None and params is not None:
        raise InvalidConfig("params= goes with count=; each entry of a list has params of its own.")
    if batch is None:
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise InvalidConfig(f"count= must be a number of instances, not {count!r}.")
        batch = [{"params": params}] * count
    if not isinstance(batch, Sequence):
        raise InvalidConfig(f"create_batch takes a list of entries, not {type(batch).__name__}.")
    if len(batch) > MOST:
        raise InvalidConfig(f"create_batch takes at most {MOST:,} instances at once, not {len(batch):,}.")
    for index, entry in enumerate(batch):
        if not isinstance(entry, Mapping) or not _ENTRY.issuperset(entry):
            unknown = (
                sorted(set(entry) - _ENTRY, key=str) if isinstance(entry, Mapping) else type(entry).__name__
            )
            raise InvalidConfig(f"Entry {index} of the batch may hold {sorted(_ENTRY)}; it has {unknown}.")
    return batch


def wishes(
    orchestrator: Orchestrator, definition: Definition, batch: Sequence[Any] | None, count: Any, params: Any
) -> list[Wish]:
    """Check ``create_batch``'s arguments, entry by entry. Raises what ``wish`` raises; the text names the entry."""
    found = entries(batch, count, params)
    if not found:
        return []
    ids = new_ids(orchestrator.now(), len(found))
    if batch is None:  # all alike: one is checked for all
        alike = wish(orchestrator, definition, params, None, None, None, ids[0])
        return [Wish(uuid, str(uuid), alike.terms, alike.wished_at) for uuid in ids]
    checked = []
    for index, (uuid, entry) in enumerate(zip(ids, found, strict=True)):
        params, name_id = entry.get("params"), entry.get("id")
        options = (entry.get("success_retention"), entry.get("error_retention"))
        try:
            checked.append(wish(orchestrator, definition, params, name_id, *options, uuid))
        except (
            InvalidParams,
            InvalidInstanceId,
            InvalidConfig,
            PayloadTooLarge,
            SerializationError,
        ) as error:
            raise rebuilt(type(error), (f"Entry {index}: {error.message}", *error.args[1:])) from error
    return checked


def _kept(what: str, most: float, *values: float | None) -> float:
    """The first of these retentions that is given, in seconds. Raises ``InvalidConfig`` if it is too long."""
    chosen = next(value for value in values if value is not None)
    if chosen > most:
        raise InvalidConfig(
            f"{what} is {chosen / 86400:g} days; instances are kept for {most / 86400:g} days at most "
            "(ORCHESTRATOR_RETENTION_LIMIT)"
        )
    return chosen

"""The turn: everything a batch of turns changed, in one statement, each only where ``seq`` is as expected.

Owns: the compare-and-set write and the lock for the slow path. Does not own: reading histories
(``histories``), nor deciding.

Columns travel as arrays through ``unnest``; parts of the statement that a batch does not need are left out, so
the plan stays small. One statement is one round trip, and holds its locks for no longer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from orchestrator.store import session
from orchestrator.store.arrays import array
from orchestrator.store.control.layouts import CHOSEN, LAST
from orchestrator.workflow.execution import AttemptRow, Writes
from orchestrator.workflow.history import StepRow
from orchestrator.workflow.kin import NewChild

TAKEN = "taken"
"""Status of a ``Cut`` that is none: the child this step wanted was not created, since there is another of its id."""


@dataclass(slots=True, frozen=True)
class Cut:
    """What storage decided about a step that was cut short (``Writes.cut``), or whose child it could not create."""

    key: str
    status: str
    fence: int
    worker: UUID | None
    claimed_at: float | None


MOST = 512
"""Turns in one statement."""

Columns = Sequence[tuple[str, str]]

_INSTANCE: Columns = (
    ("no", "int4"),
    ("id", "uuid"),
    ("expected", "int8"),
    ("seq", "int8"),
    ("status", "text"),
    ("alarm_at", "float8"),
    ("sets_alarm", "bool"),
    ("started_at", "float8"),
    ("began_seq", "int8"),
    ("queued_at", "float8"),
    ("ended_at", "float8"),
    ("ended_seq", "int8"),
    ("ending", "text"),
    ("rollback", "text"),
    ("blocked", "text"),
    ("state_bytes", "int8"),
)
_NEW: Columns = (
    ("no", "int4"),
    ("instance_id", "uuid"),
    ("key", "text"),
    ("kind", "text"),
    ("status", "text"),
    ("started_seq", "int8"),
    ("started_at", "float8"),
    ("finished_seq", "int8"),
    ("finished_at", "float8"),
    ("attempt", "int4"),
    ("fence", "int8"),
    ("config", "text"),
    ("label", "text"),
    ("output", "text"),
    ("error", "text"),
    ("has_rollback", "bool"),
    ("due_at", "float8"),
    ("line", "int4"),
    ("handed_at", "float8"),
    ("worker", "uuid"),
    ("claimed_at", "float8"),
    ("run", "int4"),
)
_OLD: Columns = (
    ("no", "int4"),
    ("instance_id", "uuid"),
    ("key", "text"),
    ("cut", "bool"),
    ("status", "text"),
    ("finished_seq", "int8"),
    ("finished_at", "float8"),
    ("attempt", "int4"),
    ("losses", "int2"),
    ("uncounted", "int2"),
    ("fence", "int8"),
    ("output", "text"),
    ("error", "text"),
    ("due_at", "float8"),
    ("handed_at", "float8"),
    ("worker", "uuid"),
    ("claimed_at", "float8"),
)
_ATTEMPT: Columns = (
    ("no", "int4"),
    ("instance_id", "uuid"),
    ("key", "text"),
    ("attempt", "int4"),
    ("fence", "int8"),
    ("seq", "int8"),
    ("error", "text"),
    ("traceback", "text"),
    ("handed_at", "float8"),
    ("claimed_at", "float8"),
    ("ended_at", "float8"),
    ("retry_delay_s", "float8"),
)
_TRANSITION: Columns = (
    ("no", "int4"),
    ("instance_id", "uuid"),
    ("seq", "int8"),
    ("status", "text"),
    ("at", "float8"),
)
_CONSUMED: Columns = (("no", "int4"), ("instance_id", "uuid"), ("number", "int8"))
_REPORTED: Columns = (("no", "int4"), ("instance_id", "uuid"), ("key", "text"), ("fence", "int8"))
_CHILD: Columns = (
    ("no", "int4"),
    ("instance_id", "uuid"),
    ("at", "float8"),
    ("id", "uuid"),
    ("key", "text"),
    ("workflow", "text"),
    ("version", "text"),
    ("name_id", "text"),
    ("params", "text"),
    ("success_s", "float8"),
    ("error_s", "float8"),
)
_PAYLOAD: Columns = (("no", "int4"), ("instance_id", "uuid"), ("output", "text"), ("error", "text"))

_INSTANTS = frozenset(
    {"started_at", "finished_at", "due_at", "handed_at", "claimed_at", "ended_at", "alarm_at", "at"}
)


def commit(connection: Connection, turns: Sequence[Writes]) -> dict[UUID, list[Cut]]:
    """Write these turns (at most ``MOST``). Returns those that matched, with what became of their cut steps; the
    others lost a race and wrote nothing. Rows locked by somebody else count as lost."""
    parameters, parts, alone = _parameters(turns)
    statement = _statement(parts, alone)
    written: dict[UUID, list[Cut]] = {}
    for instance, key, status, fence, worker, claimed_at in session.rows(connection, statement, parameters):
        cuts = written.setdefault(instance, [])
        if key is not None:
            cuts.append(Cut(key, status, fence, worker, claimed_at))
    return written


def lock(connection: Connection, instances: Sequence[UUID]) -> set[UUID]:
    """Lock these rows in the order of their ids; those that somebody else holds are skipped."""
    found = session.rows(
        connection,
        "SELECT id FROM orchestrator_instances WHERE id = ANY(%(ids)s::uuid[]) "
        "ORDER BY id FOR NO KEY UPDATE SKIP LOCKED",
        {"ids": array(instances, "uuid")},
    )
    return {row[0] for row in found}


# -- the statement ---------------------------------------------------------------------------------------


def _unnest(prefix: str, columns: Columns) -> str:
    arrays = ", ".join(f"%({prefix}_{name})s::{kind}[]" for name, kind in columns)
    names = ", ".join(name for name, _ in columns)
    return f"unnest({arrays}) AS {prefix}({names})"


def _alone(prefix: str, columns: Columns) -> str:
    """In place of ``_unnest`` where there is one row: plain parameters instead of some fifty arrays of one element
    (each with a function and a tuplestore of its own) take a third off a turn that has the flush for itself."""
    return f"(SELECT {', '.join(f'%({prefix}_{name})s::{kind} AS {name}' for name, kind in columns)}) AS {prefix}"


def _value(prefix: str, name: str) -> str:
    return f"to_timestamp({prefix}.{name})" if name in _INSTANTS else f"{prefix}.{name}"


def _insert(part: str, table: str, columns: Columns) -> str:
    own = [name for name, _ in columns if name != "no"]
    values = ", ".join(_value(part, name) for name in own)
    return (
        f"{part}_done AS (INSERT INTO {table} ({', '.join(own)}) SELECT {values} "
        f"FROM {_unnest(part, columns)} WHERE {_matched(part)})"
    )


def _matched(part: str) -> str:
    """Whether the turn that a row belongs to matched. Not a join: the settings of these connections leave only
    nested loops, which is right between a list and a table and quadratic between two lists."""
    return f"get_bit((SELECT bits FROM matched), {part}.no) = 1"


_T = ", ".join(f"t.{name}" for name, _ in _INSTANCE)
_TURN = f"""
WITH held AS (
  SELECT {_T} FROM {_unnest("t", _INSTANCE)} JOIN orchestrator_instances i ON i.id = t.id
  WHERE i.seq = t.expected ORDER BY t.id FOR NO KEY UPDATE OF i SKIP LOCKED),
turn AS (
  UPDATE orchestrator_instances i SET
    seq = t.seq, status = t.status, alarm_at = CASE WHEN t.sets_alarm THEN to_timestamp(t.alarm_at)
      ELSE LEAST(i.alarm_at, to_timestamp(t.alarm_at)) END,
    started_at = coalesce(i.started_at, to_timestamp(t.started_at)), ended_at = to_timestamp(t.ended_at),
    ended_seq = coalesce(t.ended_seq, i.ended_seq), ending = t.ending, rollback = coalesce(t.rollback, i.rollback),
    began_seq = coalesce(t.began_seq, i.began_seq),
    blocked = t.blocked, awoken = t.queued_at IS NOT NULL, queued_at = to_timestamp(t.queued_at),
    state_bytes = t.state_bytes,
    expires_at = CASE WHEN t.ended_at IS NULL THEN NULL ELSE to_timestamp(t.ended_at + CASE t.status
      WHEN 'complete' THEN i.success_retention_s ELSE i.error_retention_s END) END
  FROM held t WHERE i.id = t.id AND i.seq = t.expected RETURNING i.id, t.no),
matched AS (SELECT bit_or(set_bit(repeat('0', {MOST})::bit({MOST}), no, 1)) AS bits FROM turn)
"""

_OLD_PART = f"""
old_done AS (
  UPDATE orchestrator_steps s SET
    status = CASE WHEN old.cut THEN CASE s.status WHEN 'running' THEN 'cancelling' ELSE 'cancelled' END
      ELSE old.status END,
    fence = CASE WHEN old.cut AND s.status = 'running' THEN s.fence ELSE old.fence END,
    worker = CASE old.status WHEN 'running' THEN old.worker WHEN 'handed' THEN NULL WHEN 'pending' THEN NULL
      ELSE s.worker END,
    claimed_at = CASE WHEN old.status IN ('handed', 'running') THEN to_timestamp(old.claimed_at)
      WHEN old.status = 'pending' THEN coalesce(to_timestamp(old.claimed_at), s.claimed_at) ELSE s.claimed_at END,
    finished_seq = old.finished_seq, finished_at = to_timestamp(old.finished_at), attempt = old.attempt,
    losses = old.losses, uncounted = old.uncounted, output = old.output, error = old.error,
    due_at = to_timestamp(old.due_at), handed_at = to_timestamp(old.handed_at)
  FROM {_unnest("old", _OLD)} WHERE s.instance_id = old.instance_id AND s.key = old.key AND {_matched("old")}
  RETURNING s.instance_id, s.key, s.status, s.fence, s.worker, s.claimed_at, old.cut)
"""

# Queued, so that whoever has a slot starts them. An id that is taken is reported, and the turn stands. IS TRUE keeps
# the lists from being joined: looked up in a hash, thousands of children in one turn cost no more each than one. An
# application may hold an id in a transaction of its own: it is not waited for, with a whole flush, for long.
_CHILD_PART = f"""
child_made AS (
  INSERT INTO orchestrator_instances (id, account, workflow, name_id, version, status, alarm_at, queued_at, created_at,
    state_bytes, success_retention_s, error_retention_s, parent_id, parent_key, shard)
  SELECT child.id, p.account, child.workflow, child.name_id, child.version, 'queued', 'infinity',
    to_timestamp(child.at), to_timestamp(child.at), length(child.params), child.success_s, child.error_s, p.id,
    child.key, {CHOSEN.format(1)}
  FROM {_unnest("child", _CHILD)} JOIN orchestrator_instances p ON p.id = child.instance_id
    CROSS JOIN (SELECT set_config('lock_timeout', '100ms', true)) soon {LAST.format("p.account", "child.workflow")}
  WHERE {_matched("child")} ORDER BY child.workflow, child.name_id
  ON CONFLICT DO NOTHING RETURNING id),
child_kept AS (
  INSERT INTO orchestrator_payloads (instance_id, params)
  SELECT child.id, child.params FROM {_unnest("child", _CHILD)}
  WHERE (child.id IN (SELECT id FROM child_made)) IS TRUE)
"""
_CHILD_TAKEN = f"""
UNION ALL SELECT child.instance_id, child.key, '{TAKEN}', 0::int8, NULL::uuid, NULL::float8
FROM {_unnest("child", _CHILD)}
WHERE {_matched("child")} AND (child.id NOT IN (SELECT id FROM child_made)) IS TRUE
"""

_OPTIONAL: dict[str, tuple[Columns, str]] = {
    "child": (_CHILD, _CHILD_PART),
    "old": (_OLD, _OLD_PART),
    "new": (_NEW, _insert("new", "orchestrator_steps", _NEW)),
    "attempt": (_ATTEMPT, _insert("attempt", "orchestrator_attempts", _ATTEMPT)),
    "transition": (_TRANSITION, _insert("transition", "orchestrator_transitions", _TRANSITION)),
    "consumed": (
        _CONSUMED,
        f"consumed_done AS (DELETE FROM orchestrator_inbox b USING {_unnest('consumed', _CONSUMED)} "
        f"WHERE b.instance_id = consumed.instance_id AND b.number = consumed.number AND {_matched('consumed')})",
    ),
    "reported": (
        _REPORTED,
        f"reported_done AS (DELETE FROM orchestrator_reports r USING {_unnest('reported', _REPORTED)} "
        "WHERE r.instance_id = reported.instance_id AND r.key = reported.key AND r.fence = reported.fence "
        f"AND {_matched('reported')})",
    ),
    "payload": (
        _PAYLOAD,
        "payload_done AS (UPDATE orchestrator_payloads p SET output = coalesce(payload.output, p.output), "
        f"error = coalesce(payload.error, p.error) FROM {_unnest('payload', _PAYLOAD)} "
        f"WHERE p.instance_id = payload.instance_id AND {_matched('payload')})",
    ),
}


@cache
def _statement(parts: frozenset[str], alone: frozenset[str]) -> str:
    """``parts`` beside the instances themselves (``t``); those in ``alone`` come as plain parameters."""
    chosen = [sql for name, (_, sql) in _OPTIONAL.items() if name in parts]
    cuts = (
        " UNION ALL SELECT instance_id, key, status, fence, worker, extract(epoch FROM claimed_at)::float8 "
        "FROM old_done WHERE cut"
        if "old" in parts
        else ""
    )
    nothing = "NULL::text, NULL::text, NULL::int8, NULL::uuid, NULL::float8"
    taken = _CHILD_TAKEN if "child" in parts else ""
    text = ",".join([_TURN, *chosen]) + f" SELECT id, {nothing} FROM turn" + cuts + taken
    for name in alone:
        columns = _INSTANCE if name == "t" else _OPTIONAL[name][0]
        text = text.replace(_unnest(name, columns), _alone(name, columns))
    return text


# -- its parameters --------------------------------------------------------------------------------------


def _parameters(turns: Sequence[Writes]) -> tuple[dict[str, str | None], frozenset[str], frozenset[str]]:
    """The parameters, the parts they are for, and those of them that come as plain parameters: only in a flush of one
    turn, for else there would be too many statements to keep prepared."""
    numbered = [(no, str(w.id), w) for no, w in enumerate(turns)]
    instances = [(no, of, *_instance(w)) for no, of, w in numbered]
    rows = [(no, of, w, row) for no, of, w in numbered for row in w.steps.values()]
    parts: dict[str, Iterable[tuple[Any, ...]]] = {
        "new": ((no, of, *_new(row)) for no, of, w, row in rows if row.started_seq > w.expected_seq),
        "old": ((no, of, *_old(w, row)) for no, of, w, row in rows if row.started_seq <= w.expected_seq),
        "attempt": ((no, of, *_attempt(a)) for no, of, w in numbered for a in w.attempts),
        "transition": ((no, of, t.seq, t.status, t.at) for no, of, w in numbered for t in w.transitions),
        "child": ((no, of, w.created_at, *_child(c)) for no, of, w in numbered for c in w.children),
        "consumed": ((no, of, number) for no, of, w in numbered for number in w.consumed),
        "reported": ((no, of, *reported) for no, of, w in numbered for reported in w.reported),
        "payload": (
            (no, of, w.output, w.error)
            for no, of, w in numbered
            if w.output is not None or w.error is not None
        ),
    }
    used: dict[str, list[tuple[Any, ...]]] = {"t": instances}
    used.update((name, found) for name, values in parts.items() if (found := list(values)))
    parameters: dict[str, str | None] = {}
    alone = [name for name, found in used.items() if len(turns) == len(found) == 1]
    for name, found in used.items():
        columns = _INSTANCE if name == "t" else _OPTIONAL[name][0]
        parameters.update((_plain if name in alone else _arrays)(name, columns, found))
    return parameters, frozenset(used), frozenset(alone)


_text = lru_cache(1024)(str)
"""Of the few workers that many rows name."""


def _attempt(a: AttemptRow) -> tuple[Any, ...]:
    return (
        a.key, a.attempt, a.fence, a.seq, a.error, a.traceback, a.handed_at, a.claimed_at, a.ended_at, a.retry_delay_s,
    )  # fmt: skip


def _child(c: NewChild) -> tuple[Any, ...]:
    return (str(c.id), c.key, c.workflow, c.version, c.name_id, c.params, c.success_s, c.error_s)


def _arrays(prefix: str, columns: Columns, rows: Sequence[tuple[Any, ...]]) -> dict[str, str | None]:
    turned = zip(*rows, strict=True)
    return {
        f"{prefix}_{name}": array(values, kind) for (name, kind), values in zip(columns, turned, strict=True)
    }


def _plain(prefix: str, columns: Columns, rows: Sequence[tuple[Any, ...]]) -> dict[str, str | None]:
    (row,) = rows
    return {
        f"{prefix}_{name}": None if value is None else str(value)
        for (name, _), value in zip(columns, row, strict=True)
    }


def _instance(w: Writes) -> tuple[Any, ...]:
    return (
        w.expected_seq, w.seq, w.status.value, w.alarm_at, w.sets_alarm, w.started_at, w.began_seq,
        w.queued_at, w.ended_at,
        w.ended_seq, w.ending, w.rollback, w.blocked, w.state_bytes,
    )  # fmt: skip


def _new(row: StepRow) -> tuple[Any, ...]:
    return (
        row.key, row.kind, row.status, row.started_seq, row.started_at, row.finished_seq, row.finished_at,
        row.attempt, row.fence, row.config, row.label, row.output, row.error, row.has_rollback, row.due_at, row.line,
        row.handed_at, row.worker and _text(row.worker), row.claimed_at, row.run,
    )  # fmt: skip


def _old(w: Writes, row: StepRow) -> tuple[Any, ...]:
    cut = row.key in w.cut
    fence = row.finished_seq if cut else row.fence
    return (
        row.key, cut, row.status, row.finished_seq, row.finished_at, row.attempt, row.losses, row.uncounted,
        fence, row.output, row.error, row.due_at, row.handed_at, row.worker and _text(row.worker), row.claimed_at,
    )  # fmt: skip

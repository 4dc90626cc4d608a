"""A turn of another worker that is committed between the statements of an unlocked read."""

import time
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Connection, Engine

from orchestrator.store import histories, instances, session
from orchestrator.store.histories import Known
from tests.chaos import harness


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with harness.pair(fsync=False) as pair:
        found = session.connect(pair.database_url)
        yield found
        found.dispose()


TURN = (
    "WITH moved AS (UPDATE orchestrator_instances SET seq = seq + 1 WHERE id = %(id)s RETURNING seq) "
    "INSERT INTO orchestrator_steps (instance_id, key, kind, status, started_seq, started_at) "
    "SELECT %(id)s, 'sleep:' || seq, 'sleep', 'waiting', seq, clock_timestamp() FROM moved"
)


def test_facts_are_never_ahead_of_the_seq_they_are_read_with(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance, now = uuid4(), time.time()
    with engine.begin() as connection:
        new = [instances.NewInstance(instance, "torn", "null", 1.0, 1.0)]
        instances.create(connection, "torn", "torn", "1", new, now, alarm_at=now + 60)
        connection.exec_driver_sql(TURN, {"id": instance})
    plain, turns = session.rows, iter(range(3))

    def rows(connection: Connection, statement: str, parameters: Mapping[str, Any]) -> Any:
        found = list(plain(connection, statement, parameters))
        if "orchestrator_payloads" in statement and next(turns, None) is not None:
            with engine.begin() as other:
                other.exec_driver_sql(TURN, {"id": instance})
        return found

    monkeypatch.setattr(session, "rows", rows)
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        stored = histories.load(connection, [Known(instance)])[instance]
    assert (stored.seq, [row.started_seq for row in stored.rows]) == (4, [1, 2, 3, 4])

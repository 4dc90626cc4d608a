"""The rows of workers: entering twice, and a declared death that stays."""

import pytest

from orchestrator.engine.liveness import Liveness
from orchestrator.ports import MonotonicClock, new_id
from orchestrator.settings import Incarnation
from orchestrator.store import workers
from tests.integration.harness import Site

pytestmark = pytest.mark.integration


def test_a_registration_of_unknown_outcome_is_repeated(site: Site) -> None:
    """protocols §5: the first one was committed, and its answer never came."""
    worker = Incarnation(new_id(1.0), "here", 1)
    for _ in range(2):
        with site.engine.begin() as connection:
            assert workers.register(connection, site.settings.account, worker, ["a@1"]) is not None
    with site.engine.begin() as connection:
        assert workers.heartbeat(connection, worker.id) is not None


def test_who_was_declared_dead_meanwhile_comes_as_another(site: Site) -> None:
    """protocols §6: a dead incarnation never comes back."""
    liveness = Liveness(site.engine, site.settings, MonotonicClock(), list, ("q",), None)  # type: ignore[arg-type]
    before = liveness.id
    with site.engine.begin() as connection:
        liveness._enter(connection)
    site.sql("UPDATE orchestrator_workers SET dead_at = now() WHERE id = :id", id=before)
    with site.engine.begin() as connection:
        liveness._enter(connection)
        assert liveness.id != before
        assert workers.heartbeat(connection, before) is None
        assert workers.heartbeat(connection, liveness.id) is not None

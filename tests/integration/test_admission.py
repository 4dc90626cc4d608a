"""The script ``admit`` on a real Valkey against the pure bucket, with a clock that stands still; and what it does with
slots and with the queue."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run

from orchestrator.control.gatekeeping.admission import Admission, Admitted
from orchestrator.control.gatekeeping.buckets import Bucket
from orchestrator.control.gatekeeping.gatekeeper import Gatekeeper
from orchestrator.control.gatekeeping.keys import Keys
from orchestrator.control.gatekeeping.scripts import Scripts
from orchestrator.errors import RateLimited, ServiceUnavailable, TooManyQueued
from orchestrator.ports import Holder
from orchestrator.settings import Settings
from orchestrator.workflow.language.definition import Options
from tests.integration.conftest import settings_of

SERVER = """
local function now() return tonumber(redis.call('GET', KEYS[1] .. ':test')) end
local function run_id() return redis.call('GET', KEYS[1] .. ':life') end
"""
ACCOUNT_RATE, ACCOUNT_BURST = 8.0, 20.0
OPTIONS = {"slow": Options(name="slow", creation_rate=0.5), "fast": Options(name="fast", creation_rate=5)}


class Stage:
    """One account on the session's Valkey, whose time is set by hand."""

    def __init__(self, redis_url: str, **more: object) -> None:
        self.settings = settings_of("postgresql://nowhere/db", redis_url, **more)
        self.keys = Keys.of(self.settings)
        self.redis = redis.Redis.from_url(redis_url, decode_responses=True)
        self.at, self.life = 1_800_000_000_000, 1
        self.admission = Admission(self.settings, Scripts(self.settings, SERVER))
        self.move(0)
        self.revive()

    def move(self, milliseconds: int) -> None:
        self.at += milliseconds
        self.redis.set(f"{self.keys.tag}:test", self.at)

    def revive(self) -> None:
        """Another life of the server."""
        self.life += 1
        self.redis.set(f"{self.keys.tag}:life", f"life{self.life}")

    def open(self) -> None:
        self.redis.set(self.keys.ready, f"life{self.life}", ex=60)

    def all(self) -> list[str]:
        own = (f"{self.keys.tag}:test", f"{self.keys.tag}:life")
        return [key for key in self.redis.scan_iter(f"{self.keys.tag}*", count=1000) if key not in own]

    def wipe(self) -> None:
        for key in self.all():
            self.redis.delete(key)

    def admit(self, workflow: str, count: int, **more: bool) -> tuple[list[UUID], Admitted]:
        ids = [uuid4() for _ in range(count)]
        return ids, self.admission.admit(workflow, OPTIONS.get(workflow, Options(name=workflow)), ids, **more)

    def close(self) -> None:
        self.wipe()
        self.redis.delete(f"{self.keys.tag}:test", f"{self.keys.tag}:life")
        self.redis.close()
        self.admission.close()


@pytest.fixture
def stage(redis_url: str) -> Iterator[Stage]:
    made = Stage(redis_url)
    yield made
    made.close()


class Buckets(RuleBasedStateMachine):
    """What the script admits is what the buckets allow, and nothing it is asked twice is done twice."""

    redis_url = ""

    @initialize()
    def begin(self) -> None:
        self.stage = Stage(self.redis_url, creation_rate=ACCOUNT_RATE, creation_burst=ACCOUNT_BURST)
        self.model: dict[str, Bucket] = {}
        self.log: list[tuple[float, str, int]] = []
        self.births: dict[str, list[float]] = defaultdict(list)

    @property
    def now(self) -> float:
        return self.stage.at / 1000

    def bucket(self, owner: str) -> Bucket:
        if owner not in self.model:
            self.births[owner].append(self.now)
            rate = ACCOUNT_RATE if owner == "" else OPTIONS[owner].creation_rate
            assert rate is not None
            self.model[owner] = Bucket(rate, ACCOUNT_BURST if owner == "" else rate, self.now)
        return self.model[owner]

    def expected(self, workflow: str, count: int) -> int:
        pair = [self.bucket(""), self.bucket(workflow)]
        got = min(count, *(each.fill(self.now) for each in pair))
        for each in pair:
            each.take(got)
        return got

    @rule(milliseconds=st.one_of(st.integers(0, 3000), st.integers(0, 90_000_000)))
    def time_passes(self, milliseconds: int) -> None:
        self.stage.move(milliseconds)

    @rule(workflow=st.sampled_from(sorted(OPTIONS)), count=st.integers(1, 30))
    def create(self, workflow: str, count: int) -> None:
        got = self.stage.admit(workflow, count)[1]
        assert got.count == self.expected(workflow, count)
        assert (got.refusal is None) == (got.count == count)
        self.log.append((self.now, workflow, got.count))
        if got.refusal is not None:
            assert isinstance(got.refusal, RateLimited)
            assert got.refusal.retry_after == got.again_s
            self.wait = (workflow, got.again_s or 0.0)

    @rule(workflow=st.sampled_from(sorted(OPTIONS)))
    def restart(self, workflow: str) -> None:
        got = self.stage.admission.restart(workflow, OPTIONS[workflow])
        assert got.count == self.expected(workflow, 1)
        self.log.append((self.now, workflow, got.count))

    @rule(workflow=st.sampled_from(sorted(OPTIONS)), count=st.integers(1, 30))
    def create_twice(self, workflow: str, count: int) -> None:
        """The answer got lost, and the script is called again with the same request id."""
        admission = self.stage.admission
        request, name = admission._request, admission._request()
        admission._request = lambda: name  # type: ignore[method-assign]
        try:
            first, again = self.stage.admit(workflow, count)[1], self.stage.admit(workflow, count)[1]
        finally:
            admission._request = request  # type: ignore[method-assign]
        assert (first.count, first.again_s) == (again.count, again.again_s)
        assert first.count == self.expected(workflow, count)
        self.log.append((self.now, workflow, first.count))

    @rule(workflow=st.sampled_from(sorted(OPTIONS)))
    def wait_and_create(self, workflow: str) -> None:
        """``retry_after`` seconds later it succeeds."""
        got = self.stage.admit(workflow, 1)[1]
        assert got.count == self.expected(workflow, 1)
        self.log.append((self.now, workflow, got.count))
        if got.refusal is not None:
            assert got.again_s is not None
            self.stage.move(round(got.again_s * 1000))
            assert self.stage.admit(workflow, 1)[1].count == self.expected(workflow, 1) == 1
            self.log.append((self.now, workflow, 1))

    @rule()
    def wiped(self) -> None:
        self.stage.wipe()
        self.model.clear()

    @rule()
    def remember(self) -> None:
        self.snapshot = {key: self.stage.redis.dump(key) for key in self.stage.all() if ":bucket" in key}

    @precondition(lambda self: hasattr(self, "snapshot"))
    @rule()
    def an_old_snapshot_comes_back(self) -> None:
        """With another life of the server, as after a failover: what the buckets held then says nothing now."""
        self.stage.revive()
        self.stage.wipe()
        for key, value in self.snapshot.items():
            self.stage.redis.restore(key, 86_400_000, value, replace=True)
        self.model.clear()

    @rule()
    def workers_keep_the_buckets(self) -> None:
        self.stage.admission.keep(sorted(OPTIONS))
        for owner in ("", *OPTIONS):
            self.bucket(owner)

    @invariant()
    def every_key_ends(self) -> None:
        if hasattr(self, "stage"):
            assert all(self.stage.redis.pttl(key) > 0 for key in self.stage.all())

    def teardown(self) -> None:
        if not hasattr(self, "stage"):
            return
        for owner in ("", *OPTIONS):
            rate, burst = self.model_limits(owner)
            taken = [(at, count) for at, workflow, count in self.log if owner in ("", workflow)]
            for first in range(len(taken)):
                total = 0
                for at, count in taken[first:]:
                    total += count
                    began = taken[first][0]
                    born = sum(began <= birth <= at for birth in self.births[owner])
                    assert total <= (at - began) * rate + burst + born + 1e-3
        self.stage.close()

    def model_limits(self, owner: str) -> tuple[float, float]:
        if owner == "":
            return ACCOUNT_RATE, ACCOUNT_BURST
        rate = OPTIONS[owner].creation_rate
        assert rate is not None
        return rate, max(1.0, rate)


def test_the_script_admits_what_the_buckets_hold(redis_url: str) -> None:
    """semantics §6, protocols §8: rate times window and one burst at most over any window, whatever is lost or comes
    back from an old snapshot (then each bucket is born again, with one token); a repeated call takes nothing twice."""
    Buckets.redis_url = redis_url
    often = 300 if os.environ.get("ORCHESTRATOR_SOAK") else 25
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    run(Buckets, settings=settings(max_examples=often, deadline=None, suppress_health_check=checks))


def test_a_bucket_that_is_forgotten_is_not_born_too_soon(redis_url: str) -> None:
    """protocols §8: a rate of one in ten days is kept although keys live for a day."""
    stage = Stage(redis_url)
    rare = Options(name="rare", creation_rate=1 / 864_000)
    assert stage.admission.admit("rare", rare, [uuid4()]).count == 1
    left_ms = stage.redis.pttl(stage.keys.bucket("rare"))
    assert left_ms > 863_000_000
    assert stage.admission.admit("rare", rare, [uuid4()]).again_s == pytest.approx(864_000, rel=1e-3)
    stage.close()


def test_a_young_bucket_says_so(redis_url: str) -> None:
    """protocols §8: it starts with one token; for its first second who creates may wait for the others."""
    stage = Stage(redis_url)
    assert stage.admit("fast", 5)[1].young_s == pytest.approx(0.8)
    stage.move(500)
    got = stage.admit("fast", 5)[1]
    assert (got.count, got.young_s) == (2, pytest.approx(0.3))
    stage.move(500)
    assert stage.admit("fast", 5)[1].young_s == 0
    stage.close()


def test_buckets_that_workers_keep_have_filled(stage: Stage) -> None:
    """semantics §6: a deployment that runs offers its burst to the first caller."""
    stage.admission.keep(["fast"])
    stage.move(1000)
    stage.admission.keep(["fast"])
    assert stage.admit("fast", 9)[1].count == 5


def test_a_slot_is_taken_where_one_is_free_and_nothing_queues(stage: Stage) -> None:
    """semantics §6: a free slot is taken at creation if nothing is queued before it; protocols §8: only while slots are
    granted at all, and not for what joins a transaction."""
    stage.admission.keep(["few", "other"])
    stage.move(1000)
    few = Options(name="few", concurrency=3)

    def admit(count: int) -> tuple[list[UUID], Admitted]:
        ids = [uuid4() for _ in range(count)]
        return ids, stage.admission.admit("few", few, ids)

    assert admit(1)[1].running == 0, "nothing is granted before the leases are rebuilt"
    stage.redis.delete(stage.keys.queued("few"))
    stage.open()
    ids, got = admit(2)
    assert (got.count, got.running) == (2, 2)
    assert stage.admit("other", 1, may_run=False)[1].running == 0
    more, got = admit(4)
    assert (got.count, got.running) == (4, 1)
    held = {*map(str, ids), str(more[0])}
    assert set(stage.redis.zrange(stage.keys.slots(), 0, -1)) == held
    assert set(stage.redis.zrange(stage.keys.slots("few"), 0, -1)) == held
    stage.admission.revoke("few", ids, 0)
    assert admit(1)[1].running == 0, "others queue before it"
    assert stage.admit("other", 1)[1].running == 1, "a workflow at its own limit holds nobody else up"
    stage.redis.delete(stage.keys.queued("few"))
    assert admit(1)[1].running == 1, "what was taken back is free"


def test_slots_of_the_account_let_nobody_overtake(redis_url: str) -> None:
    """semantics §6: at the account's limit who comes later queues behind those who queue, whatever the workflow."""
    stage = Stage(redis_url, max_concurrency=1)
    stage.admission.keep(["a", "b"])
    stage.move(1000)
    stage.open()
    ids, first = stage.admit("a", 2)
    assert (first.count, first.running) == (2, 1)
    stage.admission.revoke("a", [ids[0]], 0)
    assert stage.admit("b", 1)[1].running == 0
    stage.close()


def test_the_queue_has_an_end(redis_url: str) -> None:
    """semantics §6: as many queue as ``max_queued`` allows; who is refused for that spends no token, and those that
    were not created after all give their place back."""
    stage = Stage(redis_url, max_queued=10)
    stage.admission.keep(["w"])
    stage.move(1000)
    assert stage.admit("w", 8)[1].refusal is None
    got = stage.admit("w", 5)[1]
    assert got.count == 2
    assert isinstance(got.refusal, TooManyQueued)
    assert "10 instances of workflow 'w'" in str(got.refusal)
    assert got.again_s is None, "waiting is for the rate alone"
    assert stage.admit("w", 1, may_run=False)[1].count == 0
    assert stage.admission.restart("w", Options(name="w")).count == 1
    stage.admission.revoke("w", [], 3)
    assert stage.admit("w", 5)[1].count == 3
    stage.redis.hset(stage.keys.limits, "max_queued:w", "12")
    assert stage.admit("w", 5)[1].count == 2
    stage.close()


def test_who_starts_makes_room_in_the_queue(redis_url: str) -> None:
    """semantics §6: a queue that moves is not taken for a full one: between two counts its length is what came less
    what it was granted slots for; a repeated call takes nothing off twice."""
    stage = Stage(redis_url, max_queued=3)
    stage.admission.keep(["w"])
    stage.move(1000)
    ids, _ = stage.admit("w", 3)
    assert stage.admit("w", 1)[1].count == 0
    stage.open()
    gate = Gatekeeper(stage.settings, "asker", lambda workflow: None, Scripts(stage.settings, SERVER))
    wanted = [Holder(one, "w") for one in ids[:2]]
    assert gate.ask(wanted, more=["w"]) == gate.ask(wanted, more=["w"]) == set(ids[:2])
    assert gate.acquire([Holder(uuid4(), "w")]), "a turn asks for what did not queue"
    assert stage.admit("w", 3)[1].count == 2
    gate.close()
    stage.close()


def test_what_operators_set_holds_at_once(stage: Stage) -> None:
    """semantics §6: limits change while everything runs; what they set wins over definition and settings."""
    stage.admission.keep(["fast"])
    stage.move(10_000)
    stage.redis.hset(stage.keys.limits, mapping={"rate:fast": "50", "burst:fast": "7"})
    stage.redis.expire(stage.keys.limits, 60)
    got = stage.admit("fast", 30)[1]
    assert got.count == 5 + 2, "what was there is not more than the new burst"
    assert "50 instances of workflow 'fast'" in str(got.refusal)
    stage.redis.hset(stage.keys.limits, "rate", "0.001")
    stage.move(1000)
    got = stage.admit("fast", 30)[1]
    assert got.count <= 7


def test_without_redis_a_process_admits_little_and_says_so() -> None:
    """semantics §6: Redis away: stored as queued within a local rate, else ``ServiceUnavailable`` that names it."""
    at = [100.0]
    away = Settings(
        database_url="postgresql://nowhere/db", redis_url="redis://127.0.0.1:1/0", creation_rate=50
    )
    admission = Admission(away, now=lambda: at[0])
    got = admission.admit("w", Options(name="w"), [uuid4() for _ in range(9)])
    assert (got.count, got.running) == (5, 0)
    assert isinstance(got.refusal, ServiceUnavailable)
    assert got.refusal.service == "redis"
    assert "was not created" in str(got.refusal)
    assert got.again_s == pytest.approx(0.2)
    assert admission.restart("w", Options(name="w")).count == 0
    at[0] += 0.4
    assert admission.admit("w", Options(name="w"), [uuid4()]).count == 1
    admission.close()

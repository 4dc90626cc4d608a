"""Turns: retries, losses, stale outcomes, timers, events, order, budget, status and alarm."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from orchestrator.errors import NonDeterminismError, NonRetryableError
from orchestrator.ports import FOREVER
from orchestrator.workflow import codec
from orchestrator.workflow.deciding.outcomes import LOSSES_ALLOWED
from orchestrator.workflow.deciding.turn import FACTS_PER_TURN
from orchestrator.workflow.execution import Outcome, Wake
from orchestrator.workflow.language.config import Retries
from orchestrator.workflow.language.definition import define
from orchestrator.workflow.status import Status
from tests.laws.world import START, WORKER, World


def give(value: Any = None) -> Any:
    return value


def world_of(fn: Any, **fields: Any) -> World:
    world = World(define(fn), **fields)
    world.turn()
    return world


def one_step(**options: Any) -> World:
    async def flow(event, step):
        return await step.do("s", give, 1, **options)

    return world_of(flow)


def waiting_for(*types: str, timeout: float = 60) -> World:
    """Waiters of these types side by side; the output tells what each got."""

    async def flow(event, step):
        waits = [step.wait_for_event(f"w{i}", type=t, timeout=timeout + i) for i, t in enumerate(types)]
        got = await asyncio.gather(*waits, return_exceptions=True)
        return [getattr(each, "payload", type(each).__name__) for each in got]

    return world_of(flow)


KEY = "do:s:1"


# -- the first turn ----------------------------------------------------------------------------------------------


def test_the_first_turn_starts_the_code() -> None:
    """Design §4: the first turn records the start and hands out the first steps, under a fence that is its seq."""
    world = one_step(queue="fast")
    (offer,) = world.offered
    row = world.rows[KEY]
    assert world.started_at == START
    assert (offer.key, offer.fence, offer.queue, offer.label) == (KEY, row.started_seq, "fast", "flow.s")
    assert (row.attempt, row.status, row.handed_at) == (1, "handed", START)
    assert world.status is Status.RUNNING


def test_a_workflow_without_steps_ends_in_its_first_turn() -> None:
    """Semantics §4: complete, with its output, and no alarm."""

    async def flow(event, step):
        return {"id": event.instance_id}

    world = world_of(flow)
    assert (world.status, world.output, world.ended_at) == (Status.COMPLETE, '{"id":"it"}', START)
    assert world.alarm_at == FOREVER


# -- retries -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("retries", "dice", "delays"),
    [
        (Retries(limit=3, delay=10, backoff="constant"), 0.5, [10, 10, 10]),
        (Retries(limit=3, delay=10, backoff="linear"), 0.5, [10, 20, 30]),
        (Retries(limit=4, delay=10, backoff="exponential"), 0.5, [10, 20, 40, 80]),
        (Retries(limit=4, delay=10, backoff="exponential", max_delay=25), 0.5, [10, 20, 25, 25]),
        (Retries(limit=2, delay=10, backoff="constant", jitter=0.5), 0.0, [5, 5]),
        (Retries(limit=2, delay=10, backoff="constant", jitter=0.5), 0.75, [12.5, 12.5]),
    ],
)
def test_failed_attempts_are_retried_after_their_delay(
    retries: Retries, dice: float, delays: list[float]
) -> None:
    """Semantics §2.2, protocols §20: ``limit`` retries, by backoff, then ``max_delay``, then jitter by the dice."""
    world = one_step(retries=retries)
    for delay in delays:
        failed_at = world.now
        world.fail(KEY, dice=dice)
        row = world.rows[KEY]
        assert (row.status, row.due_at) == ("pending", failed_at + delay)
        assert world.status is Status.WAITING  # a waiting retry holds no worker and no slot
        assert world.attempts[-1].retry_delay_s == delay
        world.advance(delay - 0.001)
        assert world.rows[KEY].status == "pending"  # never early
        world.advance()
        assert world.rows[KEY].status == "handed"
    world.fail(KEY)
    assert [attempt.attempt for attempt in world.attempts] == list(range(1, retries.limit + 2))
    assert world.attempts[-1].retry_delay_s is None
    assert world.rows[KEY].status == "failed"
    assert world.status is Status.ERRORED


def test_limit_zero_is_one_attempt() -> None:
    """Semantics §2.2: ``limit`` counts retries."""
    world = one_step(retries=Retries(limit=0))
    world.fail(KEY, ValueError("no"))
    assert world.status is Status.ERRORED
    assert codec.error_info(world.error or "").name == "ValueError"


def test_a_final_error_is_not_retried() -> None:
    """Semantics §1.4: ``NonRetryableError`` fails the step at once."""
    world = one_step()
    world.fail(KEY, NonRetryableError("over"))
    assert [attempt.retry_delay_s for attempt in world.attempts] == [None]
    assert world.status is Status.ERRORED


def test_a_delay_function_is_multiplied_too() -> None:
    """Semantics §2.4: the backoff applies to what the function returned."""
    world = one_step(retries=Retries(limit=5, delay=lambda ctx, error: 3, backoff="linear"))
    world.fail(KEY, delay_s=3.0)
    world.advance()
    world.fail(KEY, delay_s=4.0)
    assert [attempt.retry_delay_s for attempt in world.attempts] == [3, 8]


def test_a_delay_function_that_gave_no_answer_fails_the_step() -> None:
    """Semantics §1.3, §2.4: the record says that a function decides; today's code may have none. Nothing is raised."""
    world = one_step(retries=Retries(limit=5, delay=lambda ctx, error: 3))
    world.fail(KEY, LookupError("flaky"))
    (attempt,) = world.attempts
    assert (codec.error_info(attempt.error).name, attempt.retry_delay_s) == ("LookupError", None)
    assert world.rows[KEY].status == "failed"
    error = codec.error_info(world.error or "")
    assert error.name == "RetryDelayError"
    assert "LookupError: flaky" in error.message


def test_a_delay_on_record_is_not_changed_by_a_function_of_todays_code() -> None:
    """Semantics §1.3: the configuration is fixed when the step first starts."""
    world = one_step(retries=Retries(limit=5, delay=10, backoff="constant"))
    world.fail(KEY, delay_s=500.0)
    assert [attempt.retry_delay_s for attempt in world.attempts] == [10]


def test_every_hand_out_has_a_higher_fence() -> None:
    """Protocols §3: the fence of a hand-out is the seq at that moment."""
    world = one_step(retries=Retries(delay=0))
    for _ in range(3):
        world.fail(KEY)
    fences = [offer.fence for offer in world.offered]
    assert fences == sorted(set(fences))
    assert world.rows[KEY].fence == fences[-1]
    assert [attempt.fence for attempt in world.attempts] == fences[:-1]


def test_a_failed_attempt_is_recorded() -> None:
    """Semantics §2.2, protocols §11: error, traceback for people, when handed, claimed and ended, and the delay."""
    world = one_step()
    world.now += 1
    world.claim()
    world.now += 2
    world.fail(KEY, ValueError("no"), traceback="line 1")
    (attempt,) = world.attempts
    assert (attempt.handed_at, attempt.claimed_at, attempt.ended_at) == (START, START + 1, START + 3)
    assert (attempt.traceback, attempt.retry_delay_s) == ("line 1", 10.0)
    assert codec.error_info(attempt.error).message == "no"


# -- losses ------------------------------------------------------------------------------------------------------


def test_a_lost_attempt_is_handed_out_again_at_once() -> None:
    """Semantics §2.5: recorded as failed (``WorkerLost``), retried without delay."""
    world = one_step()
    world.claim()
    world.turn(Wake(lost=(KEY,)))
    row = world.rows[KEY]
    assert (row.status, row.attempt, row.losses, row.uncounted) == ("handed", 2, 1, 1)
    assert codec.error_info(world.attempts[0].error).name == "WorkerLost"
    assert world.attempts[0].retry_delay_s == 0.0


def test_losses_have_a_cap_of_their_own() -> None:
    """Semantics §2.5: ten losses are retried, whatever ``limit`` is; the eleventh is final."""
    world = one_step(retries=Retries(limit=1))
    for _ in range(LOSSES_ALLOWED):
        world.claim()
        world.turn(Wake(lost=(KEY,)))
        assert world.rows[KEY].status == "handed"
    world.claim()
    world.turn(Wake(lost=(KEY,)))
    assert LOSSES_ALLOWED == 10
    assert len(world.attempts) == 11
    assert codec.error_info(world.error or "").name == "WorkerLost"


def test_losses_do_not_use_up_the_limit() -> None:
    """Semantics §2.5: nor do they count for the backoff."""
    world = one_step(retries=Retries(limit=1, delay=10))
    for _ in range(3):
        world.claim()
        world.turn(world.outcome(KEY, loss="lost"))
    world.fail(KEY)
    assert world.attempts[-1].retry_delay_s == 10
    world.advance()
    world.fail(KEY)
    assert world.status is Status.ERRORED


def test_with_limit_zero_the_first_loss_is_final() -> None:
    """Semantics §2.5: at most once was asked for."""
    world = one_step(retries=Retries(limit=0))
    world.claim()
    world.turn(Wake(lost=(KEY,)))
    assert codec.error_info(world.error or "").name == "WorkerLost"


def test_an_attempt_handed_back_is_not_counted() -> None:
    """Protocols §18: recorded as ``WorkerShutdown``, handed out again, not counted, not even with ``limit=0``."""
    world = one_step(retries=Retries(limit=0))
    for _ in range(12):
        world.claim()
        world.turn(world.outcome(KEY, loss="handed_back"))
    assert {codec.error_info(attempt.error).name for attempt in world.attempts} == {"WorkerShutdown"}
    assert (world.rows[KEY].attempt, world.rows[KEY].losses) == (13, 0)
    world.end(KEY)
    assert world.output == "1"


def test_a_process_that_cannot_run_an_attempt_loses_it() -> None:
    """Protocols §5: ``unrunnable`` is a loss."""
    world = one_step()
    world.claim()
    world.turn(world.outcome(KEY, loss="unrunnable"))
    assert world.rows[KEY].losses == 1


def test_only_what_runs_can_be_lost_and_only_what_is_offered_is_offered_again() -> None:
    """Protocols §5, §7: what changed since the rows were read is left alone; offering again keeps the fence."""
    world = one_step()
    seq = world.seq
    world.turn(Wake(lost=(KEY, "do:other:1")))
    assert world.rows[KEY].attempt == 1
    world.turn(Wake(unclaimed=(KEY,)))
    assert [offer.fence for offer in world.offered] == [world.rows[KEY].fence] * 2
    assert world.seq == seq
    world.claim()
    world.turn(Wake(unclaimed=(KEY,)))
    assert len(world.offered) == 2


# -- stale outcomes ----------------------------------------------------------------------------------------------


def test_an_outcome_with_an_old_fence_is_discarded() -> None:
    """Semantics §2.1: a result with an old fence changes nothing."""
    world = one_step()
    world.claim()
    late = world.outcome(KEY)
    world.bodies[KEY] = (late.fence, world.current().execution.replay.calls[KEY])
    world.turn(Wake(lost=(KEY,)))
    seq = world.seq
    writes = world.turn(late)
    assert writes.stale == [late]
    assert world.seq == seq
    assert world.rows[KEY].status == "handed"


def test_an_outcome_that_comes_twice_counts_once() -> None:
    """Semantics §2.1: the record of a body is made exactly once, in one turn or in two."""

    async def flow(event, step):
        return [await step.do("s", give, 1), await step.do("t", give, 2)]

    world = world_of(flow)
    world.claim()
    outcome = world.outcome(KEY)
    writes = world.turn(outcome, outcome)
    assert writes.stale == [outcome]
    assert world.turn(outcome).stale == [outcome]
    assert world.handed() == ["do:t:1"]


def test_nothing_counts_in_a_finished_instance() -> None:
    """Semantics §4: nothing is recorded after the end."""

    async def flow(event, step):
        step.do("s", give, 1)
        await step.sleep("nap", 5)

    world = world_of(flow)
    world.claim()
    world.advance()
    assert world.status is Status.COMPLETE
    late = world.outcome(KEY)
    assert world.turn(late, Wake()).stale == [late]
    assert world.rows[KEY].output is None


# -- timers ------------------------------------------------------------------------------------------------------


def test_a_sleep_is_never_early_and_may_be_late() -> None:
    """Semantics §3.1: due at its start plus its duration; the code sees the time of the turn."""

    async def flow(event, step):
        await step.sleep("nap", 10)
        return step.now().timestamp()

    world = world_of(flow)
    assert world.alarm_at <= START + 10
    world.advance(9.999)
    assert world.status is Status.WAITING
    world.advance(3)
    assert world.output == str(START + 12.999)


@pytest.mark.parametrize(
    ("when", "error"),
    [(START - 1, "in the past"), (START + 366 * 86400, "365 days"), (START, None), (START + 1, None)],
)
def test_a_moment_in_the_past_is_refused_once(when: float, error: str | None) -> None:
    """Semantics §3.1: refused at the first execution only; a replay later is fine."""

    async def flow(event, step):
        try:
            await step.sleep_until("moment", datetime.fromtimestamp(when, UTC))
        except Exception as refused:
            await step.do("note", give, str(refused))
        return await step.do("after", give, "after")

    world = world_of(flow)
    if error is None:
        world.advance(max(0, when - START))
        assert world.handed() == ["do:after:1"]
    else:
        assert error in codec.error_info(world.rows["sleep:moment:1"].error or "").message
        world.end("do:note:1")
    world.now += 1000
    world.evict()
    world.end("do:after:1")
    assert world.output == '"after"'


def test_a_refused_moment_does_not_disturb_its_neighbours() -> None:
    """Semantics §3.1: the refusal comes out of its own await, also beside steps started in the same breath."""

    async def flow(event, step):
        futures = [step.do("a", give, 1), step.sleep_until("past", 0.0), step.do("b", give, 2)]
        got = await asyncio.gather(*futures, return_exceptions=True)
        return [each if isinstance(each, int) else type(each).__name__ for each in got]

    world = world_of(flow)
    assert world.handed() == ["do:a:1", "do:b:1"]
    world.end()
    assert world.output == '[1,"InvalidConfig",2]'


# -- events ------------------------------------------------------------------------------------------------------


def test_waiters_of_a_type_are_served_first_come_first_served() -> None:
    """Semantics §3.2: one event resolves exactly one waiter, the one that waits longest, and is consumed."""
    world = waiting_for("go", "other", "go", "go")
    world.send("go", "first")
    world.turn()
    world.send("go", "second")
    world.send("other", "else")
    world.turn()
    assert world.inbox == []
    world.send("go", "third")
    world.turn()
    assert world.output == '["first","else","second","third"]'


def test_events_are_buffered_until_someone_waits() -> None:
    """Semantics §3.2: buffered per type, first in first out."""

    async def flow(event, step):
        await step.do("s", give)
        return [(await step.wait_for_event("w", type="go")).payload for _ in range(2)]

    world = world_of(flow)
    for payload in ("one", "two", "three"):
        world.send("go", payload)
    world.turn()
    assert len(world.inbox) == 3
    world.end(KEY)
    assert world.output == '["one","two"]'
    assert [event.payload for event in world.inbox] == ['"three"']


def test_an_event_received_in_time_wins_however_late_the_turn() -> None:
    """Protocols §9: a waiter gets the first event received before its due time, even if the turn runs after it."""
    world = waiting_for("go", timeout=10)
    world.now = START + 9.5
    world.send("go", "in time")
    world.now = START + 50
    world.turn()
    assert world.output == '["in time"]'


def test_an_event_received_at_the_due_time_is_too_late() -> None:
    """Protocols §9: received *before* its due time; else it times out, and swallows nothing."""
    world = waiting_for("go", timeout=10)
    world.now = START + 10
    world.send("go", "late")
    world.turn()
    assert world.output == '["EventTimeout"]'
    assert len(world.inbox) == 1


def test_a_waiter_that_timed_out_swallows_nothing() -> None:
    """Semantics §3.2: the next in line gets the event."""
    world = waiting_for("go", "go", timeout=10)
    world.now = START + 10.5  # the first is due at 10, the second at 11
    world.send("go", "for the second")
    world.now = START + 60
    world.turn()
    assert world.output == '["EventTimeout","for the second"]'


def test_two_events_one_of_them_in_time() -> None:
    """Protocols §9: each waiter by its own due time, in one late turn."""
    world = waiting_for("go", "go", "go", timeout=10)
    world.now = START + 9
    world.send("go", "first")
    world.now = START + 11.5
    world.send("go", "third")
    world.now = START + 100
    world.turn()
    assert world.output == '["first","EventTimeout","third"]'


def test_a_waiter_that_lost_a_race_stays_first_in_line() -> None:
    """Protocols §13: unless it is cancelled."""

    async def flow(event, step):
        first = step.wait_for_event("first", type="go")
        await asyncio.wait([first, step.sleep("nap", 5)], return_when=asyncio.FIRST_COMPLETED)
        second = await step.wait_for_event("second", type="go")
        return [(await first).payload, second.payload]

    world = world_of(flow)
    world.advance()
    world.send("go", 1)
    world.send("go", 2)
    world.turn()
    assert world.output == "[1,2]"


def test_a_cancelled_waiter_leaves_its_line() -> None:
    """Protocols §13: the event goes to the next."""

    async def flow(event, step):
        first = step.wait_for_event("first", type="go")
        second = step.wait_for_event("second", type="go")
        await step.sleep("nap", 5)
        first.cancel()
        return (await second).payload

    world = world_of(flow)
    world.advance()
    assert world.rows["wait:first:1"].status == "cancelled"
    world.send("go", "only")
    world.turn()
    assert world.output == '"only"'


def test_a_received_event_keeps_its_text_and_time() -> None:
    """Semantics §1.5, protocols §11: the payload is the sender's own text; the time is that of its receipt."""

    async def flow(event, step):
        got = await step.wait_for_event("w", type="go")
        return [got.payload, got.type, got.timestamp.timestamp()]

    world = world_of(flow)
    world.now += 1.5
    world.send("go", {"text": "é\u0000", "big": 10**22})
    world.turn()
    assert codec.decode(world.output or "") == [{"text": "é\u0000", "big": 10**22}, "go", START + 1.5]
    assert "\\u0000" in (world.output or "")


def test_many_waiters_and_events_take_no_quadratic_time() -> None:
    """Protocols §1: a thousand facts are one turn; matching them must not take seconds."""
    world = waiting_for(*["go"] * 900, timeout=3600)
    for number in range(900):
        world.send("go", number)
    world.turn()
    assert codec.decode(world.output or "") == list(range(900))


# -- the order in one turn ---------------------------------------------------------------------------------------


def test_outcomes_then_timers_then_events() -> None:
    """Protocols §9: outcomes as they came, due timers and time-outs by due time, events by number, then what the
    code started meanwhile."""

    async def flow(event, step):
        order: list[str] = []

        async def noted(name: str, future: Any) -> None:
            try:
                await future
            except Exception as error:
                name += type(error).__name__
            order.append(name)

        async def chained() -> None:
            await noted("s", step.do("s", give))
            await noted("zero", step.sleep("zero", 0))

        await asyncio.gather(
            noted("late", step.sleep("late", 9)),
            noted("early", step.sleep("early", 3)),
            noted("never", step.wait_for_event("never", type="x", timeout=6)),
            noted("b", step.wait_for_event("b", type="b")),
            noted("a", step.wait_for_event("a", type="a")),
            noted("t", step.do("t", give)),
            chained(),
        )
        return order

    world = world_of(flow)
    world.claim()
    world.now = START + 10
    world.send("a")
    world.send("b")
    world.turn(world.outcome("do:t:1"), world.outcome("do:s:1"))
    expected = ["t", "s", "early", "neverEventTimeout", "late", "zero", "a", "b"]
    assert codec.decode(world.output or "") == expected


def test_equal_due_times_go_by_start() -> None:
    """Protocols §9: so that the order does not hang on chance."""

    async def flow(event, step):
        order: list[str] = []

        async def noted(name: str) -> None:
            await step.sleep(name, 5)
            order.append(name)

        await asyncio.gather(*[noted(name) for name in "cab"])
        return order

    world = world_of(flow)
    world.advance()
    assert world.output == '["c","a","b"]'


# -- budget ------------------------------------------------------------------------------------------------------


def test_an_endless_loop_of_steps_commits_and_goes_on() -> None:
    """Protocols §1 (6): a turn takes a thousand facts, then commits and asks for the next one."""

    async def flow(event, step):
        while True:
            await step.sleep("x", 0)

    world = World(define(flow))
    for turn in range(1, 4):
        writes = world.one_turn()
        assert writes.again
        done = [row for row in world.rows.values() if row.status == "done"]
        assert len(done) == turn * FACTS_PER_TURN
        assert world.status is Status.RUNNING
    world.evict()
    assert world.one_turn().again


def test_an_endless_loop_of_steps_does_not_keep_events_waiting() -> None:
    """Protocols §9: timers come before events within a turn, not for ever."""

    async def flow(event, step):
        async def spin() -> None:
            while True:
                await step.sleep("x", 0)

        beside = asyncio.create_task(spin())
        got = [(await step.wait_for_event("w", type="go")).payload for _ in range(2)]
        beside.cancel()
        return got

    world = World(define(flow))
    assert world.one_turn().again
    world.send("go", 1)
    world.send("go", 2)
    for _ in range(2):
        world.one_turn()
        world.evict()
    world.turn()
    assert world.output == "[1,2]"


def test_arrivals_over_the_budget_are_left_for_the_next_turn() -> None:
    """Protocols §1 (6): nothing is dropped."""

    async def flow(event, step):
        return sum(await asyncio.gather(*[step.do("s", give, 1) for _ in range(FACTS_PER_TURN + 5)]))

    world = world_of(flow)
    world.claim()
    writes = world.one_turn(*[world.outcome(key) for key in world.running()])
    assert len(writes.left) == 5
    assert writes.again
    world.turn(*writes.left)
    assert world.output == str(FACTS_PER_TURN + 5)


# -- status and alarm --------------------------------------------------------------------------------------------


def test_running_means_handed_out_or_running() -> None:
    """Semantics §4: ``waiting`` has only sleeps, event waits and retry waits open."""

    async def flow(event, step):
        await asyncio.gather(step.do("s", give), step.sleep("nap", 100))

    world = world_of(flow)
    assert world.status is Status.RUNNING
    world.end(KEY)
    assert world.status is Status.WAITING
    world.advance()
    assert [transition.status for transition in world.transitions] == ["waiting", "complete"]


def test_waiting_rings_exactly_when_something_is_due() -> None:
    """Protocols §7: waiting: the exact earliest due time."""

    async def flow(event, step):
        await asyncio.gather(step.sleep("a", 300), step.sleep("b", 200), step.sleep("c", 400))

    world = World(define(flow), alarm_at=START)  # it fired
    world.turn()
    assert world.alarm_at == START + 200
    world.advance()
    assert world.alarm_at == START + 300


def test_an_alarm_only_moves_earlier_unless_it_fired() -> None:
    """Protocols §7: short instances never touch the index; ringing early is harmless."""

    async def flow(event, step):
        await step.do("s", give)
        await step.sleep("long", 300)
        await step.sleep("short", 1)

    world = World(define(flow), alarm_at=START + 5)
    world.turn()
    world.now += 1
    world.end(KEY)
    assert world.status is Status.WAITING
    assert world.alarm_at == START + 5
    world.now = START + 5
    world.turn(Wake())
    assert world.alarm_at == START + 301
    world.advance()
    assert world.alarm_at == START + 302


def test_an_event_before_the_alarm_may_move_it_earlier() -> None:
    """Protocols §7: what is due earlier than the alarm moves it."""

    async def flow(event, step):
        await step.wait_for_event("w", type="go", timeout=500)
        await step.sleep("nap", 7)

    world = World(define(flow), alarm_at=START)
    world.turn()
    assert world.alarm_at == START + 500
    world.now = START + 100
    world.send("go")
    world.turn()
    assert world.alarm_at == START + 107


def test_an_unclaimed_hand_out_is_looked_at_after_five_seconds_then_ever_later() -> None:
    """Protocols §7: +5 s while a hand-out is unclaimed, doubling, with +60 s as the bound of a running instance."""
    world = World(one_step().definition, alarm_at=START)
    world.turn()
    rings = []
    for _ in range(7):
        rings.append(world.alarm_at - START)
        world.now = world.alarm_at
        world.turn(Wake())
    assert rings == [5, 10, 20, 40, 80, 140, 200]


def test_a_hand_out_is_looked_at_when_it_is_five_seconds_old_whenever_the_alarm_rang_before() -> None:
    """Protocols §7: an earlier step's alarm rings while the next hand-out is young, and must not double its wait."""

    async def flow(event, step):
        await step.do("s", give)
        await step.do("t", give)

    world = World(define(flow), alarm_at=START)
    world.turn()
    world.now = START + 2
    world.end("do:s:1")
    world.now = START + 5
    world.turn(Wake())
    assert world.alarm_at == START + 7


def test_a_running_body_is_looked_at_every_minute() -> None:
    """Protocols §7: +60 s while everything is claimed."""
    world = World(one_step().definition, alarm_at=START)
    world.turn()
    world.claim()
    world.now = START + 5
    world.turn(Wake())
    assert world.alarm_at == START + 65


def test_the_alarm_of_what_runs_is_at_most_a_hand_out_away() -> None:
    """Protocols §7: a hand-out made long before the alarm would ring moves it to five seconds from now."""

    async def flow(event, step):
        await step.wait_for_event("w", type="go", timeout=500)
        await step.do("s", give)

    world = World(define(flow), alarm_at=START)
    world.turn()
    world.now = START + 100
    world.send("go")
    world.turn()
    assert world.alarm_at <= START + 105


# -- code that waits for nothing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("evicted", [False, True])
def test_code_that_waits_for_no_step_is_held(evicted: bool) -> None:
    """Protocols §12: visible as blocked, and tried again: code that waits for a step goes on."""

    async def stuck(event, step):
        await step.do("s", give, 1)
        await asyncio.Event().wait()

    async def fixed(event, step):
        return await step.do("s", give, 1)

    world = world_of(stuck)
    world.claim()
    outcome = world.outcome(KEY)
    if evicted:
        world.evict()
    with pytest.raises(NonDeterminismError, match="waits for something that is no step"):
        world.turn(outcome)
    world.hold(outcome, error=NonDeterminismError("as above"))
    assert (world.status, world.rows[KEY].status) == (Status.WAITING, "done")
    with pytest.raises(NonDeterminismError, match="waits for something that is no step"):
        world.turn(Wake())
    world.evict()
    world.definition = define(fixed, name="stuck")
    world.turn(Wake())
    assert world.output == "1"


def test_code_that_waits_for_no_step_in_its_first_turn_is_held() -> None:
    """Protocols §12: nothing was recorded by then."""

    async def stuck(event, step):
        await asyncio.Event().wait()

    world = World(define(stuck))
    with pytest.raises(NonDeterminismError, match="waits for something that is no step"):
        world.turn()
    world.hold(error=NonDeterminismError("as above"))
    assert (world.started_at, world.rows) == (None, {})


def test_code_that_waits_beside_an_open_step_is_not_held() -> None:
    """The step's end may still set what the code waits for."""

    async def flow(event, step):
        done = asyncio.Event()

        async def helper() -> None:
            await step.do("s", give)
            await asyncio.sleep(0)
            done.set()

        task = asyncio.create_task(helper())
        await done.wait()
        await task
        return "set"

    world = world_of(flow)
    world.end()
    assert world.output == '"set"'


def test_code_that_waits_for_no_step_is_not_held_while_a_cancelled_body_runs() -> None:
    """Protocols §13: its end is still to be recorded."""

    async def flow(event, step):
        future = step.do("s", give)
        await step.sleep("nap", 1)
        future.cancel()
        await asyncio.Event().wait()

    world = world_of(flow)
    world.claim()
    world.advance()
    assert world.rows[KEY].status == "cancelling"
    with pytest.raises(NonDeterminismError, match="waits for something that is no step"):
        world.end(KEY)


# -- what else a turn does ---------------------------------------------------------------------------------------


def test_state_is_counted() -> None:
    """Protocols §20: state per instance is a running byte count."""
    world = one_step()
    world.claim()
    world.turn(world.outcome(KEY, output='"12345678"'))
    assert world.state_bytes == len('"12345678"') * 2  # the step's and the workflow's


def test_an_outcome_says_who_ran_it() -> None:
    """Protocols §11: the row of a finished step keeps its worker and times."""
    world = one_step()
    world.now += 1
    world.end(KEY)
    row = world.rows[KEY]
    assert (row.worker, row.claimed_at, row.finished_at) == (WORKER, START + 1, START + 1)


def test_a_blocked_instance_is_tried_again() -> None:
    """Protocols §12: a turn that goes through clears the block."""
    world = one_step()
    world.hold(error=LookupError("other code"))
    assert (world.blocked, world.status) != (None, Status.RUNNING)
    world.now = world.alarm_at
    world.turn(Wake())
    assert world.blocked is None
    world.end(KEY)
    assert world.output == "1"


def test_a_turn_that_lost_the_race_writes_nothing() -> None:
    """Protocols §1: compare and set."""
    world = one_step()
    world.claim()
    stale = world.cold()
    world.turn(Wake(lost=(KEY,)))
    from orchestrator.workflow.deciding.turn import decide

    before = dict(world.rows)
    writes = decide(stale.execution, [Outcome(KEY, stale.execution.open[KEY].fence, output="9")], world.now)
    assert not world.commit(writes)
    assert world.rows == before

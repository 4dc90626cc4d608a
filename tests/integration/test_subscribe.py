"""``subscribe``: from the beginning or a cursor, live, to the end; with a worker, with and without Redis."""

from __future__ import annotations

import asyncio
import gc
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.client import followers
from orchestrator.client.orchestrator import Orchestrator
from orchestrator.dispatch.celery_app import create_client
from orchestrator.dispatch.courier import Courier
from orchestrator.dispatch.news import News
from orchestrator.dispatch.publisher import Publisher
from orchestrator.errors import InstanceNotFound, InvalidConfig, ServiceUnavailable
from orchestrator.ports import new_id
from orchestrator.settings import Settings
from orchestrator.store.records import lifecycle
from orchestrator.workflow.language.config import Retries
from orchestrator.workflow.lifecycle import LifecycleEvent, events
from tests.integration import flows
from tests.integration.harness import Site, eventually
from tests.integration.test_shutdown import Process

pytestmark = pytest.mark.integration

ONCE = Retries(limit=0)


@pytest.fixture
def live(site: Site) -> Site:
    """A site whose workers announce changes, as the courier of a worker process does."""
    site.post.spread_changes = site.client.news.change
    return site


def types(told: list[LifecycleEvent]) -> list[str]:
    return [event.type for event in told]


async def two_steps(event, step):
    await step.do("a", lambda: 1)
    await step.sleep("nap", 0)
    return await step.do("b", lambda: {"n": 2})


async def approved(event, step):
    await step.do("ask", lambda: "asked")
    found = await step.wait_for_event("approval", type="approval", timeout="1 hour")
    return found.payload


def test_a_finished_instance_is_told_from_the_beginning_to_the_end(site: Site) -> None:
    """Semantics §7: every event with its data, in order, then the end."""
    flow = site.workflow(two_steps, name="subscribe_told")
    site.worker()
    instance = flow.create({"x": 1}, id="told")
    assert instance.result(30) == {"n": 2}
    told = list(instance.subscribe())
    assert types(told) == [
        "workflow_queued", "workflow_started", "step_started", "attempt_started", "attempt_completed",
        "step_completed", "sleep_started", "sleep_completed", "step_started", "attempt_started",
        "attempt_completed", "step_completed", "workflow_completed",
    ]  # fmt: skip
    assert [event.event_id for event in told] == sorted({event.event_id for event in told})
    assert {event.instance_id for event in told} == {"told"}
    assert told[0].params == {"x": 1} and told[0].timestamp.tzinfo is not None
    assert (told[2].step_name, told[2].count, told[2].config["retries_limit"]) == ("a", 1, 5)
    assert (told[3].attempt, told[4].attempt, told[5].output) == (1, 1, 1)
    assert (told[6].step_name, told[6].duration) == ("nap", 0.0)
    assert told[-1].output == {"n": 2} and told[-1].duration > 0
    for at, event in enumerate(told):
        assert list(instance.subscribe(cursor=event.event_id)) == told[at + 1 :], "a cursor is exclusive"


def test_only_some_types_and_the_end_all_the_same(site: Site) -> None:
    """Semantics §7: a subscription ends at the terminal event even if that is filtered out."""
    flow = site.workflow(two_steps, name="subscribe_some")
    site.worker()
    instance = flow.create()
    assert types(list(instance.subscribe(types=["step_completed"]))) == ["step_completed"] * 2
    assert list(instance.subscribe(types=())) == []


def test_errors_retries_rollback_and_what_is_sensitive(site: Site) -> None:
    """Semantics §7 and §2.8: failed attempts with error and retry delay, the rollback, outputs of sensitive steps
    redacted and errors not."""

    def boom() -> None:
        raise ValueError("no money")

    async def flow(event, step):
        await step.do("pay", lambda: "secret", sensitive=True, rollback=lambda r: None)
        await step.do("ship", boom, retries=Retries(limit=1, delay=0))

    workflow = site.workflow(flow, name="subscribe_errors")
    site.worker()
    told = list(workflow.create().subscribe())
    assert types(told) == [
        "workflow_queued", "workflow_started", "step_started", "attempt_started", "attempt_completed",
        "step_completed", "step_started", "attempt_started", "attempt_errored", *waited(told),
        "attempt_started", "attempt_errored", "step_errored", "rollback_started", "rollback_step_started",
        "rollback_attempt_started", "rollback_attempt_completed", "rollback_step_completed", "rollback_completed",
        "workflow_errored",
    ]  # fmt: skip
    assert told[5].output == "[REDACTED]"
    first, second = (event for event in told if event.type == "attempt_errored")
    assert (first.attempt, first.retry_delay, str(first.error)) == (1, 0.0, "ValueError: no money")
    assert isinstance(first.retry_delay, float)
    assert (second.attempt, second.retry_delay) == (2, None)
    assert str(told[-1].error) == "ValueError: no money"
    assert next(event for event in told if event.type == "rollback_started").error == told[-1].error


def waited(told: list[LifecycleEvent]) -> list[str]:
    """What the retry of no delay shows in between: the instance may have waited for its turn."""
    return [t for t in types(told) if t in ("workflow_waiting", "workflow_running", "workflow_queued")][1:]


def test_a_subscription_goes_on_live(live: Site) -> None:
    """Semantics §7: replays what was, then follows; who subscribed before the instance did anything misses nothing."""
    flow = live.workflow(approved, name="subscribe_live")
    instance = flow.create(id="live")
    told: list[LifecycleEvent] = []
    done = threading.Event()

    def follow() -> None:
        for event in instance.subscribe():
            told.append(event)
        done.set()

    threading.Thread(target=follow, daemon=True).start()
    eventually(lambda: "workflow_queued" in types(told))
    live.worker(chef=True)
    eventually(lambda: "wait_started" in types(told))
    assert not done.is_set()
    instance.send_event("approval", {"by": "carol"})
    assert done.wait(30)
    assert told == list(instance.subscribe())
    (waiting,) = (event for event in told if event.type == "wait_started")
    (came,) = (event for event in told if event.type == "wait_completed")
    assert (waiting.event_type, came.event_type) == ("approval", "approval")
    assert came.output["payload"] == {"by": "carol"}


def test_without_redis_the_poll_tells(site: Site) -> None:
    """Protocols §20: news are a hint; a subscriber whose Redis is away learns of everything by its poll."""
    flow = site.workflow(approved, name="subscribe_deaf")
    site.worker()
    with Orchestrator(replace(site.settings, redis_url="redis://127.0.0.1:1/0")) as deaf:
        flow.create(id="deaf")
        subscription = flow.get("deaf", orchestrator=deaf).subscribe()
        assert next(event for event in subscription if event.type == "wait_started").event_type == "approval"
        flow.get("deaf").send_event("approval", 1)
        assert types(list(subscription))[-1] == "workflow_completed"


def test_workers_announce_changes_only_while_somebody_follows(site: Site) -> None:
    """Semantics §7, live: what a worker asks before it announces every change is true exactly while there is one."""
    news = site.client.news
    assert news.is_followed() is False
    instance = site.workflow(approved, name="subscribe_counted").create()

    def follow() -> None:
        with pytest.raises(ServiceUnavailable):
            list(instance.subscribe())

    threading.Thread(target=follow, daemon=True).start()
    eventually(news.is_followed)
    site.client.close()
    eventually(lambda: site.client.news.is_followed() is False)


def test_the_courier_of_a_worker_passes_changes_on_while_somebody_follows(site: Site) -> None:
    """Semantics §7, live: it asks once a second whether anybody does; what nobody follows costs no message."""
    courier = Courier(Publisher(create_client(site.settings), site.settings), News(site.settings))
    changed = new_id(site.client.now())
    try:
        eventually(lambda: courier._followed_at > 0)
        courier.changed([changed])
        assert courier._changed == set()
        subscription = site.client.news.subscribe(follow=True)
        assert subscription is not None
        eventually(lambda: courier._is_followed)
        courier.changed([changed, changed])
        assert eventually(lambda: subscription.heard(0.1)) == [str(changed)]
        subscription.close()
        eventually(lambda: not courier._is_followed)
    finally:
        courier.close()


def test_after_a_restart_a_new_subscription_goes_on(site: Site) -> None:
    """Semantics §7, protocols §3: ``seq`` never goes back, so the cursor of the first run leads into the second."""
    flow = site.workflow(two_steps, name="subscribe_again")
    site.worker()
    instance = flow.create()
    first = list(instance.subscribe())
    instance.restart()
    second = list(instance.subscribe(cursor=first[-1].event_id))
    assert types(second)[0] == "workflow_queued" and types(second)[-1] == "workflow_completed"
    assert second[0].event_id > first[-1].event_id
    assert [t for t in types(second) if t.startswith("step")] == ["step_started", "step_completed"] * 2
    assert list(instance.subscribe()) == second, "what the restart wiped is told no more"


def test_after_a_restart_from_a_step_the_earlier_events_stay(site: Site) -> None:
    """Protocols §10: the step and all that started after it are gone, and begin again under higher numbers."""
    flow = site.workflow(two_steps, name="subscribe_from")
    site.worker()
    instance = flow.create()
    first = list(instance.subscribe())
    instance.restart(from_step="b")
    told = list(instance.subscribe())
    kept = next(at for at, event in enumerate(first) if event.step_name == "b")
    assert told[:kept] == first[:kept]
    again = [event for event in told[kept:] if event.step_name == "b"]
    assert types(again) == ["step_started", "attempt_started", "attempt_completed", "step_completed"]
    assert again[0].event_id > first[-1].event_id


def test_a_deleted_instance_ends_its_subscriptions_with_an_error(site: Site) -> None:
    """API §3: gone is InstanceNotFound, for who asks first and for who follows already."""
    flow = site.workflow(approved, name="subscribe_gone")
    site.worker()
    instance = flow.create(id="gone")
    subscription = instance.subscribe()
    assert next(event for event in subscription if event.type == "wait_started")
    instance.delete()
    with pytest.raises(InstanceNotFound, match="gone"):
        list(subscription)
    with pytest.raises(InstanceNotFound, match="gone"):
        instance.subscribe()
    with pytest.raises(InstanceNotFound, match="gone"):
        asyncio.run(anext(instance.asubscribe()))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"types": ["step_started", "step_begun"]}, "'step_begun'.*workflow_queued"),
        ({"cursor": -1}, "event_id"),
        ({"cursor": "12"}, "event_id"),
        ({"cursor": True}, "event_id"),
        ({"cursor": 10**30}, "event_id"),
        ({"cursor": 10**9}, "beyond everything"),
    ],
)
def test_what_cannot_be_subscribed_to(site: Site, options: dict[str, Any], text: str) -> None:
    """API §3: unknown types are listed beside those there are; a cursor is an event_id of this instance."""
    instance = site.workflow(two_steps, name="subscribe_wrong").create()
    with pytest.raises(InvalidConfig, match=text):
        instance.subscribe(**options)

    async def first() -> None:
        await anext(instance.asubscribe(**options))

    with pytest.raises(InvalidConfig, match=text):
        asyncio.run(first())


def test_the_async_twin_leaves_the_loop_free_and_nothing_behind(live: Site) -> None:
    """API §3: ``asubscribe`` follows many at once on one thread, and who goes away is forgotten."""
    flow = live.workflow(approved, name="subscribe_async")
    made = [flow.create(id=f"a{n}") for n in range(20)]
    live.worker(chef=True)

    async def follow(n: int) -> list[str]:
        found = []
        async for event in made[n].asubscribe():
            found.append(event.type)
            if event.type == "wait_started" and n % 2:
                break  # goes away
            if event.type == "wait_started":
                await made[n].asend_event("approval", n)
        return found

    async def all_of_them() -> list[list[str]]:
        found = await asyncio.gather(*[follow(n) for n in range(20)])
        gc.collect()
        return found

    found = asyncio.run(all_of_them())
    assert {f[-1] for f in found[::2]} == {"workflow_completed"}
    assert {f[-1] for f in found[1::2]} == {"wait_started"}
    followers = live.client.followers
    assert followers._followed() == []
    assert [t.name for t in threading.enumerate()].count("orchestrator-followers") == 1


def test_a_cancelled_wait_loses_nothing(live: Site) -> None:
    """API §3: ``asyncio.wait_for`` around one event may give up; the subscription goes on where it was."""
    flow = live.workflow(approved, name="subscribe_cancelled")
    instance = flow.create()

    async def follow() -> list[str]:
        subscription = instance.asubscribe()
        found = [(await anext(subscription)).type]
        for _ in range(3):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(anext(subscription), 0.05)
        live.worker(chef=True)
        async for event in subscription:
            found.append(event.type)
            if event.type == "wait_started":
                await instance.asend_event("approval")
        return found

    found = asyncio.run(follow())
    assert found == types(list(instance.subscribe()))


def test_closing_tells_who_follows(site: Site) -> None:
    """ADR 10, for subscriptions: ``close()`` ends them with an error that says so; the instance goes on."""
    instance = site.workflow(approved, name="subscribe_closed").create()
    failed: list[BaseException] = []

    def follow(subscription: Any) -> None:
        try:
            list(subscription)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=follow, args=(instance.subscribe(),), daemon=True)
    thread.start()
    eventually(lambda: site.client._followers is not None and site.client.followers._followed())
    site.client.close()
    thread.join(10)
    assert isinstance(failed[0], ServiceUnavailable) and "closed" in str(failed[0])


@pytest.mark.slow
def test_workers_that_die_and_come_interrupt_no_subscription(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Semantics §7, live, with Celery workers as processes: one is killed in the middle, another goes on; who follows
    is told everything once, as it is told afterwards."""
    monkeypatch.setattr(flows, "PREFIX", settings.account)
    told: list[LifecycleEvent] = []
    started: list[Process] = []

    def start() -> None:
        started.append(Process(settings, tmp_path, ORCHESTRATOR_LEASE="2"))

    try:
        start()
        with Orchestrator(settings) as client:
            instance = flows.busy.create(30, orchestrator=client)
            for event in instance.subscribe():
                told.append(event)
                if types(told).count("step_completed") == 5 and len(started) == 1:
                    started[0].process.kill()
                    start()
            assert types(told)[-1] == "workflow_completed"
            assert types(told).count("step_completed") == 30
            assert told == list(instance.subscribe())
    finally:
        for each in started:
            each.process.kill()
            each.process.wait()
            print(each.log.read_text(errors="replace")[-3000:])


def test_pages_hold_a_bounded_part_and_all_of_them_everything(site: Site) -> None:
    """Semantics §7: a long history is read in pages, of one fact even, and comes to the same events."""

    def sometimes(ctx: Any) -> str:
        if ctx.attempt < 3:
            raise ConnectionError("flaky")
        return "x" * 2000

    async def flow(event, step):
        for _ in range(5):
            await step.do("s", sometimes, retries=Retries(limit=3, delay=0), rollback=lambda r: None)
        await asyncio.gather(*[step.do(f"p{n}", lambda: "y") for n in range(10)])
        raise ValueError("over")

    workflow = site.workflow(flow, name="subscribe_pages")
    site.worker()
    instance = workflow.create()
    told = list(instance.subscribe())
    assert len(told) > 100
    uuid = instance._uuid()
    for facts, size in ((1, 10**9), (7, 10**9), (10**9, 3000)):
        paged, cursor, pages = [], -1, 0
        while True:
            with site.engine.begin() as connection:
                page = lifecycle.page(connection, uuid, (cursor + 1) // 8, facts, size)
            assert page is not None
            pages += 1
            paged += events(page.record, cursor, page.until)
            if page.until is None:
                break
            cursor = 8 * page.until + 7
        assert paged == told
        assert pages > 5


def test_a_slow_consumer_holds_one_page(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """API §3: what comes while a consumer is busy stays in Postgres; it is read by the cursor when it is wanted."""
    monkeypatch.setattr(lifecycle.page, "__defaults__", (4, lifecycle.BYTES))

    async def flow(event, step):
        for _ in range(30):
            await step.do("s", lambda: 1)

    workflow = site.workflow(flow, name="subscribe_slow")
    site.worker()
    instance = workflow.create()
    subscription = instance.subscribe()
    found = [next(subscription)]
    instance.result(30)
    most = 0
    for event in subscription:
        found.append(event)
        most = max(most, len(subscription._ready))
    assert most <= 16, "four facts give four events each at most"
    assert types(found).count("step_completed") == 30


def test_who_follows_while_the_thread_ends_is_heard(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Semantics §7: a thread without followers ends with its own subscription, not with that of its successor."""
    monkeypatch.setattr(followers, "IDLE_S", 0.0)
    monkeypatch.setattr(followers, "POLL_S", 0.05)
    makers: list[threading.Thread] = []
    stock = News.subscribe

    def subscribe(self: News, **options: Any) -> Any:
        makers.append(threading.current_thread())
        return stock(self, **options)

    monkeypatch.setattr(News, "subscribe", subscribe)
    late = followers.Follower(str(new_id(0.0)), 0, lambda: None)

    class Interrupted(followers.Followers):
        def _is_over(self) -> bool:
            is_over = super()._is_over()
            if is_over and threading.current_thread() is makers[0]:
                self.add(late)
                eventually(lambda: len(makers) > 1, "the successor listens")
            return is_over

    news = News(site.settings)
    table = Interrupted(news, lambda instances: dict.fromkeys(instances, 0))
    table.add(followers.Follower("gone at once", 0, lambda: None))  # held by nobody
    eventually(lambda: makers and not makers[0].is_alive(), "the first thread has ended")
    eventually(lambda: table._subscription, "the second one is subscribed")
    assert len(makers) == 2
    late.check()
    table.close()
    news.close()

"""One attempt: arguments, context, threads, time-outs, cancellation, delay functions, values and errors."""

import asyncio
import functools
import threading
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import pytest

from orchestrator import (
    NonRetryableError,
    PayloadTooLarge,
    Retries,
    RetryDelayError,
    SerializationError,
    StepFailed,
)
from orchestrator.engine.running import attempts
from orchestrator.errors import Cancelled, StepTimeout
from orchestrator.workflow.loop import inside_workflow
from tests.integration.harness import Site, eventually

pytestmark = pytest.mark.integration

ONCE = Retries(limit=0)
AGAIN = Retries(limit=2, delay=0)


class Stage:
    """What bodies tell, and what they wait for."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.go = threading.Event()

    def say(self, *what: Any) -> None:
        self.said.append(what[0] if len(what) == 1 else what)

    async def until_go(self) -> None:
        while not self.go.is_set():
            await asyncio.sleep(0.01)


@pytest.fixture
def stage() -> Any:
    one = Stage()
    yield one
    one.go.set()


# -- arguments ---------------------------------------------------------------------------------------------


class Callable:
    def __call__(self, a, ctx, b):
        return [a, ctx.name, b]


def first(ctx, a, b):
    return [a, ctx.name, b]


def middle(a, ctx, b):
    return [a, ctx.name, b]


def last(a, b, ctx):
    return [a, ctx.name, b]


def keyword(a, b, *, ctx):
    return [a, ctx.name, b]


def with_default(a, b=5, ctx=None):
    return [a, ctx.name, b]


def test_ctx_stands_anywhere(site: Site) -> None:
    """protocols §17: ``*args`` fill the parameters other than ``ctx``, in order; no signature, no ctx."""

    async def flow(event, step):
        some = [first, middle, last, keyword, with_default, Callable(), functools.partial(first)]
        got = [await step.do("s", fn, 1, 2) for fn in some]
        assert got == [[1, "s", 2]] * len(some), got
        assert await step.do("s", with_default, 1) == [1, "s", 5]
        return await step.do("max", max, 3, 4), await step.do("plain", lambda *a: list(a), 1, 2)

    site.worker()
    assert site.workflow(flow).create().result(10) == [4, [1, 2]]


def test_a_body_gets_copies_on_every_attempt(site: Site, stage: Stage) -> None:
    """protocols §17: what an attempt does to its arguments is seen by nobody: not by the code, not by the next one."""

    def spoils(items, nested, ctx):
        stage.say(list(items), list(nested["x"]))
        items.append("spoilt")
        nested["x"].append("spoilt")
        if ctx.attempt < 2:
            raise ConnectionError

    async def flow(event, step):
        items, nested = [1], {"x": [2]}
        started = step.do("s", spoils, items, nested, retries=AGAIN)
        items.append("later")
        await started
        return items, nested

    site.worker()
    assert site.workflow(flow).create().result(10) == [[1, "later"], {"x": [2]}]
    assert stage.said == [([1], [2])] * 2


def test_an_awaitable_result_is_awaited(site: Site, stage: Stage) -> None:
    """protocols §17: for bodies, handlers and delay functions alike."""

    async def value(it):
        await asyncio.sleep(0)
        return it

    async def undo(r):
        stage.say("undo", r.output, list(r.args), r.error.name)

    async def flow(event, step):
        x = await step.do("s", lambda v: value(v), 5, rollback=lambda r: undo(r))
        delay = Retries(limit=1, delay=lambda ctx, error: value(0))
        y = await step.do("t", lambda ctx: value(ctx.attempt) if ctx.attempt == 2 else 1 / 0, retries=delay)
        raise LookupError(f"{x} {y}")

    site.worker()
    created = site.workflow(flow).create()
    eventually(lambda: created.status().status == "errored")
    assert created.status().error.message == "5 2"
    assert stage.said == [("undo", 5, [5], "LookupError")]


var: ContextVar[str] = ContextVar("var", default="nothing")


def test_bodies_run_in_contexts_of_their_own(site: Site) -> None:
    """protocols §19: sync bodies run in a copied context; what one sets the next does not see, and no body is
    workflow code."""

    def sets():
        before = var.get()
        var.set("set")
        return [before, inside_workflow(), threading.current_thread().name.startswith("orchestrator-body")]

    async def flow(event, step):
        return [await step.do("s", sets) for _ in range(3)]

    site.worker(threads=1)
    assert site.workflow(flow).create().result(10) == [["nothing", False, True]] * 3


# -- threads -----------------------------------------------------------------------------------------------


def test_sync_bodies_are_bounded_by_the_threads(site: Site, stage: Stage) -> None:
    """protocols §19: no more sync bodies at once than there are threads; the others wait their turn."""
    lock, inside, peak = threading.Lock(), [0], [0]

    def busy():
        with lock:
            inside[0] += 1
            peak[0] = max(peak[0], inside[0])
        stage.go.wait(10)
        with lock:
            inside[0] -= 1

    async def flow(event, step):
        await asyncio.gather(*[step.do("s", busy) for _ in range(6)])

    worker = site.worker(threads=2)
    created = site.workflow(flow).create()
    eventually(lambda: inside[0] == 2 and worker.runtime.attempts.active == 6)
    stage.go.set()
    created.result(10)
    assert peak == [2]


def test_waiting_for_a_thread_is_not_part_of_the_time_out(site: Site, stage: Stage) -> None:
    """protocols §19: the clock of an attempt starts when its body does."""

    def busy(ctx):
        stage.say(ctx.attempt)
        threading.Event().wait(0.4)

    async def flow(event, step):
        await asyncio.gather(*[step.do("s", busy, timeout=1, retries=ONCE) for _ in range(5)])

    site.worker(threads=1)
    site.workflow(flow).create().result(15)
    assert stage.said == [1] * 5


# -- time-outs ---------------------------------------------------------------------------------------------


def test_an_async_body_is_cancelled_at_its_time_out(site: Site, stage: Stage) -> None:
    """protocols §14: ``timeout`` is per attempt; the late result is discarded, the retry does not wait."""

    async def slow(ctx):
        if ctx.attempt == 2:
            return "second"
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            stage.say("cancelled", ctx.cancelled.is_set())
            await stage.until_go()  # refuses to end
            return "first"

    async def flow(event, step):
        return await step.do("s", slow, timeout=0.3, retries=AGAIN)

    site.worker()
    created = site.workflow(flow).create()
    assert created.result(10) == "second"
    assert stage.said == [("cancelled", True)]
    (record,) = created.steps()
    assert [a.error.name if a.error else None for a in record.attempts] == ["StepTimeout", None]


def test_a_sync_body_is_told_at_its_time_out(site: Site, stage: Stage) -> None:
    """semantics §2.3: a thread cannot be stopped: ``ctx.cancelled`` tells it, the retry does not wait for it."""

    def slow(ctx):
        if ctx.attempt == 2:
            return "second"
        stage.say(ctx.cancelled.wait(10))
        stage.go.wait(10)
        return "first"

    async def flow(event, step):
        return await step.do("s", slow, timeout=0.3, retries=AGAIN)

    site.worker()
    created = site.workflow(flow).create()
    assert created.result(10) == "second"
    assert stage.said == [True]
    stage.go.set()
    assert created.status().output == "second"


def test_the_last_time_out_reaches_the_code(site: Site) -> None:
    """semantics §2.2: without retries left the workflow sees ``StepTimeout``."""

    async def flow(event, step):
        try:
            await step.do("s", asyncio.sleep, 60, timeout=0.2, retries=ONCE)
        except StepTimeout as error:
            return str(error)

    site.worker()
    assert "0.2 seconds" in site.workflow(flow).create().result(10)


def test_a_time_out_error_of_the_body_is_its_own(site: Site) -> None:
    """semantics §2.3: a ``TimeoutError`` that the body raises is no ``StepTimeout``."""

    async def impatient():
        raise TimeoutError("the bank did not answer")

    async def flow(event, step):
        try:
            await step.do("s", impatient, retries=ONCE)
        except TimeoutError as error:
            return [type(error).__name__, str(error)]

    site.worker()
    assert site.workflow(flow).create().result(10) == ["TimeoutError", "the bank did not answer"]


# -- cancellation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["code", "terminate"])
def test_a_cancelled_body_is_told_wherever_it_runs(site: Site, stage: Stage, how: str) -> None:
    """protocols §13: the body of a cancelled step is cancelled, or told, within two seconds, also on another worker."""

    async def asynchronous():
        stage.say("began")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            stage.say("cancelled")
            raise

    def synchronous(ctx):
        stage.say("began")
        stage.say("told" if ctx.cancelled.wait(15) else "forgotten")

    async def flow(event, step):
        running = [step.do("a", asynchronous), step.do("s", synchronous)]
        await step.wait_for_event("go", type="go")
        for each in running:
            each.cancel()
        await step.wait_for_event("end", type="end")

    flows = site.workflow(flow)
    coordinates, runs = site.worker(deliver=False), site.worker(deliver=False)
    created = flows.create()
    instance = site.id_of(created.id)
    coordinates.runtime.coordinate([instance])
    for handout in eventually(lambda: len(site.post.handouts) == 2 and site.post.handouts):
        runs.run(handout)
    eventually(lambda: stage.said == ["began"] * 2)
    if how == "code":
        created.send_event("go")
        coordinates.runtime.coordinate([instance])
    else:
        created.terminate()
    eventually(lambda: len(stage.said) == 4, "being told", 4)
    assert sorted(stage.said[2:]) == ["cancelled", "told"]
    if how == "code":
        eventually(lambda: [s.status for s in created.steps()][:2] == ["cancelled"] * 2)
        created.send_event("end")
        coordinates.runtime.coordinate([instance])
        created.result(10)
    eventually(lambda: runs.runtime.attempts.active == 0, "the end of what was told")


def test_a_body_that_cleans_up_is_not_cancelled_twice(site: Site, stage: Stage) -> None:
    """protocols §13: a body is told once; the worker that asks every second does not cut its ``finally:`` short."""

    async def careful():
        stage.say("began")
        try:
            await asyncio.sleep(60)
        finally:
            for _ in range(25):
                await asyncio.sleep(0.1)
            stage.say("clean")

    async def flow(event, step):
        running = step.do("a", careful)
        await step.wait_for_event("go", type="go")
        running.cancel()

    site.worker()
    created = site.workflow(flow).create()
    eventually(lambda: stage.said)
    created.send_event("go")
    created.result(10)
    eventually(lambda: stage.said == ["began", "clean"], "the whole clean-up", 6)


def test_terminating_the_task_fails_the_attempt(site: Site, stage: Stage) -> None:
    """protocols §19: Flower's Terminate cancels the body; that is a failed attempt, and it is retried."""

    async def slow(ctx):
        stage.say(ctx.attempt)
        if ctx.attempt == 1:
            await asyncio.sleep(60)
        return ctx.attempt

    async def flow(event, step):
        return await step.do("s", slow, retries=AGAIN)

    flows, worker = site.workflow(flow), site.worker(deliver=False)
    created = flows.create()
    worker.runtime.coordinate([site.id_of(created.id)])
    task = worker.run(eventually(site.post.take)[0])
    eventually(lambda: stage.said)
    site.post.targets.append(worker)
    task.cancel()
    assert created.result(10) == 2
    (record,) = created.steps()
    assert [a.error.name if a.error else None for a in record.attempts] == ["Cancelled", None]


def test_terminating_the_task_while_it_claims_loses_nothing(site: Site) -> None:
    """protocols §5: a claim whose task was cancelled meanwhile is not left running with nobody in it."""

    async def flow(event, step):
        return await step.do("s", lambda: "ran", retries=AGAIN)

    flows, worker = site.workflow(flow), site.worker(deliver=False, chef=True)
    created = flows.create()
    instance = site.id_of(created.id)
    worker.runtime.coordinate([instance])
    handout = eventually(site.post.take)[0]
    with site.engine.begin() as holder:
        holder.exec_driver_sql(
            "SELECT 1 FROM orchestrator_steps WHERE instance_id = %(id)s FOR UPDATE", {"id": instance}
        )
        task = worker.run(handout)
        eventually(lambda: worker.runtime.attempts.active)
        site.post.targets.append(worker)
        task.cancel()
        eventually(task.done)
    assert created.result(10) == "ran"


# -- delay functions ---------------------------------------------------------------------------------------


def failing(ctx):
    if ctx.attempt < 3:
        raise ConnectionError(f"down {ctx.attempt}")
    return ctx.attempt


def test_a_delay_function_says_the_delay(site: Site, stage: Stage) -> None:
    """semantics §2.4: it gets the context and the error; the back-off multiplies what it returned."""

    def delay(ctx, error):
        stage.say(ctx.attempt, str(error))
        return 0.02

    async def flow(event, step):
        return await step.do("s", failing, retries=Retries(limit=3, delay=delay, backoff="linear"))

    site.worker()
    created = site.workflow(flow).create()
    assert created.result(10) == 3
    assert stage.said == [(1, "down 1"), (2, "down 2")]
    (record,) = created.steps()
    assert [a.retry_delay for a in record.attempts] == [0.02, 0.04, None]


def throws(ctx, error):
    raise KeyError("x")


def never(ctx, error):
    threading.Event().wait(3)


async def never_async(ctx, error):
    await asyncio.sleep(60)


@pytest.mark.parametrize(
    "delay",
    [throws, never, never_async, lambda c, e: "soon", lambda c, e: -1, lambda c, e: float("nan"), lambda: 1],
)
def test_a_delay_function_that_fails_ends_the_step(
    site: Site, monkeypatch: pytest.MonkeyPatch, delay: Any
) -> None:
    """semantics §2.4: throwing, too slow or invalid means ``RetryDelayError``, without a retry."""
    assert attempts.DELAY_FUNCTION_S == 5.0
    monkeypatch.setattr(attempts, "DELAY_FUNCTION_S", 0.3)

    async def flow(event, step):
        try:
            await step.do("s", failing, retries=Retries(limit=3, delay=delay))
        except RetryDelayError as error:
            return str(error)

    site.worker()
    created = site.workflow(flow).create()
    said = created.result(10)
    assert "delay function" in said
    assert ("no answer within 0.3 seconds" in said) == (delay in (never, never_async))
    (record,) = created.steps()
    assert (record.status, len(record.attempts)) == ("failed", 1)


def test_delay_functions_do_not_wait_for_bodies(
    site: Site, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """semantics §2.4: a worker full of sync bodies still asks a delay function in time."""
    monkeypatch.setattr(attempts, "DELAY_FUNCTION_S", 1.0)

    async def fails(ctx):
        return failing(ctx)

    async def flow(event, step):
        busy = step.do("busy", stage.go.wait, 10)
        got = await step.do("s", fails, retries=Retries(limit=3, delay=lambda c, e: 0))
        stage.go.set()
        await busy
        return got

    site.worker(threads=1)
    assert site.workflow(flow).create().result(10) == 3


# -- values and errors -------------------------------------------------------------------------------------


@dataclass
class Money:
    amount: int


def says_int() -> int:
    return "many"  # type: ignore[return-value]


def says_money() -> Money:
    return {"amount": "7"}  # type: ignore[return-value]


@pytest.mark.parametrize(
    "fn, error",
    [
        (object, SerializationError),
        (lambda: float("nan"), SerializationError),
        (lambda: {1: float("inf")}, SerializationError),
        (lambda: "x" * 1_100_000, PayloadTooLarge),
        (says_int, SerializationError),
    ],
    ids=["object", "nan", "inf", "large", "annotation"],
)
def test_a_value_that_cannot_be_stored_fails_the_step(site: Site, fn: Any, error: type[Exception]) -> None:
    """protocols §17: a value that cannot be stored, or does not fit the annotation, when it is first recorded fails the
    step without a retry; the code may catch that. The error names the step."""

    async def flow(event, step):
        try:
            await step.do("s", fn, retries=AGAIN)
        except error as caught:
            return type(caught).__name__

    site.worker()
    created = site.workflow(flow).create()
    assert created.result(10) == error.__name__
    (record,) = created.steps()
    assert (record.status, len(record.attempts)) == ("failed", 1)
    assert record.error.message.startswith("the result of step 'do:s:1' ")


def test_a_value_comes_back_in_its_annotation(site: Site) -> None:
    """semantics §1.5: the code sees the recorded value, validated into the annotation, live as on a replay."""

    async def flow(event, step):
        money = await step.do("s", says_money)
        assert money == Money(7), money
        listed = await step.do("t", lambda: (1, 2))
        return money.amount, listed

    site.worker()
    assert site.workflow(flow).create().result(10) == [7, [1, 2]]


class Declined(Exception):
    """An error of the workflow's module: it comes back as its class."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)


def raiser(error: BaseException) -> Any:
    def raises():
        raise error

    return raises


def test_errors_come_back_as_their_class(site: Site) -> None:
    """protocols §17: builtins, ours and reachable classes are revived, without ``__init__``; all else is StepFailed."""

    class Hidden(Exception):
        pass

    errors: dict[str, BaseException] = {
        "builtin": ValueError("v"),
        "key": KeyError("k"),
        "os": FileNotFoundError(2, "gone"),
        "own": Declined(5, "no funds"),
        "hidden": Hidden("h"),
        "final": NonRetryableError("stop"),
        "stop": StopIteration("s"),
        "exit": SystemExit(3),
        "keyboard": KeyboardInterrupt("c"),
    }
    hidden = [raiser(each) for each in errors.values()]

    def wrapped(number: int) -> Any:
        return hidden[number]()

    async def flow(event, step):
        got = []
        for number in range(len(hidden)):
            try:
                await step.do("s", wrapped, number, retries=ONCE)
            except Exception as error:
                name = error.name if isinstance(error, StepFailed) else ""
                got.append([type(error).__name__, name, [str(a) for a in error.args]])
        return got

    site.worker()
    got = site.workflow(flow).create().result(10)
    assert got == [
        ["ValueError", "", ["v"]],
        ["KeyError", "", ["k"]],
        ["FileNotFoundError", "", ["2", "gone"]],
        ["Declined", "", ["5", "no funds"]],
        ["StepFailed", "Hidden", ["Hidden", "h"]],
        ["NonRetryableError", "", ["stop"]],
        ["StepFailed", "RuntimeError", got[6][2]]
        if got[6][0] == "StepFailed"
        else ["RuntimeError", "", got[6][2]],
        ["StepFailed", "SystemExit", ["SystemExit", "3"]],
        ["StepFailed", "KeyboardInterrupt", ["KeyboardInterrupt", "c"]],
    ]


def test_a_body_cannot_end_its_worker(site: Site) -> None:
    """protocols §17: whatever an async body raises, ``SystemExit`` included, ends its attempt and nothing else."""

    async def leaves(kind):
        raise {"exit": SystemExit, "keyboard": KeyboardInterrupt, "generator": GeneratorExit}[kind]("x")

    async def flow(event, step):
        got = []
        for kind in ("exit", "keyboard", "generator"):
            try:
                await step.do("s", leaves, kind, retries=ONCE)
            except StepFailed as error:
                got.append(error.name)
        return got

    site.worker()
    created = site.workflow(flow).create()
    assert created.result(10) == ["SystemExit", "KeyboardInterrupt", "GeneratorExit"]


def test_what_ends_retries_is_not_retried(site: Site) -> None:
    """semantics §1.4: ``NonRetryableError`` fails the step at once, whatever the limit."""

    async def flow(event, step):
        try:
            await step.do("s", raiser(NonRetryableError("no")), retries=AGAIN)
        except NonRetryableError as error:
            return str(error)

    site.worker()
    created = site.workflow(flow).create()
    assert created.result(10) == "no"
    assert len(created.steps()[0].attempts) == 1


# -- failing with work in flight ---------------------------------------------------------------------------


def test_compensation_waits_for_bodies_in_flight(site: Site, stage: Stage) -> None:
    """protocols §14: a workflow that fails first cancels what runs and waits until it has ended; what a body still
    returns is its output, for its handler only."""

    def charge(ctx):
        stage.say("charging")
        ctx.cancelled.wait(10)
        stage.go.wait(10)
        stage.say("charged")
        return "receipt"

    async def reserve():
        stage.say("reserving")
        await asyncio.sleep(60)

    def undo(r):
        stage.say("undo", r.step.name, r.output, r.has_output)

    async def flow(event, step):
        running = [step.do("charge", charge, rollback=undo), step.do("reserve", reserve, rollback=undo)]
        await step.wait_for_event("go", type="go")
        assert running
        raise ValueError("too late")

    site.worker()
    created = site.workflow(flow).create()
    eventually(lambda: len(stage.said) == 2)
    created.send_event("go")
    eventually(lambda: [s.status for s in created.steps()][1] == "cancelled")
    assert not [said for said in stage.said if said[0] == "undo"]
    stage.go.set()
    eventually(lambda: created.status().status == "errored")
    assert stage.said[2:] == [
        "charged",
        ("undo", "reserve", None, False),
        ("undo", "charge", "receipt", True),
    ]
    status = created.status()
    assert (status.error.name, status.rollback.outcome) == ("ValueError", "complete")


def test_a_cancelled_steps_error_is_named(site: Site) -> None:
    """protocols §11: a cancelled step is recorded as such; awaiting it raises ``CancelledError`` in the code."""

    async def flow(event, step):
        running = step.do("s", asyncio.sleep, 60)
        await step.sleep("a moment", 0.2)
        running.cancel()
        try:
            await running
        except asyncio.CancelledError:
            return "cancelled"

    assert issubclass(Cancelled, Exception)
    site.worker()
    created = site.workflow(flow).create()
    assert created.result(10) == "cancelled"
    eventually(lambda: created.steps()[0].status == "cancelled")


# -- many at once ------------------------------------------------------------------------------------------


def test_each_of_many_bodies_is_asked_about_in_its_turn(
    site: Site, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """semantics §4: bodies of what was terminated are cancelled, also where there are more than are asked about at
    once."""
    monkeypatch.setattr(attempts, "AT_ONCE", 1)

    async def body(ctx):
        stage.say(ctx.instance_id)
        try:
            await stage.until_go()
        except asyncio.CancelledError:
            stage.say(f"{ctx.instance_id} cancelled")
            raise

    async def attempt_in_turn(event, step):
        await step.do("body", body)

    flow = site.workflow(attempt_in_turn)
    site.worker()
    for name in ("a", "b", "c"):
        flow.create(id=name)
    eventually(lambda: {"a", "b", "c"} <= set(stage.said), "three bodies")
    for name in ("a", "c"):
        flow.get(name).terminate()
    eventually(lambda: {"a cancelled", "c cancelled"} <= set(stage.said), "the end of two of them")
    assert "b cancelled" not in stage.said

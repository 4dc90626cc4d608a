"""What ``python -m bench`` can run, by name, and in which sizes.

Owns: names, sizes, and which workers a workload gets. Does not own: the workloads.
"""

from __future__ import annotations

import random
import statistics
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from bench import scale, wakeups
from bench.cluster import Cluster
from bench.creation import creation
from bench.figures import Figures, repeated
from bench.flows import five_echoes
from bench.workloads import awaiting, lone, parallel, rollback, saga, sequence, throughput, warm_up

ROOM = 1000
"""Of the worker's own default."""
OUTSTANDING_B = 20_000_000
"""Bytes of params that wait at once."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything: instances, unless it says otherwise."""

    lone: int = 50
    w1: int = 2000
    w2_steps: int = 1000
    w3_steps: tuple[int, ...] = (500, 5000)
    w4: tuple[int, ...] = (2000, 10_000)
    creates: int = 500
    batch: int = 10_000
    events: int = 2500
    rate: float = 500.0
    """Events and wake-ups per second."""
    rollbacks: int = 500
    sagas: int = 1000
    payloads: tuple[tuple[int, int], ...] = ((100, 400), (10_000, 400), (100_000, 100), (1_000_000, 20))
    """Bytes, and instances."""
    options: int = 600
    rounds: int = 2
    """Of everything that is interleaved, and of sleeps."""
    workers: tuple[int, ...] = (1, 2, 4)
    lengths: tuple[int, ...] = (10, 100, 1000, 5000, 10_000, 25_000)
    widths: tuple[int, ...] = (10, 100, 500, 1000, 5000)
    crowds: tuple[int, ...] = (2000, 10_000, 50_000)
    past: tuple[int, ...] = (1000, 10_000, 100_000, 1_000_000)

    def times(self, factor: float) -> Sizes:
        """The same workloads with ``factor`` times as much, at least one of each; counts of workers and rounds stay."""
        kept = ("payloads", "workers", "rounds")
        changed: dict[str, Any] = {
            f.name: _times(getattr(self, f.name), factor) for f in fields(self) if f.name not in kept
        }
        payloads = tuple((size, max(1, round(count * factor))) for size, count in self.payloads)
        return replace(self, **changed, payloads=payloads)


QUICK = Sizes(
    lone=10, w1=400, w2_steps=300, w3_steps=(300,), w4=(500,), creates=50, batch=1000, events=100, rate=100.0,
    rollbacks=100, sagas=200, payloads=((100, 100), (10_000, 100), (100_000, 20), (1_000_000, 4)), options=200,
    rounds=1, workers=(1, 2), lengths=(10, 100, 300), widths=(10, 100), crowds=(500,), past=(1000,),
)  # fmt: skip


@dataclass
class Session:
    """One run of the bench: where, how much, how often, and who is told."""

    cluster: Cluster
    sizes: Sizes
    repeat: int
    say: Callable[[str], None]

    def staff(
        self, count: int, environment: Mapping[str, str] | None = None, arguments: Sequence[str] = ()
    ) -> Cluster:
        """The cluster with ``count`` such workers, warm."""
        if self.cluster.staff(count, environment, arguments):
            warm_up(self.cluster, 10 * count)
        return self.cluster

    def roomy(self, count: int, instances: int) -> Cluster:
        """The cluster with ``count`` workers, each of which can hold all of so many running instances."""
        room = {"ORCHESTRATOR_CONCURRENCY": str(max(ROOM, instances)),
                "ORCHESTRATOR_CACHED_REPLAYS": str(max(20 * ROOM, instances + ROOM))}  # fmt: skip
        return self.staff(count, room)

    def median(self, run: Callable[[], Figures], key: str = "steps_per_s") -> Figures:
        return repeated(run, self.repeat, key)


Measured = Iterator[tuple[str, Figures]]
"""Names and figures, as they come."""
Suite = Callable[[Session], Measured]


def lone_instance(session: Session) -> Measured:
    for count in (1, 2):
        made = session.staff(count)
        name = f"lone, {scale.crew(count)}"
        yield name, session.median(partial(lone, made, session.sizes.lone), "p50_ms")


def w1(session: Session) -> Measured:
    return scale.workers(session.cluster, (1, 2), session.sizes.w1, session.repeat)


def w2(session: Session) -> Measured:
    made, steps = session.staff(1), session.sizes.w2_steps
    yield f"W2, {steps:,} steps", session.median(partial(sequence, made, steps))


def w3(session: Session) -> Measured:
    made = session.staff(2)
    for steps in session.sizes.w3_steps:
        yield f"W3, {steps:,} parallel", session.median(partial(parallel, made, steps))


def w4(session: Session) -> Measured:
    return _crowds(session, session.sizes.w4)


def create(session: Session) -> Measured:
    yield from creation(session.cluster, session.sizes.creates, session.sizes.batch).items()


def events(session: Session) -> Measured:
    """At a fifth of the rate, and at the rate."""
    sizes, made = session.sizes, session.staff(1)
    for rate, count in ((sizes.rate / 5, max(1, sizes.events // 5)), (sizes.rate, sizes.events)):
        yield f"events, {rate:g}/s", session.median(partial(wakeups.events, made, count, rate), "p99_ms")


def sleeps(session: Session) -> Measured:
    sizes, made = session.sizes, session.staff(1)
    run = partial(wakeups.sleeps, made, sizes.rate, sizes.rounds)
    yield f"sleeps, {sizes.rate:g}/s", session.median(run, "p99_ms")


def undoing(session: Session) -> Measured:
    made = session.staff(1)
    yield "rollback", session.median(partial(rollback, made, session.sizes.rollbacks))


def sagas(session: Session) -> Measured:
    made = session.roomy(1, session.sizes.sagas)
    yield "saga", session.median(partial(saga, made, session.sizes.sagas), "handlers_per_s")


def payloads(session: Session) -> Measured:
    """W1 whose params and outputs are text that does not compress well."""
    made = session.staff(1)
    for size, instances in session.sizes.payloads:
        text = "".join(random.Random(size).choices(string.ascii_letters + string.digits, k=size))
        outstanding = min(1000, OUTSTANDING_B // size)
        run = partial(throughput, made, instances, workflow=five_echoes, params=text, outstanding=outstanding)
        yield f"W1, {size:,} B", session.median(run) | {"series": "payload", "x": size}


def options(session: Session) -> Measured:
    """W1 on workers with task events, and with every step sent through the broker, beside neither; by turns."""
    kinds: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
        "W1, as it comes": ({}, ()),
        "W1, task events": ({}, ("-E",)),
        "W1, by broker": ({"ORCHESTRATOR_DELIVERY": "broker"}, ()),
    }
    runs: dict[str, list[Figures]] = {name: [] for name in kinds}
    for _ in range(session.sizes.rounds):
        for name, (environment, arguments) in kinds.items():
            made = session.staff(1, environment, arguments)
            runs[name].append(throughput(made, session.sizes.options))
    speeds = {name: [f["steps_per_s"] for f in some] for name, some in runs.items()}
    plain = statistics.median(speeds["W1, as it comes"])
    for name, some in runs.items():
        ratio = statistics.median(speeds[name]) / plain
        middle = sorted(some, key=lambda one: float(one["steps_per_s"]))[len(some) // 2]
        yield name, middle | {"all_steps_per_s": speeds[name], "ratio": ratio}


def scale_workers(session: Session) -> Measured:
    return scale.workers(session.cluster, session.sizes.workers, session.sizes.w1, session.repeat)


def scale_steps(session: Session) -> Measured:
    return scale.lengths(session.staff(1), session.sizes.lengths, session.repeat)


def scale_parallel(session: Session) -> Measured:
    return scale.widths(session.staff(2), session.sizes.widths, session.repeat)


def scale_awaiting(session: Session) -> Measured:
    return _crowds(session, session.sizes.crowds)


def scale_past(session: Session) -> Measured:
    session.cluster.staff(0)
    return scale.past(session.sizes.past, session.sizes.w1, 2 * session.sizes.rounds, session.say)


def _crowds(session: Session, sizes: Sequence[int]) -> Measured:
    for instances in sizes:
        made = session.roomy(1, instances)
        one = awaiting(made, instances)
        yield f"W4, {instances:,} at once", one | {"series": "awaiting", "x": instances}


def _times(value: float | tuple[int, ...], factor: float) -> float | tuple[int, ...]:
    if isinstance(value, tuple):
        return tuple(max(1, round(one * factor)) for one in value)
    return max(1, round(value * factor))


DEFAULT: dict[str, Suite] = {
    "creation": create,
    "w2": w2,
    "events": events,
    "sleeps": sleeps,
    "rollback": undoing,
    "saga": sagas,
    "payloads": payloads,
    "lone": lone_instance,
    "w3": w3,
    "w1": w1,
    "options": options,
    "w4": w4,
}
"""What ``make bench`` runs, in this order, which spares starts of workers."""
SCALE: dict[str, Suite] = {
    "scale-workers": scale_workers,
    "scale-steps": scale_steps,
    "scale-parallel": scale_parallel,
    "scale-awaiting": scale_awaiting,
    "scale-past": scale_past,
}
"""Minutes each; ``--only scale`` means all of them."""


def chosen(names: Sequence[str]) -> dict[str, Suite]:
    """The suites of these names, in the order of the bench. Raises ``ValueError`` that lists what there is."""
    every = DEFAULT | SCALE
    wanted = set(names)
    for group, members in (("default", DEFAULT), ("scale", SCALE), ("all", every)):
        if group in wanted:
            wanted = wanted - {group} | set(members)
    unknown = sorted(wanted - set(every))
    if unknown or not wanted:
        known = ", ".join([*every, "default", "scale", "all"])
        raise ValueError(f"no workload is called {', '.join(unknown) or 'nothing'}; there are: {known}")
    return {name: suite for name, suite in every.items() if name in wanted}

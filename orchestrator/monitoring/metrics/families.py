"""A reading as the families of series that Prometheus scrapes.

Owns: names, labels and help texts; docs/grafana uses exactly these. Does not own: the figures. Labels are the names of
workflows and a few fixed words: there are never more series than workflows allow.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from orchestrator import telemetry
from orchestrator.client.control.limits import LimitsRecord
from orchestrator.client.control.status import WorkflowRecord
from orchestrator.monitoring.documents.figures import used
from orchestrator.monitoring.metrics.reading import Reading

PREFIX = "orchestrator_"
_STATUS = {"done": "completed", "cancelling": "cancelled"}
"""How a step ended, where its row says it in another word."""


def families(reading: Reading) -> Iterator[Metric]:
    """Everything there is to say of one reading."""
    yield from _account(reading)
    yield from _workflows(reading)
    yield from _queues(reading)
    yield from _work(reading)
    yield from _turns(reading)


def health(is_up: bool, age_s: float | None, took_s: float | None) -> Iterator[Metric]:
    """How old what is told is; always there."""
    yield _gauge("up", "Whether the last reading of Postgres succeeded, as 1 or 0.", float(is_up))
    if age_s is not None and took_s is not None:
        yield _gauge("reading_age_seconds", "For how long what is told here has been read.", age_s)
        yield _gauge("reading_seconds", "How long it took to read.", took_s)


def _account(reading: Reading) -> Iterator[Metric]:
    control = reading.control
    yield _gauge("workers", "Workers that are alive.", len(control.workers))
    if control.granting is not None:
        yield _gauge(
            "slots_granting",
            "Whether slots are granted: not while leases are rebuilt.",
            float(control.granting),
        )
    slots = sum(used(each) for each in control.workflows) if control.slots is None else control.slots
    yield _gauge("account_slots_used", "Concurrency slots that the account's instances hold.", slots)
    limit = _value(control.limits, "concurrency")
    if limit is not None:
        yield _gauge("account_slots_limit", "Instances of the account that may run at once.", limit)


def _workflows(reading: Reading) -> Iterator[Metric]:
    instances = _by("instances", "Instances by status, as they were counted last.", "workflow", "status")
    slots = _by("slots_used", "Concurrency slots that the instances of a workflow hold.", "workflow")
    limits = _by(
        "slots_limit", "Instances of a workflow that may run at once, where there is a limit.", "workflow"
    )
    rates = _by("creation_rate_limit", "Instances of a workflow that may be created per second.", "workflow")
    for each in reading.control.workflows:
        for status, number in each.counts.items():
            instances.add_metric([each.name, status.value], number)
        slots.add_metric([each.name], used(each))
        for family, name in ((limits, "concurrency"), (rates, "creation_rate")):
            value = _value(each.limits, name)
            if value is not None:
                family.add_metric([each.name], value)
    yield from (instances, slots, limits, rates)


def _queues(reading: Reading) -> Iterator[Metric]:
    ages = _by(
        "queue_age_seconds", "How long the oldest queued instance has waited; 0 without one.", "workflow"
    )
    late = _by(
        "alarm_lateness_seconds", "For how long the earliest alarm has been due; 0 if none is.", "workflow"
    )
    unowned = _by(
        "shards_unowned", "Shards of a workflow's queue that no living worker looks after.", "workflow"
    )
    for each in reading.control.workflows:
        ages.add_metric([each.name], each.queue_age)
        late.add_metric([each.name], max(0.0, reading.lateness.get(each.name, 0.0)))
        unowned.add_metric([each.name], _unowned(each))
    yield from (ages, late, unowned)


def _work(reading: Reading) -> Iterator[Metric]:
    steps = _counter("steps", "Steps and compensations that ended.", "workflow", "kind", "outcome")
    attempts = _counter("attempts", "Attempts of steps and compensations that ended.", "workflow", "outcome")
    ended = _counter("instances_ended", "Instances that a worker saw end.", "workflow", "status")
    completed: dict[str, float] = {}
    for name, value in sorted(reading.series.items()):
        what, *words = name.split(" ")
        if what == telemetry.STEP and len(words) == 3:
            workflow, kind, status = words
            steps.add_metric([workflow, kind, _STATUS.get(status, status)], value)
            if kind in ("do", "rollback") and status == "done":
                completed[workflow] = completed.get(workflow, 0) + value
        elif what == telemetry.FAILED_ATTEMPTS and words:
            attempts.add_metric([words[0], "errored"], value)
        elif what == telemetry.ENDED and len(words) == 2:
            ended.add_metric(words, value)
    for workflow, value in completed.items():
        attempts.add_metric([workflow, "completed"], value)
    yield from (steps, attempts, ended)


def _turns(reading: Reading) -> Iterator[Metric]:
    turns = _counter("turns", "Turns of instances.")
    turns.add_metric([], reading.series.get(telemetry.TURNS, 0))
    yield turns
    flushes = HistogramMetricFamily(
        PREFIX + "flush_seconds", "How long flushes took: turns of many instances, written at once."
    )
    flushes.add_metric(
        [], telemetry.buckets(dict(reading.series)), reading.series.get(telemetry.FLUSH_SUM, 0.0)
    )
    yield flushes


def _unowned(record: WorkflowRecord) -> int:
    return sum(
        each.shards - each.owned for each in record.generations if not each.is_draining or each.waiting
    )


def _value(found: LimitsRecord, name: str) -> float | None:
    return found.limits[name].value


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, about, value=value)


def _by(name: str, about: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, about, labels=labels)


def _counter(name: str, about: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(PREFIX + name, about, labels=labels)

"""Celery: the app that workers and client share. ``BENCH_BROKER_URL`` and ``BENCH_RESULT_URL`` (may be empty)."""

import os

from celery import Celery

app = Celery("bench", broker=os.environ["BENCH_BROKER_URL"], backend=os.environ["BENCH_RESULT_URL"] or None)
app.conf.update(
    task_serializer="json",
    accept_content=["json"],
    result_serializer="json",
    task_ignore_result=not os.environ["BENCH_RESULT_URL"],
    # Celery's guide to optimizing says 50 to 150 for many short tasks.
    worker_prefetch_multiplier=64,
    worker_send_task_events=False,
    broker_connection_retry_on_startup=True,
    database_short_lived_sessions=False,
)


@app.task(name="bench.noop")
def noop() -> dict[str, bool]:
    return {"ok": True}

"""A real worker process of ``pool_app``, as the tests of the pool and the transport see it.

Owns: the process, its app from a client's side, its facts and events. Does not own: what is tested with it.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import redis
from celery import Celery
from kombu import Queue

ROOT = Path(__file__).parents[2]
PATIENCE_S = 30


class Worker:
    """One worker process, its app as a client sees it, the facts its tasks tell, and its events."""

    def __init__(
        self,
        url: str,
        *,
        facts: str = "",
        prefix: str = "",
        options: dict[str, Any] | None = None,
        queues: Sequence[str] = (),
        before: Callable[["Worker"], None] = lambda worker: None,
        **environ: str,
    ) -> None:
        """``facts``: a plain URL of the same Redis, where ``url`` is another; ``before``: called before it starts."""
        self.prefix = prefix or f"pool-{uuid4().hex[:8]}"
        facts = facts or url
        self.redis = redis.Redis.from_url(facts, decode_responses=True, socket_timeout=2 * PATIENCE_S)
        self.app = Celery("client", broker=url, set_as_current=False)
        self.app.conf.update(
            broker_transport_options=options or {},
            task_default_queue=self.prefix,
            task_queues=[Queue(self.prefix)],
            control_exchange=f"{self.prefix}-control",
            event_exchange=f"{self.prefix}-events",
        )
        self.events: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._listening = threading.Event()
        self._ended = False
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        assert self._listening.wait(PATIENCE_S)
        argv = [sys.executable, "-m", "celery", "-A", "tests.integration.pool_app", "worker"]
        self.name = f"{uuid4().hex[:8]}@test"
        argv += ["--without-mingle", "--without-gossip", "-l", "INFO", "-n", self.name]
        argv += ["-Q", ",".join(queues)] if queues else []
        env = {**os.environ, "POOL_APP_BROKER": url, "POOL_APP_PREFIX": self.prefix, "POOL_APP_FACTS": facts}
        env |= {"POOL_APP_OPTIONS": json.dumps(options or {}), **environ}
        before(self)
        self.process = subprocess.Popen(
            argv, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.online()
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.log.extend(self.process.stdout)

    def _listen(self) -> None:
        with contextlib.suppress(redis.ConnectionError), self.app.connection_for_read() as connection:
            receiver = self.app.events.Receiver(connection, handlers={"*": self._on_event})
            with receiver.consumer_context() as (own_connection, *_):
                self._listening.set()
                while not self._ended:
                    try:
                        own_connection.drain_events(timeout=0.2)
                    except TimeoutError:
                        continue

    def _on_event(self, event: dict[str, Any]) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def send(self, task: str, *args: Any, **options: Any) -> str:
        return str(self.app.send_task(task, args, ignore_result=True, **options).id)

    def fact(self, name: str) -> str:
        answer = self.redis.blpop([f"{self.prefix}:{name}"], timeout=PATIENCE_S)
        assert answer is not None, f"{name} never came; the worker says:\n{''.join(self.log)}"
        return str(answer[1])

    def tell(self, name: str) -> None:
        self.redis.rpush(f"{self.prefix}:{name}", "1")

    def event(self, type: str, uuid: str | None = None) -> dict[str, Any]:
        def found() -> dict[str, Any] | None:
            wanted = (e for e in self.events if e["type"] == type and uuid in (None, e.get("uuid")))
            return next(wanted, None)

        with self._changed:
            seen = self._changed.wait_for(found, PATIENCE_S)
            assert seen, f"no {type}; the worker says:\n{''.join(self.log)}"
            return seen

    def online(self) -> None:
        with self._changed:
            up = self._changed.wait_for(
                lambda: any(e["type"] == "worker-online" and e["hostname"] == self.name for e in self.events),
                PATIENCE_S,
            )
            assert up, f"it did not come up; the worker says:\n{''.join(self.log)}"

    def kinds(self, uuid: str) -> list[str]:
        return [e["type"] for e in self.events if e.get("uuid") == uuid]

    def active(self) -> list[dict[str, Any]]:
        answer = self.app.control.inspect(timeout=2).active() or {}
        return [task for tasks in answer.values() for task in tasks]

    def waiting(self) -> int:
        return int(self.redis.llen(self.prefix))

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._ended = True
        self._listener.join(PATIENCE_S)
        for key in self.redis.scan_iter(f"*{self.prefix}*"):
            self.redis.delete(key)
        self.redis.close()


def eventually(check: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + patience_s
    while not check():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)

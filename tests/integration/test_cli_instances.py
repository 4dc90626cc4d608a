"""``orchestrator instances …`` on a real engine: what is shown, what is steered, what is refused.

The workflows are known to the workers alone: no command here can import their code.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from orchestrator import NonRetryableError, Retries
from orchestrator.cli import main
from orchestrator.client import orchestrator as client
from orchestrator.workflow.language.definition import Registry
from tests.integration.harness import Site, eventually

pytestmark = pytest.mark.integration
Run = Callable[..., tuple[int, str, str]]
PATIENCE_S = 60.0
"""Machines that build are slow and shared."""


@pytest.fixture
def run(site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run one ``instances`` command; returns status, stdout, stderr."""
    for name in os.environ:
        if name.startswith("ORCHESTRATOR_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(client, "_default", site.client)
    monkeypatch.delenv("COLUMNS", raising=False)  # in a pipe nothing is folded

    def command(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["instances", *arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return command


def document(answer: tuple[int, str, str], status: int = 0) -> Any:
    assert answer[0] == status, answer
    return json.loads(answer[1])


def refused(answer: tuple[int, str, str], code: str, status: int = 1) -> str:
    assert answer[0] == status, answer
    (line,) = answer[2].splitlines()
    assert line.startswith(f"{code}: ")
    return line


def at(site: Site, name: str, status: str) -> None:
    there = "SELECT 1 FROM orchestrator_instances WHERE account = :a AND name_id = :n AND status = :s"
    eventually(
        lambda: site.sql(there, a=site.settings.account, n=name, s=status), f"{name} {status}", PATIENCE_S
    )


async def cli_gate(event, step):
    """Waits for one event between two steps."""
    await step.do("before", lambda: 1)
    await step.wait_for_event("gate", type="go", timeout="1 hour")
    return await step.do("after", lambda: [2, "drei"])


def test_describe_shows_steps_attempts_and_waits(site: Site, run: Run) -> None:
    """semantics §2.8: and what is sensitive is not shown, neither to people nor as JSON."""

    def flaky(ctx):
        if ctx.attempt == 1:
            raise ValueError("not yet")
        return "s3cret"

    async def cli_shown(event, step):
        await step.do("fetch", flaky, retries=Retries(limit=1, delay=0), sensitive=True)
        nap = step.sleep("nap", "1 hour")
        await step.wait_for_event("gate", type="go", timeout="90 minutes")
        await nap

    site.worker()
    site.workflow(cli_shown).create(id="a")
    at(site, "a", "waiting")
    status, out, _ = run("describe", "cli_shown", "a")
    assert status == 0
    assert "status    waiting" in out
    assert "for an event of type go, 90 minutes at most" in out
    assert "attempt 1: ValueError: not yet; again after 0 s" in out
    assert "[REDACTED]" in out
    shown = document(run("describe", "cli_shown", "a", "--json"))
    fetch, nap, gate = shown["steps"]
    assert (fetch["output"], [a["error"] and a["error"]["message"] for a in fetch["attempts"]]) == (
        "[REDACTED]",
        ["not yet", None],
    )
    assert (nap["kind"], gate["status"], gate["config"]["type"]) == ("sleep", "waiting", "go")
    assert "s3cret" not in out + json.dumps(shown)


def test_what_strangers_wrote_gives_the_terminal_no_orders(site: Site, run: Run) -> None:
    """semantics §2.8: error texts are shown as they are, but as text: no control character, no half a surrogate pair
    (which no stream can write) gets through, and ``--json`` stays one document with the very value."""
    orders = "\x1b]0;title\x07\x1b[2J\x9b31m\r\u202e"

    def quote():
        raise NonRetryableError(f"the bank said {orders}\ud800")

    async def cli_orders(event, step):
        read = await step.do("read", lambda: {"text": orders})
        if event.payload == "return":
            return read["text"]
        await step.do("quote", quote)

    site.worker()
    flow = site.workflow(cli_orders)
    flow.create("return", id="b").result(PATIENCE_S)
    flow.create(id="a")
    at(site, "a", "errored")
    assert r"output    \u001b]0;title" in run("describe", "cli_orders", "b")[1]
    answers = [
        run("describe", "cli_orders", "a"),
        run("describe", "cli_orders", "a", "--json"),
        run("subscribe", "cli_orders", "a"),
        run("subscribe", "cli_orders", "a", "--json"),
        run("result", "cli_orders", "a"),
    ]
    for status, out, err in answers:
        (out + err).encode()
        assert not set("\x1b\x07\x9b\r\u202e") & set(out + err), (status, out, err)
        assert "the bank said" in out + err
    assert [status for status, _, _ in answers] == [0, 0, 0, 0, 1]
    assert document(answers[1])["steps"][0]["output"]["text"] == orders


def test_describe_shows_a_rollback(site: Site, run: Run) -> None:
    def fail():
        raise NonRetryableError("no money")

    async def cli_undone(event, step):
        await step.do("debit", lambda: "d-1", rollback=lambda r: None)
        await step.do("credit", fail)

    site.worker()
    site.workflow(cli_undone).create(id="a")
    at(site, "a", "errored")
    shown = document(run("describe", "cli_undone", "a", "--json"))
    assert (shown["error"]["message"], shown["rollback"]["outcome"]) == ("no money", "complete")
    assert [s["kind"] for s in shown["steps"]] == ["do", "do", "rollback"]
    out = run("describe", "cli_undone", "a")[1]
    assert "error     NonRetryableError: no money" in out
    assert 'rollback  {"outcome": "complete"' in out
    assert "no money" in refused(run("result", "cli_undone", "a"), "workflow_failed")


def test_describe_shows_what_is_waited_for(site: Site, run: Run) -> None:
    """Sleeps with their end, children with their id, and a retry that is to come."""

    async def cli_child(event, step):
        await step.wait_for_event("never", type="never")

    def fail():
        raise ValueError("down")

    child = site.workflow(cli_child)

    async def cli_parent(event, step):
        await asyncio.gather(
            step.sleep_until("later", time.time() + 86_400),
            step.sleep("nap", "2 hours"),
            step.invoke("child", child, id="c-1"),
            step.do("call", fail, retries=Retries(limit=1, delay="1 hour")),
        )

    site.worker()
    site.workflow(cli_parent).create(id="p")
    at(site, "p", "waiting")
    at(site, "c-1", "waiting")
    out = run("describe", "cli_parent", "p")[1]
    assert "for the child cli_child c-1" in out
    assert "for its next attempt" in out
    assert "again after 1 hour" in out
    document(run("describe", "cli_child", "c-1", "--json"))
    (nap,) = [
        each
        for each in document(run("describe", "cli_parent", "p", "--json"))["steps"]
        if each["name"] == "nap"
    ]
    end = datetime.fromisoformat(nap["started_at"]) + timedelta(hours=2)
    assert f"until {end.astimezone().isoformat(sep=' ', timespec='seconds')}" in out


def test_describe_shows_why_an_instance_is_blocked(site: Site, run: Run) -> None:
    """protocols §12: the reason is on the page, and the status is waiting."""

    async def cli_changed(event, step):
        await step.do("old", lambda: 1)
        await step.wait_for_event("gate", type="go")

    old = site.worker()
    site.workflow(cli_changed).create(id="a")
    at(site, "a", "waiting")
    old.close()
    site.post.targets.remove(old)

    async def other(event, step):
        await step.do("new", lambda: 1)

    registry = Registry()
    site.workflow(other, registry=registry, name="cli_changed")
    new = site.worker(registry, chef=True)  # which has registered by now, and looks at alarms
    assert new.chef is not None
    assert run("send-event", "cli_changed", "a", "--type", "go")[0] == 0
    eventually(lambda: site.row(site.id_of("a")).blocked, "a blocked", PATIENCE_S)
    out = run("describe", "cli_changed", "a")[1]
    assert "status    waiting" in out
    assert "blocked   NonDeterminismError: " in out
    assert "old" in out and "new" in out


def test_an_instance_is_steered_without_its_code(site: Site, run: Run) -> None:
    """semantics §4: pause, resume, restart, restart from a step, terminate, delete, each by one command."""
    site.worker()
    site.workflow(cli_gate).create(id="a")
    at(site, "a", "waiting")
    assert run("pause", "cli_gate", "a")[:2] == (0, "cli_gate a is paused\n")
    assert run("send-event", "cli_gate", "a", "--type", "go")[0] == 0
    assert document(run("resume", "cli_gate", "a", "--json"))["id"] == "a"
    assert document(run("result", "cli_gate", "a", "--timeout", "60", "--json"))["output"] == [2, "drei"]
    refused(run("pause", "cli_gate", "a"), "invalid_transition")

    restarted = document(run("restart", "cli_gate", "a", "--from-step-name", "after", "--json"))
    assert restarted["status"] in ("queued", "running", "complete")
    assert json.loads(run("result", "cli_gate", "a", "--timeout", "60")[1]) == [2, "drei"]
    unknown = refused(run("restart", "cli_gate", "a", "--from-step-name", "nope"), "invalid_transition")
    assert "nope" in unknown
    assert run("restart", "cli_gate", "a", "--from-step-name", "gate", "--from-step-type", "wait")[0] == 0
    at(site, "a", "waiting")
    assert run("restart", "cli_gate", "a")[0] == 0
    at(site, "a", "waiting")
    assert run("terminate", "cli_gate", "a", "--rollback")[:2] == (0, "cli_gate a is terminated\n")
    assert run("delete", "cli_gate", "a")[:2] == (0, "deleted cli_gate a\n")
    refused(run("describe", "cli_gate", "a"), "instance_not_found")


def test_the_list_has_pages(site: Site, run: Run) -> None:
    flow = site.workflow(cli_gate)
    for number in range(5):
        flow.create(id=f"i-{number}")
    flow.get("i-1").terminate()
    first = document(run("list", "cli_gate", "--limit", "2", "--json"))
    assert [each["id"] for each in first["instances"]] == ["i-4", "i-3"]
    rest = document(run("list", "cli_gate", "--cursor", first["cursor"], "--json"))
    assert [each["id"] for each in rest["instances"]] == ["i-2", "i-1", "i-0"]
    assert rest["cursor"] is None
    ended = document(run("list", "cli_gate", "--status", "terminated", "--status", "complete", "--json"))
    assert [(each["id"], each["status"]) for each in ended["instances"]] == [("i-1", "terminated")]
    out = run("list", "cli_gate", "--limit", "2")[1]
    assert "i-4" in out
    assert f"more: --cursor {first['cursor']}" in out
    refused(run("list", "cli_gate", "--cursor", "no cursor"), "invalid_config")


def test_latest_stands_for_the_newest(site: Site, run: Run) -> None:
    assert "no instances" in refused(run("describe", "cli_gate", "latest"), "instance_not_found")
    site.worker()
    flow = site.workflow(cli_gate)
    flow.create(id="old")
    flow.create(id="new")
    at(site, "new", "waiting")
    for command in (
        ["describe"],
        ["pause"],
        ["resume"],
        ["send-event", "--type", "go"],
        ["result"],
        ["restart"],
    ):
        answer = document(run(command[0], "cli_gate", "latest", *command[1:], "--json"))
        assert answer["id"] == "new", command
    assert document(run("delete", "cli_gate", "latest", "--json"))["id"] == "new"
    assert document(run("terminate", "cli_gate", "latest", "--json"))["id"] == "old"


def test_subscribe_prints_one_object_per_line(site: Site, run: Run) -> None:
    """semantics §7: from the cursor on, to the terminal event, which ends it even if it is filtered out."""
    site.worker()
    created = site.workflow(cli_gate).create(id="a")
    created.send_event("go")
    created.result(60)
    status, out, _ = run("subscribe", "cli_gate", "a", "--json")
    events = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [events[0]["type"], events[-1]["type"]] == ["workflow_queued", "workflow_completed"]
    ids = [event["event_id"] for event in events]
    assert ids == sorted(set(ids))
    out = run("subscribe", "cli_gate", "a", "--json", "--cursor", str(ids[2]))[1]
    assert [json.loads(line)["event_id"] for line in out.splitlines()] == ids[3:]
    out = run("subscribe", "cli_gate", "a", "--types", "step_completed,wait_completed")[1]
    assert [line.split()[3:5] for line in out.splitlines()] == [
        ["step_completed", "before"],
        ["wait_completed", "gate"],
        ["step_completed", "after"],
    ]
    refused(run("subscribe", "cli_gate", "a", "--types", "nope"), "invalid_config")
    assert (
        document(run("subscribe", "cli_gate", "nobody", "--json"), 1)["error"]["code"] == "instance_not_found"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["describe", "cli_gate"],
        ["list", "cli_gate", "--status", "sleeping"],
        ["list", "cli_gate", "--limit", "0"],
        ["list", "cli_gate", "--limit", "many"],
        ["restart", "cli_gate", "a", "--from-step-count", "2"],
        ["restart", "cli_gate", "a", "--from-step-name", "x", "--from-step-type", "nap"],
        ["restart", "cli_gate", "a", "--from-step-name", "x", "--from-step-count", "0"],
        ["result", "cli_gate", "a", "--timeout", "-1"],
        ["subscribe", "cli_gate", "a", "--cursor", "x"],
        ["send-event", "cli_gate", "a", "--type", "go", "--payload", "[" * 100_000],
    ],
)
def test_what_is_not_understood_is_no_refusal(run: Run, arguments: list[str]) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert "Usage: orchestrator instances" in err


def test_a_service_that_is_away_is_3(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_default", None)
    monkeypatch.setenv("ORCHESTRATOR_DATABASE_URL", "postgresql://u:p@127.0.0.1:1/d")
    monkeypatch.setenv("ORCHESTRATOR_REDIS_URL", "redis://127.0.0.1:1/0")
    commands = [["describe"], ["pause"], ["delete"], ["subscribe"], ["send-event", "--type", "go"]]
    for name, *options in commands:
        arguments = [name, "cli_gate", "a", *options]
        assert "Postgres does not answer" in refused(run(*arguments), "service_unavailable", 3)
        assert document(run(*arguments, "--json"), 3)["error"]["code"] == "service_unavailable"

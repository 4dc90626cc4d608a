"""The documents of the Workflows tab, on real rows: what they hold, what they hide, and that they need no code."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from orchestrator import Retries
from orchestrator.client.control import limits
from orchestrator.errors import InstanceNotFound, InvalidConfig, UnknownWorkflow
from orchestrator.monitoring.documents import events, instance, instances, timeline, trace, workflows
from orchestrator.store.control import layouts
from orchestrator.workflow.lifecycle import REDACTED
from orchestrator.workflow.status import Status
from tests.integration.harness import Created, Site, eventually

pytestmark = pytest.mark.integration

SECRET = "hunter2-of-the-documents"


def fail() -> None:
    raise ValueError("no such account")


async def order(event, step):
    await step.do("token", lambda: SECRET, sensitive=True)
    await step.do("debit", lambda: {"id": 7}, rollback=lambda r: None)
    await step.sleep("cool-off", 0)
    told = await step.wait_for_event("approval", type="approval", sensitive=True)
    if told.payload == SECRET:
        await step.do("charge", fail, retries=Retries(limit=1, delay=0))
    return "done"


async def counted(event, step):
    for n in range(event.payload):
        await step.do("tick", lambda n=n: n)
    return event.payload


async def parent(event, step):
    return await step.invoke("child", event.payload["child"], 3)


@pytest.fixture
def flow(site: Site) -> Created:
    return site.workflow(order, name="documents_order", version="7", concurrency=9)


def ended(site: Site, flow: Created, id: str, payload: Any) -> dict[str, Any]:
    one = flow.create({"n": 1}, id=id)
    one.send_event("approval", payload)
    eventually(lambda: one.status().status in (Status.COMPLETE, Status.ERRORED), patience_s=30)
    return instance.instance(site.client, flow.name, id)


def test_the_list_has_every_workflow_that_a_worker_registered(site: Site, flow: Created) -> None:
    """ADR 15: names, versions and options are read as workers registered them; no code is imported here."""
    site.workflow(counted, name="documents_counted")
    site.worker()
    eventually(lambda: len(workflows.workflows(site.client)["workflows"]) == 2)
    flow.create(id="a")
    document = workflows.workflows(site.client)
    one = next(each for each in document["workflows"] if each["name"] == flow.name)
    assert (one["version"], one["versions"], one["worker_count"]) == ("7", ["7"], 1)
    assert one["counts"]["total"] == 1 and sum(one["counts"]["by_status"].values()) == 1
    assert one["limits"]["concurrency"]["limit"] == 9
    assert document["account"] == site.settings.account and document["workers"] == 1
    json.dumps(document, allow_nan=False)


def test_a_workflow_has_its_versions_workers_and_newest_instances(site: Site, flow: Created) -> None:
    site.worker()
    eventually(lambda: workflows.workflows(site.client)["workflows"])
    for n in range(3):
        flow.create(id=f"i{n}")
    document = workflows.workflow(site.client, flow.name)
    assert [each["id"] for each in document["instances"]] == ["i2", "i1", "i0"]
    (details,) = document["details"]
    assert details["worker_count"] == 1 and details["options"]["max_steps"] == 10_000
    assert document["live_workers"][0]["versions"] == ["7"]
    with pytest.raises(UnknownWorkflow):
        workflows.workflow(site.client, "nobody")
    json.dumps(document, allow_nan=False)


def test_a_workflow_that_no_worker_registered_is_shown_by_its_instances(site: Site, flow: Created) -> None:
    """ADR 15: everything about an instance stands in its rows."""
    flow.create(id="a")
    document = workflows.workflow(site.client, flow.name)
    assert document["version"] is None and document["instances"][0]["id"] == "a"


def test_pages_of_instances_by_status_and_by_the_beginning_of_the_id(site: Site, flow: Created) -> None:
    """semantics §6: listing is by cursor."""
    made = [f"tr-{n:02d}" for n in range(25)] + ["tr", "trx", "other", "tr_", "TR-1"]
    for each in made:
        flow.create(id=each)
    where, name = site.client, flow.name
    first = instances.page(where, name, limit=20)
    second = instances.page(where, name, limit=20, cursor=first["cursor"])
    assert [each["id"] for each in first["instances"] + second["instances"]] == made[::-1]
    assert second["cursor"] is None
    found, cursor = [], None
    while True:
        page = instances.page(where, name, prefix="tr-", limit=10, cursor=cursor)
        found += [each["id"] for each in page["instances"]]
        cursor = page["cursor"]
        if cursor is None:
            break
    assert found == made[:25]
    assert instances.page(where, name, prefix="tr")["instances"][0]["id"] == "tr", (
        "exactly that id comes first"
    )
    assert instances.page(where, name, prefix="tr-", statuses=["complete"])["instances"] == []
    for wrong in (
        {"statuses": ["nothing"]},
        {"limit": 0},
        {"cursor": "id:x"},
        {"prefix": "x", "cursor": first["cursor"]},
    ):
        with pytest.raises(InvalidConfig):
            instances.page(where, name, **wrong)  # type: ignore[arg-type]


def test_an_instance_with_its_values_and_what_may_be_done(site: Site, flow: Created) -> None:
    site.worker()
    document = ended(site, flow, "a", "yes")
    assert (document["status"], document["output"], document["params"]) == ("complete", "done", {"n": 1})
    assert document["version"] == "7" and document["is_finished"] and document["blocked"] is None
    allowed = {verb for verb, why in document["actions"].items() if why is None}
    assert allowed == {"restart", "delete"}
    cut = instance.instance(site.client, flow.name, "a", most=3)
    assert cut["output"] == {"cut": '"done"', "bytes": 6}
    with pytest.raises(InstanceNotFound, match="documents_order"):
        instance.instance(site.client, flow.name, "b")
    json.dumps(document, allow_nan=False)


def test_sensitive_values_are_in_no_document(site: Site, flow: Created) -> None:
    """semantics §2.8: API and pages show ``[REDACTED]`` for outputs of sensitive steps and events."""
    site.worker()
    ended(site, flow, "a", SECRET)
    where, name = site.client, flow.name
    documents = [
        workflows.workflow(where, name),
        instance.instance(where, name, "a"),
        instance.audit(where, name, "a"),
        timeline.timeline(where, name, "a"),
        timeline.step(where, name, "a", "do:token:1"),
        timeline.step(where, name, "a", "wait:approval:1"),
        trace.trace(where, name, "a"),
        events.page(where, name, "a"),
    ]
    text = json.dumps(documents)
    assert SECRET not in text and text.count(REDACTED) >= 4
    step = timeline.step(where, name, "a", "do:token:1")
    assert step["output"] == REDACTED and step["output_bytes"] is None


def test_an_event_that_waits_is_told_by_its_type_alone(site: Site, flow: Created) -> None:
    """semantics §2.8: the step that takes it may be sensitive."""
    flow.create(id="a").send_event("approval", SECRET)
    document = instance.instance(site.client, flow.name, "a")
    assert [(each["type"], each["count"]) for each in document["buffered_events"]] == [("approval", 1)]
    assert SECRET not in json.dumps(document)


def test_the_timeline_has_steps_attempts_sleeps_waits_and_compensations(site: Site, flow: Created) -> None:
    """semantics §2.2, §5.3: failed attempts with their errors, compensations as steps of their own."""
    site.worker()
    ended(site, flow, "a", SECRET)
    eventually(lambda: flow.get("a").status().rollback is not None)
    document = timeline.timeline(site.client, flow.name, "a")
    by_key = {each["key"]: each for each in document["steps"]}
    assert list(by_key) == [
        "do:token:1", "do:debit:1", "sleep:cool-off:1", "wait:approval:1", "do:charge:1", "do:debit:1:rollback",
    ]  # fmt: skip
    charge = by_key["do:charge:1"]
    assert [each["number"] for each in charge["attempts"]] == [1, 2]
    assert {each["error"]["name"] for each in charge["attempts"]} == {"ValueError"}
    assert charge["attempts"][0]["retry_delay"] == 0 and charge["status"] == "failed"
    assert by_key["do:debit:1"]["output"] == {"id": 7} and by_key["do:debit:1"]["has_rollback"]
    assert by_key["do:debit:1:rollback"]["undoes"] == "do:debit:1"
    assert document["next"] is None and document["transitions"][-1]["status"] == "errored"
    step = timeline.step(site.client, flow.name, "a", "do:charge:1")
    assert all("no such account" in each["traceback"] for each in step["attempts"])
    with pytest.raises(InstanceNotFound, match="do:nothing:1"):
        timeline.step(site.client, flow.name, "a", "do:nothing:1")


def test_pages_of_a_timeline_have_every_step_once(site: Site) -> None:
    flow = site.workflow(counted, name="documents_counted")
    site.worker()
    assert flow.create(25, id="a").result(30) == 25
    found, after = [], 0
    while True:
        page = timeline.timeline(site.client, flow.name, "a", after=after, limit=10)
        found += [each["key"] for each in page["steps"]]
        assert (after == 0) == bool(page["transitions"])
        if page["next"] is None:
            break
        after = page["next"]
    assert found == [f"do:tick:{n + 1}" for n in range(25)]
    some = timeline.chosen(site.client, flow.name, "a", ["do:tick:9", "do:tick:2", "do:nothing:1"])
    assert [each["key"] for each in some["steps"]] == ["do:tick:2", "do:tick:9"]


def test_a_long_output_is_in_the_document_of_its_step_alone(site: Site) -> None:
    async def long(event, step):
        await step.do("load", lambda: "x" * 5000)

    flow = site.workflow(long, name="documents_long")
    site.worker()
    flow.create(id="a").result(30)
    (entry,) = timeline.timeline(site.client, flow.name, "a")["steps"]
    assert (entry["output"], entry["output_bytes"]) == (None, 5002)
    assert timeline.step(site.client, flow.name, "a", "do:load:1")["output"] == "x" * 5000


def test_only_the_last_attempts_of_a_step_are_on_a_page(site: Site) -> None:
    """protocols §11: attempts keep their numbers, also where the first ones are left out."""

    async def stubborn(event, step):
        await step.do("knock", fail, retries=Retries(limit=29, delay=0))

    flow = site.workflow(stubborn, name="documents_stubborn")
    site.worker()
    one = flow.create(id="a")
    eventually(lambda: one.status().status is Status.ERRORED, patience_s=60)
    (entry,) = timeline.timeline(site.client, flow.name, "a")["steps"]
    assert [each["number"] for each in entry["attempts"]] == list(range(11, 31))
    step = timeline.step(site.client, flow.name, "a", "do:knock:1")
    assert [each["number"] for each in step["attempts"]] == list(range(1, 31))
    assert [each.number for each in one.steps()[0].attempts] == list(range(1, 31))


def test_the_trace_of_an_instance_lies_over_the_stored_graph(site: Site, flow: Created) -> None:
    """semantics §8: each node carries a line, so that a live trace can be laid over the graph."""
    site.worker()
    ended(site, flow, "a", "yes")
    eventually(
        lambda: site.sql(
            "SELECT 1 FROM orchestrator_workflows WHERE graph IS NOT NULL AND account = :a",
            a=site.settings.account,
        )
    )
    document = trace.trace(site.client, flow.name, "a")
    names = {node["name"] for node in document["graph"]["workflow"]["nodes"] if "name" in node}
    assert {"token", "debit", "cool-off", "approval"} <= names
    states = {found["last"]: found["state"] for found in document["trace"]["nodes"].values()}
    assert states["do:debit:1"] == "done" and document["trace"]["rest_total"] == 0
    assert document["step_count"] == 4
    picture = trace.traced(site.client, flow.name, "a")
    assert picture is not None and "<svg" in picture and 'data-state="done"' in picture
    assert "<svg" in trace.picture(site.client, flow.name)


def test_a_trace_without_a_diagram_has_the_steps_all_the_same(site: Site, flow: Created) -> None:
    flow.create(id="a")
    document = trace.trace(site.client, flow.name, "a")
    assert (document["graph"], document["trace"], document["steps"]) == (None, None, [])
    assert trace.traced(site.client, flow.name, "a") is None


def test_kin_is_linked_both_ways(site: Site) -> None:
    """protocols §15: a child knows its parent and the step that started it."""
    child = site.workflow(counted, name="documents_child")

    async def parent(event, step):
        return await step.invoke("child", child, 1, id="c")

    above = site.workflow(parent, name="documents_parent")
    site.worker()
    assert above.create(id="p").result(30) == 1
    assert instance.instance(site.client, above.name, "p")["children"] == [
        {"workflow": "documents_child", "id": "c", "step": "invoke:child:1", "status": "complete"}
    ]
    assert instance.instance(site.client, child.name, "c")["parent"] == {
        "workflow": "documents_parent", "id": "p", "step": "invoke:child:1",
    }  # fmt: skip


def test_events_come_in_pages_that_a_cursor_continues(site: Site, flow: Created) -> None:
    """semantics §7: a subscription replays from its cursor (exclusive), and ends at the terminal event."""
    site.worker()
    ended(site, flow, "a", "yes")
    whole = events.page(site.client, flow.name, "a")
    told = [each["type"] for each in whole["events"]]
    assert told[0] == "workflow_queued" and told[-1] == "workflow_completed" and whole["is_over"]
    middle = whole["events"][4]["event_id"]
    rest = events.page(site.client, flow.name, "a", middle)
    assert rest["events"] == whole["events"][5:]
    assert [each.event_id for each in flow.get("a").subscribe()] == [e["event_id"] for e in whole["events"]]
    at_the_end = events.page(
        site.client, flow.name, "a", instance.instance(site.client, flow.name, "a")["cursor"]
    )
    assert at_the_end["events"] == [] and at_the_end["is_over"]


def test_the_audit_says_who_did_what(site: Site, flow: Created) -> None:
    flow.create(id="a").pause()
    (entry,) = instance.audit(site.client, flow.name, "a")["audit"]
    assert entry["verb"] == "pause" and "@" in entry["by"]


def test_the_page_of_an_instance_of_ten_thousand_steps_costs_what_it_shows(site: Site, flow: Created) -> None:
    """A page of steps is read by the index of start order, whatever there is besides; a trace reads no values."""
    flow.create(id="a")
    uuid = site.id_of("a")
    site.sql(
        "INSERT INTO orchestrator_steps (instance_id, key, kind, status, started_seq, started_at, finished_seq, "
        "finished_at, attempt, output) SELECT :id, 'do:tick:' || n, 'do', 'done', 2 * n, now(), 2 * n + 1, now(), 1, "
        "repeat('7', 900) FROM generate_series(1, 10000) n",
        id=uuid,
    )
    site.sql("ANALYZE orchestrator_steps")
    plan = "\n".join(
        str(row[0])
        for row in site.sql(
            "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) SELECT key FROM orchestrator_steps WHERE instance_id = :id "
            "AND started_seq > 0 AND started_seq > 5000 AND kind <> 'patch' ORDER BY started_seq LIMIT 101",
            id=uuid,
        )
    )
    assert "orchestrator_steps_order" in plan and "Sort" not in plan, plan
    began = time.perf_counter()
    page = timeline.timeline(site.client, flow.name, "a")
    took = time.perf_counter() - began
    assert [len(page["steps"]), page["next"]] == [100, 200]
    document = trace.trace(site.client, flow.name, "a")
    assert document["step_count"] == 10_000 and len(document["steps"]) == 1000
    print(f"timeline page {took * 1000:.0f} ms, trace {1000 * (time.perf_counter() - began - took):.0f} ms")


def test_the_age_of_a_queue_is_that_of_its_oldest_instance(site: Site) -> None:
    """semantics §6: what waits for a slot is told with how long it has."""
    flow = site.workflow(counted, name="documents_queue")
    with site.engine.begin() as connection:
        layouts.add(connection, site.settings.account, flow.name, 4)
    flow.plant(1, now=site.client.now() - 300.0, queued=True)
    document = workflows.workflow(site.client, flow.name)
    assert 300.0 <= document["oldest_queued_s"] == document["queue"]["age_s"] < 330.0
    assert document["limits"]["queued"]["used"] == 1


def test_limits_say_who_has_set_them(site: Site, flow: Created) -> None:
    """semantics §6: what operators set at run time wins over definitions and settings."""
    site.worker()
    eventually(lambda: workflows.workflows(site.client)["workflows"])
    limits.set_limits(site.client, flow.name, creation_rate=5.0)
    found = workflows.workflow(site.client, flow.name)["limits"]
    assert found["concurrency"] == {"limit": 9, "source": "definition", "used": 0}
    assert found["creation_rate"] == {"limit": 5.0, "source": "operator"}
    assert found["queued"]["source"] == "settings" and "@" in found["changed_by"]

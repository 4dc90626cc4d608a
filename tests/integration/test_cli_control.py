"""``orchestrator control``: limits that are set and shown, queues that are cut anew, and how all of it stands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from orchestrator.client import orchestrator as client
from orchestrator.client.control.layout import coordinate, reshard
from orchestrator.client.control.limits import MOST, clear, limits, set_limits
from orchestrator.client.control.status import status
from orchestrator.errors import InvalidConfig, InvalidName, UnknownWorkflow
from orchestrator.settings import Settings
from orchestrator.store.control import counts, layouts
from orchestrator.workflow.status import Status
from tests.integration.harness import Site, eventually
from tests.integration.test_cli import Run, document, one_line, run  # noqa: F401

pytestmark = pytest.mark.integration


async def control_flow(event, step):
    """Nothing."""


async def control_other(event, step):
    """Nothing."""


@pytest.fixture
def configured(run: Run, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:  # noqa: F811
    """The command line in the account of the test."""
    monkeypatch.setenv("ORCHESTRATOR_DATABASE_URL", settings.database_url)
    monkeypatch.setenv("ORCHESTRATOR_REDIS_URL", settings.redis_url)
    monkeypatch.setenv("ORCHESTRATOR_ACCOUNT", settings.account)
    yield run
    if client._default is not None:
        client._default.close()


def there(settings: Settings) -> dict[str, str]:
    """The hash that scripts read."""
    with redis.Redis.from_url(settings.redis_url, decode_responses=True) as connection:
        return connection.hgetall(f"{settings.hash_tag}:limits")


def queue(site: Site, *workflows: str, shards: int = 2) -> None:
    """Enter queues, as workers do when they start."""
    with site.engine.begin() as connection:
        layouts.enter(connection, site.settings.account, workflows, shards)


def test_limits_are_shown_set_and_cleared(configured: Run, settings: Settings) -> None:
    """api §4: ``orchestrator control limits``; semantics §6: it holds at once, and who did it is on record."""
    shown = document(configured("control", "limits", "--json"))["limits"]
    assert shown["workflow"] is None
    assert shown["limits"]["concurrency"] == {"value": 50_000, "source": "settings"}
    assert shown["limits"]["creation_rate"] == {"value": 300.0, "source": "settings"}
    assert shown["limits"]["creation_burst"] == {"value": 300.0, "source": "settings"}
    assert shown["limits"]["max_queued"] == {"value": 2_000_000, "source": "settings"}
    assert shown["changed_by"] is None

    set_ = ("--concurrency", "7", "--creation-rate", "2.5", "--json")
    changed = document(configured("control", "limits", "control_flow", *set_))["limits"]
    assert changed["limits"]["concurrency"] == {"value": 7, "source": "operator"}
    assert changed["limits"]["creation_burst"] == {"value": 2.5, "source": "operator"}, "a second's rate"
    assert "@" in changed["changed_by"]
    assert there(settings) == {"concurrency:control_flow": "7", "rate:control_flow": "2.5"}
    out = configured("control", "limits", "control_flow")[1]
    assert "operator" in out
    assert f"by {changed['changed_by']}" in out

    one = document(configured("control", "limits", "control_flow", "--concurrency", "default", "--json"))[
        "limits"
    ]
    assert one["limits"]["concurrency"] == {"value": None, "source": "definition"}
    assert there(settings) == {"rate:control_flow": "2.5"}
    document(configured("control", "limits", "control_flow", "--clear", "--json"))
    assert there(settings) == {}
    again = document(configured("control", "limits", "control_flow", "--json"))["limits"]
    assert again["limits"]["creation_rate"]["source"] == "settings"
    assert again["changed_by"] is not None, "who cleared it"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["limits", "--concurrency", "-1"], "invalid_config"),
        (["limits", "--creation-rate", "0"], "invalid_config"),
        (["limits", "--creation-rate", "nan"], "invalid_config"),
        (["limits", "no spaces", "--concurrency", "1"], "invalid_name"),
        (["status", "no spaces"], "invalid_name"),
        (["reshard", "--shards", "5000"], "invalid_config"),
        (["reshard", "control_nobody", "--shards", "5"], "unknown_workflow"),
    ],
)
def test_what_makes_no_sense_is_refused(configured: Run, site: Site, arguments: list[str], code: str) -> None:
    """api §4: exit status 1, one line with the code of the error."""
    queue(site, "control_flow")
    one_line(configured("control", *arguments), 1, code)
    assert document(configured("control", *arguments, "--json"), 1)["error"]["code"] == code


@pytest.mark.parametrize(
    "arguments",
    [
        ["limits", "--concurrency", "many"],
        ["limits", "--max-queued", "1.5"],
        ["limits", "--clear", "--concurrency", "1"],
        ["reshard"],
        ["reshard", "--shards", "0"],
        ["reshard", "control_flow", "--coordinators", "one"],
        ["reshard", "--coordinators", "one", "--shards", "4"],
    ],
)
def test_wrong_usage_is_2(configured: Run, arguments: list[str]) -> None:
    """api §4: exit status 2."""
    code, out, err = configured("control", *arguments)
    assert (code, out) == (2, "")
    assert "Usage: orchestrator control" in err


def test_a_queue_is_cut_anew_and_the_old_one_drains(
    configured: Run, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """semantics §6: new instances use the new layout at once, old shards drain, nothing stops and no row is copied."""
    monkeypatch.delenv("COLUMNS", raising=False)  # where it is set, tables are folded
    queue(site, "control_flow", "control_other")
    flow = site.workflow(control_flow)
    flow.plant(queued=True, now=site.client.now() - 60)
    (cut,) = document(configured("control", "reshard", "control_flow", "--shards", "8", "--json"))["queues"]
    assert cut == {"workflow": "control_flow", "generation": 2, "shards": 8}
    (flow_now,) = document(configured("control", "status", "control_flow", "--json"))["status"]["workflows"]
    old, new = flow_now["generations"]
    assert (old["shards"], old["is_draining"], old["waiting"], old["owned"]) == (2, True, 1, 0)
    assert (new["shards"], new["is_draining"], new["waiting"], new["first"]) == (8, False, 0, 2)
    assert flow_now["queue_age"] >= 60
    out = configured("control", "status")[1]
    assert "draining" in out
    assert "8 (0 looked after)" in out

    all_ = document(configured("control", "reshard", "--shards", "3", "--json"))["queues"]
    assert [(each["workflow"], each["shards"]) for each in all_] == [
        ("control_flow", 3),
        ("control_other", 3),
    ]


def test_an_account_is_moved_from_one_coordinator_to_many(configured: Run, site: Site) -> None:
    """semantics §6: V1 to V2 and back, live."""
    queue(site, "control_flow")
    assert "There are no queues" not in configured("control", "reshard", "--coordinators", "one")[1]
    seen = document(configured("control", "status", "--json"))["status"]
    assert seen["coordinators"] == "one"
    assert [each["shards"] for each in seen["workflows"][0]["generations"]] == [2, 1]
    moved = document(configured("control", "reshard", "--coordinators", "many", "--shards", "6", "--json"))
    assert [each["shards"] for each in moved["queues"]] == [6]
    assert document(configured("control", "status", "--json"))["status"]["coordinators"] == "many"


def test_before_any_worker_has_run_it_says_so(configured: Run) -> None:
    """api §4: an answer for people."""
    assert "There are no queues yet" in configured("control", "reshard", "--shards", "3")[1]
    out = configured("control", "status")[1]
    assert "No worker is alive." in out
    assert "coordinators  many" in out


def test_the_status_of_a_running_account(site: Site) -> None:
    """semantics §6: slots, limits and where they come from, queues and who looks after them."""
    flow = site.workflow(control_flow, concurrency=5)
    site.worker(chef=True)
    eventually(lambda: status(site.client).workers, "a worker")
    seen = eventually(lambda: _entered(site), "the queue of the workflow")
    assert (seen.account, seen.coordinators) == (site.settings.account, "many")
    assert seen.slots is not None
    (known,) = seen.workflows
    assert known.name == "control_flow"
    assert known.limits.limits["concurrency"] == limits(site.client, "control_flow").limits["concurrency"]
    assert (known.limits.limits["concurrency"].value, known.limits.limits["concurrency"].source) == (
        5,
        "definition",
    )
    assert (known.queue_age, known.oldest_at) == (0.0, None)
    created = flow.create()
    created.result(30)
    assert (
        eventually(
            lambda: status(site.client, "control_flow").workflows[0].counts[Status.COMPLETE], "its end"
        )
        == 1
    )


def test_the_list_of_workflows_says_what_is_kept(
    configured: Run, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """protocols §20: counts in lists are those that workers keep; nothing is counted for them, and they need no
    server."""
    monkeypatch.setenv("ORCHESTRATOR_WORKFLOWS", "orchestrator.demo.workflows")

    def listed() -> Any:
        found = document(configured("workflows", "list", "--json"))["workflows"]
        return next(each["instances"] for each in found if each["name"] == "transfer")

    assert listed() is None
    with site.engine.begin() as connection:
        kept = {"queued": 1_999_000, "complete": 1000}
        counts.keep(connection, site.settings.account, "transfer", kept, 0.5)
    assert listed() == 2_000_000
    assert "2,000,000" in configured("workflows", "list")[1]
    monkeypatch.setattr(client, "_default", None)
    monkeypatch.setenv("ORCHESTRATOR_DATABASE_URL", "postgresql://u:p@127.0.0.1:1/d")
    assert listed() is None


def _entered(site: Site) -> Any:
    found = status(site.client)
    return found if found.workflows and found.workflows[0].generations else None


def test_without_redis_the_status_says_what_postgres_knows(site: Site) -> None:
    """semantics §6: Redis may be away at any time; what it would say is unknown then, and limits can be set."""
    queue(site, "control_flow")
    away = Settings(
        database_url=site.settings.database_url,
        redis_url="redis://127.0.0.1:1/0",
        account=site.settings.account,
    )
    with client.Orchestrator(away) as cut_off:
        seen = status(cut_off)
        assert (seen.granting, seen.slots, seen.workflows[0].slots) == (None, None, None)
        assert [each.shards for each in seen.workflows[0].generations] == [2]
        assert set_limits(cut_off, "control_flow", concurrency=3).limits["concurrency"].value == 3
    assert limits(site.client, "control_flow").limits["concurrency"].source == "operator"


def test_limits_of_a_workflow_that_nobody_knows_are_kept_and_it_says_so(configured: Run, site: Site) -> None:
    """semantics §6: a limit may be set before a workflow is deployed, and who mistypes a brake is told."""
    out = configured("control", "limits", "control_typo", "--concurrency", "0")[1]
    assert "No worker has registered a workflow 'control_typo'" in out
    site.workflow(control_flow)
    site.worker(chef=True)
    eventually(lambda: limits(site.client, "control_flow").is_known, "the workflow on record")
    for name in (("control_flow",), ()):
        assert "No worker" not in configured("control", "limits", *name)[1]
    assert limits(site.client, "control_typo").limits["concurrency"].value == 0


def test_a_workflow_without_queue_is_shown_as_long_as_limits_hold_for_it(site: Site) -> None:
    """semantics §6: a name that was mistyped goes from the status when its limits are taken back."""
    queue(site, "control_flow")
    set_limits(site.client, "control_typo", concurrency=0)
    assert [each.name for each in status(site.client).workflows] == ["control_flow", "control_typo"]
    clear(site.client, "control_typo")
    assert [each.name for each in status(site.client).workflows] == ["control_flow"]


def test_the_verbs_for_applications(site: Site) -> None:
    """semantics §6: what the command line does, as functions."""
    queue(site, "control_flow")
    assert set_limits(site.client, max_queued=10).limits["max_queued"].value == 10
    assert (
        limits(site.client, "control_flow").limits["max_queued"] == limits(site.client).limits["max_queued"]
    )
    set_limits(site.client, "control_flow", max_queued=20, creation_burst=4)
    cleared = clear(site.client, "control_flow", ["max_queued"])
    assert (cleared.limits["max_queued"].value, cleared.limits["creation_burst"].value) == (10, 4)
    assert set_limits(site.client, concurrency=0).limits["concurrency"].value == 0
    for wrong in ({}, {"rate": 1}, {"concurrency": True}, {"concurrency": 1.5}, {"max_queued": MOST + 1}):
        with pytest.raises(InvalidConfig):
            set_limits(site.client, **wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidName):
        set_limits(site.client, "", concurrency=1)
    with pytest.raises(UnknownWorkflow, match="known are: control_flow"):
        reshard(site.client, 2, "control_nobody")
    assert json.dumps([each.shards for each in coordinate(site.client, "many")]) == "[2]", "it is so already"

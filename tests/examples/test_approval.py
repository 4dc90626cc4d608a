"""The example of a workflow that waits for a human: every way it may end."""

import pytest

from examples import approval
from orchestrator.client.workflow import Workflow
from orchestrator.testing import WorkflowEnvironment
from tests.integration.harness import START, Created, Site

pytestmark = pytest.mark.integration
WANTED = {"item": "tea", "price": 350}


def placed(workflow: Workflow, site: Site) -> Created:
    """The example's workflow in the registry of this test."""
    return Created(site.registry.register(workflow.definition), site)


@pytest.mark.parametrize("approved", [True, False])
def test_the_boss_answers(site: Site, approved: bool) -> None:
    """semantics §3.2: an event sent before the workflow waits for it is not lost."""
    site.worker()
    created = placed(approval.purchase, site).create(WANTED)
    created.send_event("decision", {"approved": approved, "by": "ann"})
    output = created.result(60)
    names = [step.name for step in created.steps()]
    if approved:
        assert output.startswith("tea: ordered as order ")
        assert output.endswith("approved by ann")
        assert names == ["ask the boss", "decision", "order"]
    else:
        assert output == "tea: declined by ann"
        assert names == ["ask the boss", "decision"]


def test_nobody_answers(site: Site) -> None:
    """semantics §3.3: a wait that is over raises EventTimeout, which the code catches; then it waits again."""
    purchases, bench = placed(approval.purchase, site), site.bench()
    instance = purchases.plant(WANTED)
    reminded = []
    for hours in (0, 35, 37, 71, 73):
        bench.clock.at = START + hours * 3600.0
        work = list(bench.wake(instance).handouts)
        for handout in work:
            work.extend(bench.finish(handout).handouts)
        reminded.append(site.step(instance, "do:remind:1") is not None)
    assert reminded == [False, False, True, True, True]
    output = site.sql("SELECT output FROM orchestrator_payloads WHERE instance_id = :id", id=instance)
    assert output == [('"tea: declined by nobody"',)]


def test_in_a_unit_test_three_days_are_over_at_once() -> None:
    """semantics §3.3: the same with the testing kit: no server, and a clock that the test moves."""
    with WorkflowEnvironment() as env:
        instance = env.create(approval.purchase, WANTED)
        instance.wait_for_step_result("ask the boss")
        env.advance("37 hours")
        assert [step.name for step in instance.steps()] == ["ask the boss", "decision", "remind", "decision"]
        env.advance("36 hours")
        assert instance.result() == "tea: declined by nobody"


def test_in_a_unit_test_the_shop_may_be_down_for_a_while() -> None:
    """semantics §2.2: the order is tried again, under the same idempotency key."""
    with WorkflowEnvironment() as env:
        env.mock_step_error("order", ConnectionError("the shop is down"), times=3)
        instance = env.create(approval.purchase, WANTED)
        instance.send_event("decision", {"approved": True, "by": "ann"})
        env.advance("1 hour")
        assert instance.result().startswith("tea: ordered as order ")
        (order,) = [step for step in instance.steps() if step.name == "order"]
        assert len(order.attempts) == 4

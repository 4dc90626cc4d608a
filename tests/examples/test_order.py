"""The example of a saga: shipped, or everything undone, whichever step fails."""

import pytest

from examples import order
from orchestrator import WorkflowFailed
from orchestrator.testing import WorkflowEnvironment
from tests.integration.harness import Created, Site

pytestmark = pytest.mark.integration
WANTED = {"item": "a lamp", "price": 4_900, "address": "Main Street 1"}


def created(site: Site, **changed: object) -> object:
    site.worker()
    return Created(site.registry.register(order.fulfil.definition), site).create({**WANTED, **changed})


def test_it_is_shipped(site: Site) -> None:
    """semantics §5.1: what completes undoes nothing."""
    instance = created(site)
    assert instance.result(60) == "shipped with a label for Main Street 1"
    assert [step.name for step in instance.steps()] == ["reserve", "charge", "buy label", "hand over"]
    assert instance.status().rollback is None


@pytest.mark.parametrize(
    ("changed", "message", "undone"),
    [
        ({"price": 200_000}, "the card does not give 2000.00", ["charge", "reserve"]),
        ({"address": "the moon"}, "nobody delivers to the moon", ["buy label", "charge", "reserve"]),
    ],
    ids=["the card", "the carrier"],
)
def test_what_was_done_is_undone(
    site: Site, changed: dict[str, object], message: str, undone: list[str]
) -> None:
    """semantics §5.2, §5.3: the handler of the step that failed comes first, then those before it."""
    instance = created(site, **changed)
    with pytest.raises(WorkflowFailed) as failed:
        instance.result(60)
    assert (failed.value.error.name, failed.value.error.message) == ("Refused", message)
    assert failed.value.rollback is not None and failed.value.rollback.outcome == "complete"
    told = [event.step_name for event in instance.subscribe(types=["rollback_step_completed"])]
    assert told == undone


def test_in_a_unit_test_the_parcel_is_handed_over_late_and_nothing_is_undone() -> None:
    """semantics §2.2: the step that cannot be undone is tried for hours, for after it nothing may fail."""
    with WorkflowEnvironment() as env:
        env.mock_step_error("hand over", ConnectionError("the van is late"), times=15)
        instance = env.create(order.fulfil, WANTED)
        env.advance("4 hours")
        assert instance.result() == "shipped with a label for Main Street 1"
        assert instance.status().rollback is None


def test_in_a_unit_test_what_is_undone_last_was_done_first(capsys: pytest.CaptureFixture[str]) -> None:
    """semantics §5.3: handlers run one at a time, in reverse order, each told why."""
    with WorkflowEnvironment() as env:
        env.mock_step_error("hand over", order.Refused("the parcel is broken"))
        instance = env.create(order.fulfil, WANTED)
        env.run_until_idle()
        with pytest.raises(WorkflowFailed, match="the parcel is broken"):
            instance.result()
    said = capsys.readouterr().out
    steps = [said.index(text) for text in ("is void", "is given back", "is free again: the parcel is broken")]
    assert steps == sorted(steps)

"""The example of a review loop: three agents at once, a human in between, and an end either way."""

import pytest

from examples import agent_loop
from orchestrator.testing import WorkflowEnvironment
from tests.integration.harness import Created, Site

pytestmark = pytest.mark.integration
AGENTS = ["research agent", "critic agent", "numbers agent", "summary agent"]


def created(site: Site, **task: object) -> object:
    site.worker()
    flow = Created(site.registry.register(agent_loop.review.definition), site)
    return flow.create({"question": "tea", **task})


def names(loop: int) -> list[str]:
    return [f"{agent} (loop {loop})" for agent in AGENTS] + [f"user response (loop {loop})"]


def test_the_loop_ends_when_the_human_is_content(site: Site) -> None:
    """semantics §1.2: each round has steps of its own, and feedback reaches the next round's agents."""
    instance = created(site)
    instance.send_event("answer", {"approved": False, "feedback": "cheaper"})
    instance.send_event("answer", {"approved": True})
    assert instance.result(60) == (
        "published: facts on tea, minding 'cheaper'; doubts about tea, but not about 'cheaper'; 10 numbers"
    )
    assert [step.name for step in instance.steps()] == [*names(1), *names(2), "publish"]


def test_the_loop_ends_after_so_many_rounds(site: Site) -> None:
    """semantics §3.2: events are served in the order they came, one for each wait."""
    instance = created(site, max_loops=2)
    for feedback in ("cheaper", "greener"):
        instance.send_event("answer", {"approved": False, "feedback": feedback})
    assert instance.result(60) == "a person looks into tea: greener"
    assert [step.name for step in instance.steps()] == [*names(1), *names(2), "hand over"]


def test_the_agents_of_a_round_run_at_once(site: Site) -> None:
    """semantics §8: the picture shows three agents side by side in a loop, and the branch behind the answer."""
    (loop,) = [n for n in agent_loop.review.diagram()["workflow"]["nodes"] if n["type"] == "loop"]
    together, summary, response, answered = loop["nodes"][:4]
    assert (together["type"], together["kind"], len(together["nodes"])) == ("parallel", "all", 3)
    assert (summary["name"], response["type"]) == ("summary agent (loop ${...})", "step_wait_for_event")
    assert answered["branches"][0]["condition"] == 'response.payload["approved"]'


def test_in_a_unit_test_the_agents_are_mocked() -> None:
    """semantics §1.2: a test gives the steps' results by name, and looks at what the workflow makes of them."""
    with WorkflowEnvironment() as env:
        for agent, found in (("research", "r"), ("critic", "c"), ("numbers", "n")):
            env.mock_step_result(f"{agent} agent (loop 1)", found)
        instance = env.create(agent_loop.review, {"question": "tea"})
        instance.send_event("answer", {"approved": True})
        env.run_until_idle()
        assert instance.result() == "published: r; c; n"

"""Watching and steering instances in a browser: a real worker runs them, a real Flower shows them."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator import Orchestrator
from tests.browser.flows import browser_order, browser_parent, browser_purchase, browser_slow

expect = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra `test`)").expect
pytestmark = [pytest.mark.browser, pytest.mark.integration]
expect.set_options(timeout=20_000)

BIKE = {"item": "a bike", "price": 100, "extras": ["a bell", "a lock"]}


def node(page: Any, name: str) -> Any:
    return page.locator(f'#wf-picture [data-step="{name}"]')


def row(page: Any, key: str) -> Any:
    return page.locator(f'#wf-rows > li[data-key="{key}"]')


def status(page: Any, word: str) -> None:
    expect(page.locator("#wf-status")).to_have_text(word)


def confirm(page: Any, opener: str, button: str) -> None:
    """Open a dialog of the instance, and say yes."""
    page.click(opener)
    page.locator("dialog[open]").get_by_role("button", name=button, exact=True).click()


def test_from_the_list_to_the_end_of_an_instance_without_a_reload(page: Any) -> None:
    """semantics §8: a live trace is laid over the graph; an approval is given from the picture."""
    page.goto("/workers")
    page.get_by_role("link", name="Workflows").click()
    page.get_by_role("link", name="browser_purchase").click()
    page.get_by_role("button", name="Trigger").click()
    dialog = page.locator("dialog[open]")
    dialog.get_by_label("Params").fill('{"item": "a bike", ')
    expect(dialog.locator(".wf-hint-error")).to_contain_text("Not JSON")
    dialog.get_by_label("Params").fill('{"price": 100}')
    dialog.get_by_role("button", name="Start").click()
    expect(dialog.locator(".wf-error")).to_contain_text("item")
    dialog.get_by_label("Params").fill('{"item": "a bike", "price": 100, "extras": ["a bell", "a lock"]}')
    dialog.get_by_label("Id").fill("bike-1")
    dialog.get_by_role("button", name="Start").click()
    page.wait_for_url("**/workflows/browser_purchase/bike-1")
    page.evaluate("window.isTheSamePage = true")

    expect(node(page, "decision")).to_have_attribute("data-state", "waiting")
    expect(node(page, "ask the boss")).to_have_attribute("data-state", "done")
    status(page, "waiting")
    node(page, "decision").click()
    dialog = page.locator("dialog[open]")
    expect(dialog.get_by_label("Type")).to_have_value("decision")
    dialog.get_by_label("Payload").fill('{"approved": true}')
    dialog.get_by_role("button", name="Send").click()

    status(page, "complete")
    expect(page.locator('#wf-picture [data-step="order ${...}"]')).to_have_attribute("data-state", "done")
    expect(node(page, "apologise")).to_have_attribute("data-state", "pending")
    expect(row(page, "sleep:cool-off:1")).to_contain_text("done")
    expect(page.locator("#wf-values")).to_contain_text("order of a bike")
    expect(page.locator("#wf-pause")).to_be_disabled()
    expect(page.get_by_role("status").filter(has_text="is now complete")).to_be_attached()
    assert page.evaluate("window.isTheSamePage") is True


def test_what_nobody_may_see_is_not_shown(page: Any, orchestrator: Orchestrator) -> None:
    """semantics §2.8: pages show ``[REDACTED]``."""
    instance = browser_purchase.create(BIKE, orchestrator=orchestrator)
    instance.send_event("decision", {"approved": True})
    instance.result(20)
    page.goto(f"/workflows/browser_purchase/{instance.id}")
    row(page, "do:card number:1").locator(".wf-step").click()
    expect(row(page, "do:card number:1").locator(".wf-details")).to_contain_text("[REDACTED]")
    assert "1234-5678" not in page.content()


def test_what_failed_shows_its_attempts_and_its_compensations(page: Any, orchestrator: Orchestrator) -> None:
    """semantics §5.3: each handler is a step of its own, in reverse start order."""
    instance = browser_order.create({}, orchestrator=orchestrator)
    page.goto(f"/workflows/browser_order/{instance.id}")
    status(page, "errored")
    expect(page.locator("#wf-alerts")).to_contain_text("The card has no money left.")
    expect(page.locator("#wf-alerts")).to_contain_text("Rollback complete")
    for name in ("reserve", "pack"):
        expect(node(page, name)).to_have_attribute("data-state", "compensated")
        expect(row(page, f"do:{name}:1:rollback")).to_contain_text("compensated")
    keys = page.eval_on_selector_all("#wf-rows > li", "all => all.map((each) => each.dataset.key)")
    assert keys[-2:] == ["do:pack:1:rollback", "do:reserve:1:rollback"]
    expect(row(page, "do:charge:1").locator(".wf-b-failed")).to_have_count(3)
    expect(row(page, "do:charge:1").locator(".wf-b-retry")).to_have_count(2)
    row(page, "do:charge:1").locator(".wf-step").click()
    details = row(page, "do:charge:1").locator(".wf-details")
    expect(details.locator("tbody tr")).to_have_count(3)
    details.get_by_text("Traceback").first.click()
    expect(details).to_contain_text("flows.py")


def test_a_failed_rollback_is_skipped_by_an_operator(page: Any, orchestrator: Orchestrator) -> None:
    """semantics §5.8: ``skip_rollback`` lets an operator finish a failed one; what was done is written down."""
    instance = browser_order.create({"stuck": True}, orchestrator=orchestrator)
    page.goto(f"/workflows/browser_order/{instance.id}")
    expect(page.locator("#wf-alerts")).to_contain_text("Rollback failed")
    confirm(page, "#wf-retry-rollback", "Retry")
    expect(page.locator("#wf-values")).to_contain_text("retry_rollback")
    expect(page.locator("#wf-retry-rollback")).to_be_visible()  # it failed once more
    row(page, "do:pack:1").locator(".wf-step").click()
    row(page, "do:pack:1").get_by_role("button", name="Skip").click()
    page.locator("dialog[open]").get_by_role("button", name="Skip").click()
    expect(page.locator("#wf-alerts")).to_contain_text("Rollback complete")
    expect(row(page, "do:reserve:1:rollback")).to_contain_text("compensated")


def test_pause_resume_terminate_restart_delete(page: Any, orchestrator: Orchestrator) -> None:
    """semantics §4: what the status allows can be pressed, and nothing else; what destroys asks first."""
    instance = browser_slow.create({"times": 2, "seconds": 60}, orchestrator=orchestrator)
    page.goto(f"/workflows/browser_slow/{instance.id}")
    status(page, "running")
    page.click("#wf-pause")
    status(page, "waiting for pause")
    page.click("#wf-resume")
    status(page, "running")
    expect(page.locator("#wf-pause")).to_be_enabled()
    page.click("#wf-terminate")
    page.locator("dialog[open]").get_by_role("button", name="Cancel").click()
    status(page, "running")
    confirm(page, "#wf-terminate", "Terminate")
    status(page, "terminated")
    expect(row(page, "do:nap:1")).to_contain_text("cancelled")
    for name in ("pause", "terminate", "send-event"):
        expect(page.locator(f"#wf-{name}")).to_be_disabled()
    confirm(page, "#wf-restart", "Restart")
    status(page, "running")
    expect(row(page, "do:nap:1")).to_contain_text("running")
    confirm(page, "#wf-delete", "Delete")
    page.wait_for_url("**/workflows/browser_slow")
    assert not browser_slow.list(orchestrator=orchestrator).items


def test_restart_from_a_step(page: Any, orchestrator: Orchestrator) -> None:
    """semantics §4: ``restart(from_step=…)`` wipes that step and every step that started after it."""
    instance = browser_purchase.create(BIKE, orchestrator=orchestrator)
    instance.send_event("decision", {"approved": False})
    instance.result(20)
    page.goto(f"/workflows/browser_purchase/{instance.id}")
    row(page, "wait:decision:1").locator(".wf-step").click()
    row(page, "wait:decision:1").get_by_role("button", name="Restart from this step").click()
    page.locator("dialog[open]").get_by_role("button", name="Restart from here").click()
    status(page, "waiting")
    expect(row(page, "do:apologise:1")).to_have_count(0)
    expect(row(page, "do:quote:1")).to_contain_text("done")


def test_an_error_of_a_verb_is_told_in_its_dialog(page: Any, orchestrator: Orchestrator) -> None:
    instance = browser_purchase.create(BIKE, orchestrator=orchestrator)
    page.goto(f"/workflows/browser_purchase/{instance.id}")
    status(page, "waiting")
    page.click("#wf-send-event")
    dialog = page.locator("dialog[open]")
    dialog.get_by_label("Type").fill("decision")
    instance.delete()
    dialog.get_by_role("button", name="Send").click()
    expect(dialog.locator(".wf-error")).to_contain_text("there is no instance")


def test_parent_and_child_lead_to_each_other(page: Any, orchestrator: Orchestrator) -> None:
    instance = browser_parent.create({}, orchestrator=orchestrator)
    page.goto(f"/workflows/browser_parent/{instance.id}")
    expect(node(page, "buy")).to_have_attribute("data-state", "waiting")
    page.locator("#wf-values").get_by_role("link", name="browser_purchase").click()
    status(page, "waiting")
    page.locator("#wf-facts").get_by_role("link", name="browser_parent").click()
    status(page, "waiting")
    assert page.url.endswith(f"/browser_parent/{instance.id}")


def test_where_streams_are_cut_the_page_asks(page: Any, orchestrator: Orchestrator) -> None:
    """semantics §7: who cannot follow a stream sees the same, a little later."""
    page.route(
        "**/events?*",
        lambda route: route.abort() if route.request.resource_type == "eventsource" else route.continue_(),
    )
    instance = browser_purchase.create(BIKE, orchestrator=orchestrator)
    page.goto(f"/workflows/browser_purchase/{instance.id}")
    status(page, "waiting")
    expect(page.locator("#wf-live")).to_contain_text("asks every")
    instance.send_event("decision", {"approved": True})
    status(page, "complete")
    expect(node(page, "card number")).to_have_attribute("data-state", "done")


def test_a_stream_that_breaks_goes_on_where_it_broke_off(page: Any, orchestrator: Orchestrator) -> None:
    """semantics §7: a subscription goes on behind its cursor, here ``Last-Event-ID``."""
    instance = browser_purchase.create(BIKE, orchestrator=orchestrator)
    page.goto(f"/workflows/browser_purchase/{instance.id}")
    expect(page.locator("#wf-live")).to_have_text("live")
    page.context.set_offline(True)
    instance.send_event("decision", {"approved": True})
    instance.result(20)
    page.context.set_offline(False)
    status(page, "complete")
    expect(row(page, "do:order:1")).to_contain_text("done")


def test_by_keyboard_alone(page: Any, orchestrator: Orchestrator) -> None:
    instance = browser_purchase.create(BIKE, orchestrator=orchestrator)
    page.goto(f"/workflows/browser_purchase/{instance.id}")
    expect(node(page, "decision")).to_have_attribute("data-state", "waiting")
    node(page, "decision").focus()
    page.keyboard.press("Enter")
    expect(page.locator("dialog[open]").get_by_label("Type")).to_have_value("decision")
    page.keyboard.press("Escape")
    expect(page.locator("dialog[open]")).to_have_count(0)
    row(page, "do:quote:1").locator(".wf-step").focus()
    page.keyboard.press("Enter")
    expect(row(page, "do:quote:1").locator(".wf-details")).to_contain_text("length")


def test_from_a_task_to_its_instance_and_back(page: Any, orchestrator: Orchestrator) -> None:
    """design §4: the step tasks are ordinary Celery tasks, and Flower knows them."""
    for _ in range(20):  # Flower hears of workers, and their events, a moment after it started
        instance = browser_purchase.create(BIKE, orchestrator=orchestrator)
        page.goto(f"/workflows/browser_purchase/{instance.id}")
        expect(row(page, "do:quote:1")).to_contain_text("done")
        page.wait_for_timeout(300)
        row(page, "do:quote:1").locator(".wf-step").click()
        tasks = row(page, "do:quote:1").locator('.wf-details a[href*="/task/"]')
        expect(row(page, "do:quote:1").locator(".wf-details")).to_be_visible()
        if tasks.count():
            break
    tasks.first.click()
    page.wait_for_url("**/task/*")
    page.get_by_role("link", name="go to the instance").click()
    page.wait_for_url(f"**/browser_purchase/{instance.id}#step-*")
    expect(row(page, "do:quote:1").locator(".wf-details")).to_be_visible()

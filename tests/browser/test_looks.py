"""What the pages look like, for whom they open, and that they stay quick; screenshots with ORCHESTRATOR_SCREENSHOTS."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from orchestrator import Orchestrator
from orchestrator.client.instance import WorkflowInstance
from tests.browser.conftest import watched
from tests.browser.flows import browser_order, browser_purchase, browser_shown, browser_slow

expect = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra `test`)").expect
pytestmark = [pytest.mark.browser, pytest.mark.integration]

BIKE = {"item": "a bike", "price": 100, "extras": ["a bell", "a lock"]}
LONG = 10_000
CAROL = {"username": "carol", "password": "secret"}


@pytest.fixture(scope="module")
def waiting(orchestrator: Orchestrator, worker: Any) -> WorkflowInstance:
    return browser_purchase.create(BIKE, id="looks-waiting", orchestrator=orchestrator)


@pytest.fixture(scope="module")
def undone(orchestrator: Orchestrator, worker: Any) -> WorkflowInstance:
    return browser_order.create({"stuck": True}, id="looks-undone", orchestrator=orchestrator)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_pages_fit_wide_and_narrow_light_and_dark(
    browser: Any, flower: str, waiting: WorkflowInstance, undone: WorkflowInstance, theme: str, width: int
) -> None:
    """Nothing sticks out at the side, and text can be read on what it stands on (WCAG 2, 4.5:1)."""
    options = {"color_scheme": theme, "viewport": {"width": width, "height": 900}}
    folder = os.environ.get("ORCHESTRATOR_SCREENSHOTS")
    with watched(browser, base_url=flower, **options) as page:
        for name, path in (
            ("list", "/workflows"),
            ("workflow", "/workflows/browser_purchase"),
            ("waiting", f"/workflows/browser_purchase/{waiting.id}"),
            ("undone", f"/workflows/browser_order/{undone.id}"),
        ):
            page.goto(path)
            if name in ("waiting", "undone"):
                state = "waiting" if name == "waiting" else "compensation_failed"
                expect(page.locator(f'#wf-picture .leaf[data-state="{state}"]')).to_have_count(1)
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (name, width)
            assert page.evaluate(_PALE) == [], (name, theme)
            if folder:
                page.screenshot(path=Path(folder) / f"{name}-{theme}-{width}.png", full_page=True)


_PALE = """() => {
  const parse = (c) => (c.match(/[\\d.]+/g) || []).map(Number);
  const lum = (c) => { const f = (v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
    return 0.2126 * f(c[0]) + 0.7152 * f(c[1]) + 0.0722 * f(c[2]); };
  const ground = (el) => { for (let e = el; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || (c.length === 4 && c[3] === 1)) return c; }
    return [255, 255, 255]; };
  const pale = [];
  document.querySelectorAll(".wf *").forEach((el) => {
    const said = [...el.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!said || el.closest("svg, :disabled, dialog") || !el.checkVisibility()) return;
    const [a, b] = [lum(parse(getComputedStyle(el).color)), lum(ground(el))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) pale.push(el.className + " " + el.textContent.trim().slice(0, 30) + " " + ratio.toFixed(2));
  });
  return pale;
}"""


def test_the_theme_that_a_reader_chose_is_that_of_the_picture(page: Any, waiting: WorkflowInstance) -> None:
    page.goto(f"/workflows/browser_purchase/{waiting.id}")
    picture = page.locator("#wf-picture svg.orchestrator-diagram")
    expect(picture).to_have_attribute("data-theme", "light")
    page.click("#theme-toggle")
    page.click('[data-bs-theme-value="dark"]')
    expect(picture).to_have_attribute("data-theme", "dark")


def test_instances_are_filtered_searched_and_paged(page: Any, orchestrator: Orchestrator) -> None:
    """semantics §6: listing is by cursor."""
    ids = [f"napper-{n:03d}" for n in range(120)]
    browser_shown.create_batch([{"id": each} for each in ids], orchestrator=orchestrator)
    page.goto("/workflows/browser_shown")
    rows = page.locator("#wf-instances tbody tr")
    expect(rows).to_have_count(50)
    seen = rows.locator("th").all_inner_texts()
    page.get_by_role("link", name="Next").click()
    page.wait_for_url("**cursor=**")
    assert not set(seen) & set(rows.locator("th").all_inner_texts())
    page.get_by_role("link", name="Newest").click()
    page.get_by_label("Search instances").fill("napper-07")
    page.get_by_role("button", name="Search").click()
    page.wait_for_url("**q=napper-07**")
    expect(rows).to_have_count(10)
    page.goto("/workflows/browser_shown?status=waiting")
    expect(rows.locator(".wf-chip").first).to_have_text("waiting")
    page.goto("/workflows/browser_shown?status=errored")
    expect(page.locator("#wf-instances")).to_contain_text("No instance fits.")


def test_what_strangers_sent_is_text(page: Any, orchestrator: Orchestrator) -> None:
    """Names of steps, values and errors come from anywhere: none of them is ever run."""
    nasty = "<img src=x onerror=\"document.title='owned'\"></pre><script>document.title='owned'</script>"
    instance = browser_shown.create({"name": nasty}, orchestrator=orchestrator)
    page.goto(f"/workflows/browser_shown/{instance.id}")
    row = page.locator("#wf-rows > li", has_text="onerror")
    expect(row).to_contain_text("done")
    row.locator(".wf-step").click()
    expect(row.locator(".wf-details")).to_contain_text("onerror")
    instance.send_event("end", nasty)
    expect(page.locator("#wf-status")).to_have_text("errored")
    expect(page.locator("#wf-alerts")).to_contain_text("onerror")
    assert "owned" not in page.title()
    assert page.locator("#wf-alerts img, #wf-rows img, #wf-values img").count() == 0


def test_ten_thousand_steps(page: Any, orchestrator: Orchestrator) -> None:
    """An instance of 10,000 steps opens at once, and its timeline comes as one scrolls."""
    instance = browser_slow.create({"times": 1, "seconds": 0}, id="long", orchestrator=orchestrator)
    instance.result(20)
    with (
        orchestrator.engine.begin() as connection
    ):  # nine thousand nine hundred and ninety-nine like the first
        connection.execute(text(_MORE), {"name": instance.id, "last": LONG})
    page.goto("/workflows")
    began = time.perf_counter()
    page.goto("/workflows/browser_slow/long", wait_until="load")
    took = time.perf_counter() - began
    print(f"an instance of {LONG} steps opens in {took:.2f} s")
    assert took < 10, "it opens under 1 s where nothing else runs"
    rows = page.locator("#wf-rows > li")
    assert rows.count() <= 200
    expect(page.locator("#wf-step-count")).to_contain_text("10,000")
    expect(page.locator('#wf-picture [data-step="nap"] .badge')).to_contain_text("10000")
    before = rows.count()
    rows.last.scroll_into_view_if_needed()
    expect(rows.nth(before)).to_be_attached()
    page.locator('#wf-picture [data-step="nap"]').click()  # the last one, without all those before it
    expect(page.locator(f'li[data-key="do:nap:{LONG}"] .wf-details')).to_be_visible()
    page.get_by_role("button", name="From the first").click()
    expect(page.locator('li[data-key="do:nap:1"]')).to_be_visible()


_MORE = """
INSERT INTO orchestrator_steps (instance_id, key, kind, status, started_seq, started_at, finished_seq, finished_at,
  attempt, fence, config, label, output, line, handed_at, claimed_at)
SELECT s.instance_id, 'do:nap:' || n, s.kind, s.status, s.started_seq + 2 * n, s.started_at + n * interval '10 ms',
  s.finished_seq + 2 * n, s.finished_at + n * interval '10 ms', s.attempt, s.fence, s.config, s.label, s.output, s.line,
  s.handed_at + n * interval '10 ms', s.claimed_at + n * interval '10 ms'
FROM orchestrator_steps s JOIN orchestrator_instances i ON i.id = s.instance_id, generate_series(2, :last) n
WHERE i.workflow = 'browser_slow' AND i.name_id = :name AND s.key = 'do:nap:1'
"""


# -- who may see it, and do what ----------------------------------------------------------------------------------


def test_read_only_hides_every_action(
    browser: Any, guarded: str, waiting: WorkflowInstance, orchestrator: Orchestrator
) -> None:
    """A Flower with ``--read_only`` shows everything and offers nothing; the API refuses what is tried all the same."""
    with watched(browser, http_credentials=CAROL) as page:
        page.goto(f"{guarded}/workflows/browser_purchase")
        expect(page.get_by_role("link", name=waiting.id)).to_be_visible()
        assert page.locator("#wf-trigger, dialog").count() == 0
        page.goto(f"{guarded}/workflows/browser_purchase/{waiting.id}")
        expect(page.locator("#wf-status")).to_have_text("waiting")
        assert page.locator(".wf-actions, dialog, form.wf-form").count() == 0
        page.locator('#wf-picture [data-step="decision"]').click()
        expect(page.locator('li[data-key="wait:decision:1"] .wf-details')).to_be_visible()
        assert page.locator("dialog[open], .wf-details button").count() == 0
        answer = page.evaluate(
            _POST, f"{guarded}/api/workflows/browser_purchase/instances/{waiting.id}/pause"
        )
        assert (answer["status"], answer["code"]) == (403, "forbidden")
    assert waiting.status().status == "waiting"


_POST = """async (address) => {
  const token = document.cookie.match(/_xsrf=([^;]*)/)[1];
  const answer = await fetch(address, {method: "POST", headers: {"X-XSRFToken": token}});
  return {status: answer.status, code: (await answer.json()).error.code};
}"""


def test_under_a_prefix_every_link_and_fetch_has_it(
    browser: Any, guarded: str, orchestrator: Orchestrator
) -> None:
    """``--url_prefix``: the page asks for nothing outside of it, and still moves."""
    asked: list[str] = []
    with watched(browser, http_credentials=CAROL) as page:
        page.on("request", lambda request: asked.append(request.url))
        instance = browser_purchase.create(BIKE, orchestrator=orchestrator)
        page.goto(f"{guarded}/workflows")
        page.get_by_role("link", name="browser_purchase").click()
        page.get_by_role("link", name=instance.id).click()
        expect(page.locator('#wf-picture [data-step="decision"]')).to_have_attribute("data-state", "waiting")
        expect(page.locator("#wf-live")).to_have_text("live")
        instance.send_event("decision", {"approved": True})
        expect(page.locator("#wf-status")).to_have_text("complete")
        links = page.eval_on_selector_all("a[href]", "all => all.map((a) => a.href)")
    host = guarded.removesuffix("/watch/it")
    ours = [each for each in [*asked, *links] if each.startswith(host)]
    assert [each for each in ours if not each.startswith(f"{guarded}/") and each != guarded] == []


def test_without_a_password_nothing_answers(browser: Any, guarded: str, waiting: WorkflowInstance) -> None:
    context = browser.new_context()
    one = f"/workflows/browser_purchase/{waiting.id}"
    for path in (
        "/workflows",
        "/workflows/browser_purchase",
        one,
        f"{one}/timeline",
        "/workflows-assets/forms.js",
    ):
        answer = context.request.get(f"{guarded}{path}")
        assert (answer.status, answer.text()) == (401, "Access denied"), path
    context.close()

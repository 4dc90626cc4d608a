/* An instance as it goes on: the server tells what happens, and the parts that it changes are fetched anew.
 *
 * Events come as a stream, which the browser takes up again by itself where it broke off (Last-Event-ID). Where streams
 * do not get through (some proxies), the page asks for events every few seconds instead.
 */
"use strict";

(function () {
  const { api, say, open, refresh, timeline } = window.Workflows;
  const here = document.getElementById("wf-instance").dataset;
  const picture = document.querySelector("#wf-picture svg");
  const told = document.getElementById("wf-live");
  const SOON_MS = 250;
  const POLL_MS = 3000;
  const IDLE_MS = 10000;
  const TYPES = ["workflow_queued", "workflow_started", "workflow_running", "workflow_waiting", "workflow_waiting_for_pause",
    "workflow_paused", "workflow_completed", "workflow_errored", "workflow_terminated"]
    .concat(...["step", "attempt", "sleep", "rollback", "rollback_step", "rollback_attempt"]
      .map((of) => ["started", "completed", "errored"].map((end) => of + "_" + end)), "wait_started", "wait_completed", "wait_timed_out");
  let cursor = parseInt(here.cursor, 10);
  let source = null;
  let failures = 0;
  let poll = 0;
  let isAsking = false;
  let changed = new Set();
  let isStale = false;
  let timer = 0;
  let tookMs = 0;
  let run = head().run;

  window.Workflows.seq = () => Math.floor(cursor / 8); // of the last fact that is known

  function head() {
    const data = document.getElementById("wf-head").dataset;
    return { status: data.status, isOver: data.finished === "1", run: data.run };
  }

  /** The keys that an event may be about: it tells the name of a step, not whether that is a body or a child. */
  function keys(event) {
    if (!event.step_name) return [];
    const rest = ":" + event.step_name + ":" + (event.count || 1);
    const kinds = event.type.startsWith("sleep") ? ["sleep"] : event.type.startsWith("wait") ? ["wait"] : ["do", "invoke"];
    if (!event.type.startsWith("rollback")) return kinds.map((kind) => kind + rest);
    return ["do", "wait", "invoke"].map((kind) => kind + rest + ":rollback");
  }

  function hear(event) {
    if (event.event_id <= cursor) return;
    cursor = event.event_id;
    keys(event).forEach((key) => changed.add(key));
    soon();
  }

  /** Bring the page up to date a moment from now, with all that happens until then; less often where it takes long. */
  function soon() {
    isStale = true;
    if (!timer) timer = window.setTimeout(catchUp, Math.max(SOON_MS, 3 * tookMs));
  }

  async function catchUp() {
    const wanted = changed;
    changed = new Set();
    isStale = false; // what happens from here on may not be in what is fetched
    const began = performance.now();
    try {
      const before = head().status;
      const status = await refresh(here.at + "?part=standing");
      if (status === 404) return gone();
      if (head().status !== before) announce(head().status);
      const isOther = head().run !== run;
      run = head().run;
      const trace = await api(here.api + "/trace");
      if (picture && trace.trace) paint(trace);
      await (isOther ? timeline.reload() : timeline.update(wanted));
      timeline.live(!head().isOver);
    } catch {
      wanted.forEach((key) => changed.add(key));
      isStale = true;
      tookMs = 1000;
    }
    tookMs = Math.max(tookMs / 2, performance.now() - began);
    timer = 0;
    if (isStale) soon();
    else if (!head().isOver && !source && !isAsking && !document.hidden) listen();
    return null;
  }

  function paint(document_) {
    window.orchestratorDiagram.apply(picture, document_.trace);
    document.getElementById("wf-step-count").textContent = document_.step_count.toLocaleString() + " steps";
    const rest = document.getElementById("wf-rest");
    rest.hidden = !document_.trace.rest_total;
    rest.querySelector("b").textContent = document_.trace.rest_total;
    lastKeys = Object.fromEntries(Object.entries(document_.trace.nodes).map(([id, node]) => [id, node.last]));
  }

  /** For who does not see the page change: an element that stays, for one that is replaced says nothing. */
  function announce(status) {
    document.getElementById("wf-announced").textContent = "The instance is now " + status.replaceAll("_", " ") + ".";
  }

  function gone() {
    stop();
    told.textContent = "deleted";
    say("The instance has been deleted.");
  }

  // -- hearing ------------------------------------------------------------------------------------------------

  function listen() {
    isAsking = false;
    if (!window.EventSource) return ask();
    source = new EventSource(here.api + "/events?after=" + cursor, { withCredentials: true });
    source.onopen = () => {
      failures = 0;
      window.clearTimeout(poll);
      poll = 0;
      told.textContent = "live";
    };
    source.onerror = () => {
      if (head().isOver) return stop();
      failures += 1;
      told.textContent = "reconnecting…";
      if (source.readyState !== EventSource.CLOSED && failures < 3) return;
      stop();
      ask();
    };
    const on = (message) => {
      const event = JSON.parse(message.data);
      hear(event);
      if (/^workflow_(completed|errored|terminated)$/.test(event.type)) stop();
    };
    source.onmessage = on;
    TYPES.forEach((type) => source.addEventListener(type, on));
    return null;
  }

  function stop() {
    isAsking = false;
    if (source) source.close();
    source = null;
    window.clearTimeout(poll);
    poll = 0;
    told.textContent = head().isOver ? "" : told.textContent;
  }

  /** Without a stream: what has happened since, every few seconds; now and then the stream is tried again. */
  async function ask() {
    isAsking = true;
    told.textContent = "asks every " + POLL_MS / 1000 + " s";
    try {
      let page;
      do {
        page = await api(here.api + "/events?after=" + cursor, { headers: { Accept: "application/json" } });
        page.events.forEach(hear);
        cursor = Math.max(cursor, page.cursor === null ? cursor : page.cursor);
      } while (page.has_more);
      failures += 1;
      if (failures % 10 === 0 && !page.is_over) return listen();
      if (page.is_over) isAsking = false;
    } catch (error) {
      told.textContent = error.message;
      soon(); // it may be gone
    }
    if (!isAsking) return null;
    poll = window.setTimeout(ask, POLL_MS);
    return null;
  }

  // -- the picture --------------------------------------------------------------------------------------------

  let lastKeys = {};

  /** A click on a node: an event for the one that waits, else its step in the timeline. */
  function choose(node) {
    const state = node.dataset.state;
    const last = lastKeys[node.dataset.node];
    if (node.dataset.type === "step_wait_for_event" && state === "waiting" && !here.readOnly && last) {
      api(here.api + "/steps/" + encodeURIComponent(last)).then(
        (step) => open(document.getElementById("wf-event-dialog"), { type: step.config.type }),
        (error) => say(error.message));
    } else if (last) {
      timeline.show(last);
    }
  }

  if (picture) {
    const chosen = (event) => event.target.closest(".leaf[data-node]");
    picture.addEventListener("click", (event) => chosen(event) && choose(chosen(event)));
    picture.addEventListener("keydown", (event) => {
      if ((event.key !== "Enter" && event.key !== " ") || !chosen(event) || event.target.closest("a")) return;
      event.preventDefault();
      choose(chosen(event));
    });
    api(here.api + "/trace").then((trace) => trace.trace && paint(trace)).catch(() => {});
  }
  document.addEventListener("workflows:changed", soon);
  window.addEventListener("pagehide", stop);
  // A browser opens but six connections to a server: pages that nobody looks at hold none.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) stop();
    else if (!head().isOver && !source) listen();
  });
  window.setInterval(() => !document.hidden && head().isOver && soon(), IDLE_MS);
  if (!head().isOver) listen();
})();

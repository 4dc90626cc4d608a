/* The timeline of an instance: rows that come as one scrolls, an axis that grows with time, details on demand.
 *
 * The server says where a bar begins and ends, in seconds since the axis began (--a, --b); the style sheet draws it from
 * that and from --from, --span and --now of the timeline. So a second that passes changes three numbers, not every row.
 */
"use strict";

(function () {
  const root = document.getElementById("wf-timeline");
  if (!root) return;
  const here = document.getElementById("wf-instance").dataset;
  const list = document.getElementById("wf-rows");
  const more = document.getElementById("wf-more");
  const first = document.getElementById("wf-first");
  const BEFORE = 40; // how far before a step its page begins, in facts: a step is two or more
  const fit = document.getElementById("wf-fit");
  const loadedAt = performance.now();
  let isLive = root.dataset.liveAxis === "1";
  let end = parseFloat(root.style.getPropertyValue("--span"));
  let loading = null;

  const now = () => parseFloat(root.dataset.now) + (performance.now() - loadedAt) / 1000;

  function span(seconds) {
    if (seconds < 1) return Math.round(seconds * 1000) + " ms";
    if (seconds < 120) return +seconds.toPrecision(3) + " s";
    if (seconds < 7200) return Math.round(seconds / 6) / 10 + " min";
    if (seconds < 172800) return Math.round(seconds / 360) / 10 + " h";
    return Math.round(seconds / 8640) / 10 + " d";
  }

  function range() {
    if (!fit.checked) return [0, end];
    let first = Infinity;
    let last = -Infinity;
    list.querySelectorAll(".wf-bar").forEach((bar) => {
      const b = bar.style.getPropertyValue("--b");
      first = Math.min(first, parseFloat(bar.style.getPropertyValue("--a")));
      last = Math.max(last, b.startsWith("var") ? now() : parseFloat(b));
    });
    return first < last ? [first, last - first] : [0, end];
  }

  function draw() {
    if (isLive) end = Math.max(now(), 0.001);
    root.classList.toggle("wf-long", list.children.length > 200);
    const [from, length] = range();
    root.style.setProperty("--now", now().toFixed(3));
    root.style.setProperty("--from", from.toFixed(3));
    root.style.setProperty("--span", length.toFixed(3));
    root.querySelectorAll(".wf-ticks i").forEach((tick, i) => (tick.textContent = span(from + (length * i) / 4)));
  }

  /** The rows of a part of the timeline, and the place where the next page begins. */
  async function rows(query) {
    const address = here.at + "/timeline?origin=" + root.dataset.origin + "&" + query;
    const answer = await fetch(address, { credentials: "same-origin" });
    if (!answer.ok) throw new Error("Flower answers " + answer.status);
    const part = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("wf-rows");
    return { rows: [...part.children], next: part.dataset.next };
  }

  async function load() {
    if (loading || !list.dataset.next) return loading;
    loading = rows("after=" + list.dataset.next).then((part) => {
      const known = new Set([...list.children].map((row) => row.id));
      list.append(...part.rows.filter((row) => !known.has(row.id)));
      list.dataset.next = part.next;
      more.hidden = !part.next;
      draw();
    });
    try {
      await loading;
    } catch (error) {
      window.Workflows.say("The steps could not be loaded. " + error.message);
    } finally {
      loading = null;
    }
    return null;
  }

  /** Fetch these steps anew. One that is not there yet is put at the end, if all before it are loaded. */
  async function update(keys) {
    const wanted = [...keys].filter((key) => !list.dataset.next || document.getElementById("step-" + key));
    for (let i = 0; i < wanted.length; i += 50) {
      const query = wanted.slice(i, i + 50).map((key) => "key=" + encodeURIComponent(key)).join("&");
      for (const row of (await rows(query)).rows) put(row);
    }
    draw();
  }

  function put(row) {
    const old = document.getElementById(row.id);
    if (!old) {
      const place = (element) => parseInt(element.dataset.place, 10);
      const after = [...list.children].reverse().find((each) => place(each) < place(row));
      if (after) after.after(row);
      else if (!list.dataset.first) list.prepend(row);
      return;
    }
    if (old.querySelector(".wf-track").innerHTML === row.querySelector(".wf-track").innerHTML
      && old.querySelector(".wf-step").textContent === row.querySelector(".wf-step").textContent) return;
    const hadFocus = old.contains(document.activeElement);
    const details = old.querySelector(".wf-details");
    old.replaceWith(row);
    if (hadFocus) row.querySelector(".wf-step").focus();
    if (details) open(row);
  }

  async function open(row) {
    const button = row.querySelector(".wf-step");
    button.setAttribute("aria-expanded", "true");
    try {
      const answer = await fetch(button.dataset.address + "?part=1", { credentials: "same-origin" });
      if (!answer.ok) throw new Error("Flower answers " + answer.status + ".");
      const part = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("wf-step-details");
      part.removeAttribute("id");
      row.querySelectorAll(".wf-details").forEach((old) => old.remove());
      if (button.getAttribute("aria-expanded") !== "true") return;
      row.append(part);
      window.Workflows.times(part);
    } catch (error) {
      button.setAttribute("aria-expanded", "false");
      window.Workflows.say("The step could not be loaded. " + error.message);
    }
  }

  function shut(row) {
    row.querySelector(".wf-step").setAttribute("aria-expanded", "false");
    row.querySelectorAll(".wf-details").forEach((part) => part.remove());
  }

  /** Show the steps that started after a place, instead of those that are shown. */
  async function jump(place) {
    const part = await rows("after=" + Math.max(0, place));
    list.replaceChildren(...part.rows);
    list.dataset.next = part.next;
    list.dataset.first = place > 0 ? "1" : "";
    first.hidden = !(place > 0);
    more.hidden = !part.next;
    draw();
  }

  /** Bring the step into view, with its details; where it is not loaded, with what started a little before it. */
  async function show(key) {
    if (!document.getElementById("step-" + key)) {
      const found = (await rows("key=" + encodeURIComponent(key))).rows[0];
      if (!found) return;
      await jump(parseInt(found.dataset.place, 10) - BEFORE);
    }
    const row = document.getElementById("step-" + key);
    if (!row) return;
    list.querySelectorAll(".wf-found").forEach((old) => old.classList.remove("wf-found"));
    row.classList.add("wf-found");
    await open(row);
    row.scrollIntoView({ block: "center", behavior: "smooth" });
    row.querySelector(".wf-step").focus({ preventScroll: true });
  }

  /** The instance ended (or goes on again): the axis stands still (or grows). */
  function live(isGoing) {
    if (isLive && !isGoing) end = Math.max(now(), 0.001);
    isLive = isGoing;
    draw();
  }

  list.addEventListener("click", (event) => {
    const button = event.target.closest(".wf-step");
    if (!button) return;
    if (button.getAttribute("aria-expanded") === "true") shut(button.closest(".wf-row"));
    else open(button.closest(".wf-row"));
  });
  fit.addEventListener("change", draw);
  more.querySelector("button").addEventListener("click", load);
  more.hidden = !list.dataset.next;
  new IntersectionObserver((seen) => seen.some((each) => each.isIntersecting) && load(), { rootMargin: "600px" }).observe(more);
  window.setInterval(() => isLive && !document.hidden && draw(), 1000);
  draw();
  if (window.location.hash.startsWith("#step-")) show(decodeURIComponent(window.location.hash.slice(6))).catch(() => {});

  const failed = (error) => window.Workflows.say("The steps could not be loaded. " + error.message);
  first.addEventListener("click", () => jump(0).catch(failed));
  document.getElementById("wf-last").addEventListener("click", () => jump(window.Workflows.seq() - 2 * BEFORE).then(
    () => list.lastElementChild && list.lastElementChild.scrollIntoView({ block: "center" }), failed));
  window.Workflows.timeline = { update: update, show: (key) => show(key).catch(failed), live: live, reload: () => jump(0) };
})();

/* Parts of a page that stay up to date: elements with data-live, named by their id.
 *
 * Workflows.refresh(address) fetches the page (or a part of it) anew and replaces each such element whose content is
 * another one; the keyboard's focus stays where it was. A page whose <main> has data-every="seconds" does so by itself
 * while it is looked at.
 */
"use strict";

(function () {
  function replace(old, fresh) {
    if (old.outerHTML === fresh.outerHTML) return;
    const focused = old.contains(document.activeElement) ? document.activeElement.id : "";
    old.replaceWith(document.adoptNode(fresh));
    if (focused && document.getElementById(focused)) document.getElementById(focused).focus();
    times(fresh);
  }

  /** Write the moments of a part as this browser's clock has them: <time datetime="…">. */
  function times(root) {
    root.querySelectorAll("time[datetime]").forEach((element) => {
      const at = new Date(element.dateTime);
      const today = new Date().toDateString() === at.toDateString();
      element.textContent = today ? at.toLocaleTimeString() : at.toLocaleString();
      element.title = at.toLocaleString(undefined, { dateStyle: "full", timeStyle: "long" });
    });
  }

  async function refresh(address) {
    const answer = await fetch(address || window.location.href, { credentials: "same-origin" });
    if (answer.status === 404) return answer.status;
    if (!answer.ok) throw new Error(answer.status);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    fresh.querySelectorAll("[data-live]").forEach((element) => {
      times(element);
      const old = document.getElementById(element.id);
      if (old) replace(old, element);
    });
    return answer.status;
  }

  function start() {
    times(document);
    const root = document.querySelector("[data-every]");
    if (!root) return;
    const again = () => {
      if (!document.hidden && !document.querySelector("dialog[open]")) refresh().catch(() => {});
    };
    window.setInterval(again, 1000 * parseFloat(root.dataset.every));
    document.addEventListener("workflows:changed", again);
  }

  Object.assign(window.Workflows, { refresh: refresh, times: times });
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();

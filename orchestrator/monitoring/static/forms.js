/* Forms that call the JSON API, and the dialogs they stand in.
 *
 * <button data-opens="ID" data-fill='{"field": "value"}'>  opens <dialog id="ID"> with those fields filled in.
 * <form class="wf-form" action="API address" data-method="POST" data-then="address of a page, {id} of the answer">
 *   Fields go into a JSON object by name; data-kind says what they hold: json, int, bool, else text. Empty ones stay
 *   out. What the server refuses is shown in the form's .wf-error. Afterwards the document hears "workflows:changed".
 */
"use strict";

(function () {
  function cookie(name) {
    const found = document.cookie.match("(?:^|; )" + name + "=([^;]*)");
    return found ? decodeURIComponent(found[1]) : "";
  }

  /** The parsed answer of the API. Throws an Error with the server's own words. */
  async function api(address, options) {
    const asked = Object.assign({ credentials: "same-origin", headers: {} }, options);
    if (asked.method && asked.method !== "GET") {
      asked.headers["X-XSRFToken"] = cookie("_xsrf");
      asked.headers["Content-Type"] = "application/json";
    }
    let answer;
    try {
      answer = await fetch(address, asked);
    } catch {
      throw new Error("Flower does not answer. Nothing is known of what became of the request.");
    }
    const text = await answer.text();
    let document_ = null;
    try {
      document_ = text ? JSON.parse(text) : null;
    } catch {
      /* a proxy's page, say */
    }
    if (!answer.ok) {
      const error = (document_ && document_.error) || {};
      throw new Error(error.message || "Flower answers " + answer.status + " " + answer.statusText + ".");
    }
    return document_;
  }

  function say(text) {
    const line = document.getElementById("wf-said");
    if (!line) return;
    line.textContent = text;
    line.classList.add("wf-fresh");
    window.clearTimeout(say.timer);
    say.timer = window.setTimeout(() => line.classList.remove("wf-fresh"), 4000);
  }

  /** Whether the text is JSON; says so at the field. An empty one is, if it need not be filled in. */
  function checkJson(field) {
    let problem = "";
    if (field.value.trim()) {
      try {
        JSON.parse(field.value);
      } catch (error) {
        problem = "Not JSON: " + error.message + ". Text needs its double quotes.";
      }
    } else if (field.required) {
      problem = "Fill this in.";
    }
    const place = document.getElementById(field.getAttribute("aria-describedby"));
    if (place) place.textContent = problem;
    field.setAttribute("aria-invalid", problem ? "true" : "false");
    return !problem;
  }

  function body(form) {
    const found = {};
    for (const field of form.elements) {
      if (!field.name || field.disabled) continue;
      if (field.type === "checkbox") found[field.name] = field.checked;
      else if (!field.value.trim()) continue;
      else if (field.dataset.kind === "json") found[field.name] = JSON.parse(field.value);
      else if (field.dataset.kind === "int") found[field.name] = parseInt(field.value, 10);
      else found[field.name] = field.value.trim();
    }
    return found;
  }

  async function send(form) {
    const place = form.querySelector(".wf-error");
    const show = (text) => {
      if (place) place.textContent = text;
      else if (text) say(text);
    };
    const json = [...form.elements].filter((field) => field.dataset && field.dataset.kind === "json");
    const wrong = json.filter((field) => !checkJson(field));
    if (wrong.length) return void wrong[0].focus();
    if (!form.reportValidity()) return;
    const buttons = form.querySelectorAll("button[type=submit]");
    const method = form.dataset.method || "POST";
    show("");
    buttons.forEach((button) => (button.disabled = true));
    try {
      const options = { method: method };
      if (method !== "DELETE") options.body = JSON.stringify(body(form));
      const answer = await api(form.getAttribute("action"), options);
      const dialog = form.closest("dialog");
      if (dialog) dialog.close();
      if (form.dataset.then) {
        const id = encodeURIComponent((answer && answer.id) || "");
        window.location.assign(form.dataset.then.replace("%7Bid%7D", id).replace("{id}", id));
        return;
      }
      say(form.dataset.said || "Done.");
      document.dispatchEvent(new CustomEvent("workflows:changed"));
    } catch (error) {
      show(error.message);
    } finally {
      buttons.forEach((button) => (button.disabled = false));
    }
  }

  function open(dialog, fill) {
    const form = dialog.querySelector("form");
    if (form) form.reset();
    dialog.querySelectorAll(".wf-error, .wf-hint-error").forEach((place) => (place.textContent = ""));
    dialog.querySelectorAll("[aria-invalid]").forEach((field) => field.removeAttribute("aria-invalid"));
    for (const [name, value] of Object.entries(fill || {})) {
      dialog.querySelectorAll('[name="' + name + '"]').forEach((field) => (field.value = value));
      dialog.querySelectorAll('[data-told="' + name + '"]').forEach((place) => (place.textContent = value));
    }
    dialog.showModal();
  }

  document.addEventListener("click", (event) => {
    const opener = event.target.closest("[data-opens]");
    if (opener && !opener.disabled) {
      event.preventDefault();
      open(document.getElementById(opener.dataset.opens), JSON.parse(opener.dataset.fill || "{}"));
    } else if (event.target.closest("[data-closes]")) {
      event.target.closest("dialog").close();
    } else if (event.target instanceof HTMLDialogElement) {
      event.target.close(); // beside the dialog, on what dims the page
    }
  });
  document.addEventListener("submit", (event) => {
    if (!event.target.classList.contains("wf-form")) return;
    event.preventDefault();
    send(event.target);
  });
  document.addEventListener("input", (event) => {
    if (event.target.dataset.kind === "json") checkJson(event.target);
  });

  window.Workflows = { api: api, say: say, open: open };
})();

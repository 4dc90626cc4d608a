/* Diagrams have the theme of the page, which its reader may have chosen against that of the system. */
"use strict";

(function () {
  function paint() {
    const theme = document.documentElement.dataset.bsTheme || "light";
    document.querySelectorAll("svg.orchestrator-diagram").forEach((picture) => (picture.dataset.theme = theme));
  }
  new MutationObserver(paint).observe(document.documentElement, { attributeFilter: ["data-bs-theme"] });
  paint();
})();

// What both pages do first: load the runs, render the page, and redraw it when the colour scheme changes.

import { byId, guarded } from "./dom.js";
import { loadRuns } from "./runs.js";

/** Start a page. `render` shows it and returns a function that redraws its plots. */
export const start = guarded(async (render) => {
  await loadRuns();
  document.body.classList.remove("waiting");
  const redraw = await render();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
});

// Browsers offer the clipboard only to pages of this machine and of https. Elsewhere, the address bar has the link.
byId("copy").hidden = !navigator.clipboard;
byId("copy").addEventListener("click", guarded(async () => {
  await navigator.clipboard.writeText(location.href);
  byId("copy").textContent = "Copied";
  setTimeout(() => { byId("copy").textContent = "Copy link"; }, 2000);
}));

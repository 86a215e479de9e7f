// The explorer: connects its parts and requests new results whenever the state changes.

import { byId, debounced, guarded, showError } from "./dom.js";
import { initFilters, renderFilters } from "./filters.js";
import { initHistory, renderHistory } from "./history.js";
import { recommend, renderRecommendations } from "./recommendations.js";
import { renderRunPicker } from "./runs.js";
import { initSettings, renderSettings } from "./settings.js";
import { start } from "./start.js";
import { onUpdate, readAddress, state, update } from "./state.js";
import { initTrajectory, pause, redrawTrajectory, showTrajectory } from "./trajectory.js";

let controller = new AbortController(); // of the latest requests; newer ones cancel them
const refresh = debounced(120, guarded(async () => {
  controller.abort();
  controller = new AbortController();
  const { signal } = controller;
  byId("trajectory").ariaBusy = "true";
  try {
    const results = await recommend(signal);
    showError(null);
    renderRecommendations(results);
    await showTrajectory(results, signal);
  } finally {
    if (!signal.aborted) byId("trajectory").ariaBusy = "false";
  }
}));

async function openAddress() {
  pause();
  await readAddress();
  renderRunPicker(state.runs, (names) => update({ runs: names }));
  update({});
}

start(async () => {
  initHistory();
  initSettings();
  initFilters();
  initTrajectory();
  onUpdate((focus) => { renderHistory(focus); renderSettings(); renderFilters(); refresh(); });
  window.addEventListener("hashchange", guarded(openAddress));
  if (innerWidth < 900) byId("settings").open = false;
  await openAddress();
  return redrawTrajectory;
});

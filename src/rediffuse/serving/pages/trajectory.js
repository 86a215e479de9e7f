// The trajectory of one run, from noise or from the history to the items: the player, and the list of items at a step.

import * as denoising from "./denoising.js";
import { byId, clamp, el, titleOf } from "./dom.js";
import { drawMap, loadMap, MAX_POINTS, showOnMap } from "./item_map.js";
import * as spreading from "./spreading.js";
import { historyIds, shownRuns, state, update, writeAddress } from "./state.js";

const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");
let shown = null; // {run, kind, map, places, steps, notes, recommended}
let timer = null; // of the player

/** Load and show the trajectory of the chosen run, or of the first that has one. */
export async function showTrajectory(results, signal) {
  const candidates = shownRuns();
  const preferred = candidates.find((run) => run.explains_scores || (run.has_vectors && run.max_sampling_steps !== null))
    ?? candidates.find((run) => run.has_vectors) ?? candidates[0];
  const run = candidates.find((one) => one.model === state.trajectory) ?? preferred;
  const kind = run.explains_scores ? spreading : denoising;
  byId("trajectory-heading").textContent = kind.title;
  byId("trajectory-run").replaceChildren(...candidates.map((one) => new Option(one.model, one.model, false, one === run)));
  for (const id of ["map", "legend", "map-note"]) byId(id).hidden = !run.has_vectors;
  const nothing = !run.has_vectors && !run.explains_scores;
  for (const id of ["player", "step-items"]) byId(id).hidden = nothing;
  if (nothing) {
    pause();
    shown = null;
    byId("trajectory-note").textContent = `${run.architecture} has no item vectors, so it has no item map and no denoising trajectory.`;
    return;
  }
  const [map, { steps, notes }] = await Promise.all([run.has_vectors ? loadMap(run) : null, kind.load(run, signal)]);
  if (signal.aborted) return;
  const places = new Map(map?.items.map((item) => [item.item_id, item]));
  shown = { run, kind, map, places, steps, notes, recommended: results.find((result) => result.run === run)?.items ?? [] };
  byId("trajectory-note").textContent = kind.describe(shown);
  byId("map-note").textContent = map ? describeMap() : "";
  const last = Math.max(0, steps.length - 1);
  byId("step").max = last;
  byId("player").hidden = steps.length < 2;
  if (map) drawMap(shown);
  showStep(timer ? 0 : clamp(state.step ?? last, 0, last));
}

function describeMap() {
  const { run, kind, map } = shown, share = Math.round(100 * map.explained);
  return [
    `Every point is an item. The map shows the two main directions of the item vectors of ${run.model}, which explain ${share}% of their variance.`,
    `The other ${100 - share}% is not visible, so items that look close may be far apart.`,
    kind.describeMap(shown),
    map.total > MAX_POINTS ? `Grey: the ${MAX_POINTS.toLocaleString("en")} of ${map.total.toLocaleString("en")} items with the most interactions.` : "",
  ].filter(Boolean).join(" ");
}

/** Show a step; without a trajectory, the recommended items. */
function showStep(number) {
  const { kind, steps, recommended } = shown;
  const current = steps[number], previous = steps[number - 1];
  const items = current ? kind.listed(current) : recommended;
  if (shown.map) showOnMap(shown, number);
  byId("step").value = number;
  byId("step-value").textContent = current ? kind.nameOf(current, number, steps) : "";
  byId("step").setAttribute("aria-valuetext", `step ${number + 1}, first ${items.length ? titleOf(items[0]) : "none"}`);
  byId("step-heading").textContent = current ? kind.headingOf(current, number) : `Top ${items.length}`;
  byId("step-note").textContent = current ? kind.describeStep(current) : "";
  const history = new Set(historyIds());
  byId("step-list").replaceChildren(...items.map((item, n) => {
    const seen = history.has(item.item_id) ? el("span", { className: "soft small" }, " in the history") : null;
    const remark = current ? kind.remark(item, n, current, previous) : "";
    return el("li", {}, el("span", {}, titleOf(item), seen), el("span", { className: "change small" }, remark));
  }));
}

export function redrawTrajectory() {
  if (!shown) return;
  if (shown.map) drawMap(shown);
  showStep(Number(byId("step").value));
}

function goTo(number) {
  state.step = number;
  writeAddress();
  showStep(number);
}

export function pause() {
  clearInterval(timer);
  timer = null;
  byId("play").textContent = "Play";
}

function togglePlay() {
  if (timer) return pause();
  if (!shown || shown.steps.length < 2) return;
  if (Number(byId("step").value) >= shown.steps.length - 1) goTo(0);
  byId("play").textContent = "Pause";
  // Nothing is animated between steps. With reduced motion, steps follow each other more slowly.
  timer = setInterval(() => {
    const last = shown.steps.length - 1, next = Math.min(Number(byId("step").value) + 1, last);
    goTo(next);
    if (next === last) pause();
  }, reducedMotion.matches ? 1500 : 500);
}

export function initTrajectory() {
  byId("trajectory-run").addEventListener("change", () => { pause(); update({ trajectory: byId("trajectory-run").value, step: null }); });
  byId("step").addEventListener("input", () => { pause(); goTo(Number(byId("step").value)); });
  byId("play").addEventListener("click", togglePlay);
  // The space bar plays while the trajectory has the focus or is in the middle of the window.
  document.addEventListener("keydown", (event) => {
    const { top, bottom } = byId("trajectory").getBoundingClientRect();
    const active = byId("trajectory").contains(event.target) || (top < innerHeight / 2 && bottom > innerHeight / 4);
    const used = event.target.closest("button, input:not(#step), select, summary, a");
    if (event.key !== " " || !active || byId("player").hidden || used) return;
    event.preventDefault();
    togglePlay();
  });
}

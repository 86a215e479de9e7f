// The denoising trajectory of one run: its description, the player, and the list of top items at a step.

import { api } from "./api.js";
import { byId, clamp, el, plural, titleOf } from "./dom.js";
import { drawMap, loadMap, MAX_POINTS, showOnMap } from "./item_map.js";
import { optionsFor, userOrHistory } from "./recommendations.js";
import { historyIds, shownRuns, state, update, writeAddress } from "./state.js";

const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");
let shown = null; // {run, map, places, steps, notes, recommended}
let timer = null; // of the player

/** Load and show the trajectory of the chosen run, or of the first that has one. */
export async function showTrajectory(results, signal) {
  const candidates = shownRuns();
  const preferred = candidates.find((run) => run.has_vectors && run.max_sampling_steps !== null)
    ?? candidates.find((run) => run.has_vectors) ?? candidates[0];
  const run = candidates.find((one) => one.model === state.trajectory) ?? preferred;
  byId("trajectory-run").replaceChildren(...candidates.map((one) => new Option(one.model, one.model, false, one === run)));
  for (const id of ["map", "legend", "map-note", "player", "step-items"]) byId(id).hidden = !run.has_vectors;
  if (!run.has_vectors) {
    pause();
    shown = null;
    byId("trajectory-note").textContent = `${run.architecture} has no item vectors, so it has no item map and no denoising trajectory.`;
    return;
  }
  // Calibration often chooses one step, which shows no trajectory, so more steps are shown by default.
  const numSteps = run.max_sampling_steps === null ? null
    : state.sampling_steps ?? Math.min(run.max_sampling_steps, Math.max(16, run.calibrated_sampling_steps ?? 16));
  const [map, response] = await Promise.all([
    loadMap(run), api("denoise", { ...optionsFor(run, numSteps), ...userOrHistory() }, signal),
  ]);
  if (signal.aborted) return;
  const { steps, notes } = response;
  const places = new Map(map.items.map((item) => [String(item.item_id), item]));
  shown = { run, map, places, steps, notes, recommended: results.find((result) => result.run === run)?.items ?? [] };
  byId("trajectory-note").textContent = describeTrajectory(numSteps);
  byId("map-note").textContent = describeMap();
  const last = Math.max(0, steps.length - 1);
  byId("step").max = last;
  byId("player").hidden = steps.length < 2;
  drawMap(shown);
  showStep(timer ? 0 : clamp(state.step ?? last, 0, last));
}

function describeTrajectory(numSteps) {
  const { run, steps, notes } = shown;
  if (!steps.length) {
    return notes.find((note) => note.includes("nothing to denoise"))
      ?? `${run.architecture} does not denoise. The map shows the history and the recommended items.`;
  }
  const text = [], calibrated = run.calibrated_sampling_steps;
  const sameList = (a, b) => a.items.every((item, n) => item.item_id === b.items[n]?.item_id);
  const changes = steps.filter((step, n) => n && !sameList(step, steps[n - 1])).length;
  if (steps[0].state) {
    text.push(`From noise to items in ${plural(steps.length, "step")}. At each step, the network reads a noisy state and estimates the end of the trajectory: x0_hat.`);
  } else {
    text.push(`${plural(steps.length, "step")}. At each step, the network estimates the end of the trajectory: x0_hat. The noisy state is not an item vector, so it is not on the map.`);
  }
  if (state.sampling_steps === null && calibrated !== null && calibrated !== numSteps) {
    text.push(`The recommendations above use ${plural(calibrated, "step")}, as calibrated; the trajectory has more for illustration.`);
  }
  if (steps.length > 1) {
    text.push(changes ? `The top ${steps[0].items.length} items change at ${changes} of ${steps.length - 1} steps.`
      : "The top items are the same at every step: for this history, the first x0_hat decides.");
  }
  return text.join(" ");
}

function describeMap() {
  const { run, map, steps } = shown, share = Math.round(100 * map.explained);
  return [
    `Every point is an item. The map shows the two main directions of the item vectors of ${run.model}, which explain ${share}% of their variance.`,
    `The other ${100 - share}% is not visible, so items that look close may be far apart.`,
    steps[0]?.state ? "Noise has no direction, so the state starts near the middle." : "",
    map.total > MAX_POINTS ? `Grey: the ${MAX_POINTS.toLocaleString("en")} of ${map.total.toLocaleString("en")} items with the most interactions.` : "",
  ].filter(Boolean).join(" ");
}

/** Show a step; without a trajectory, the recommended items. */
function showStep(number) {
  const { steps, places, recommended } = shown;
  const taken = steps.slice(0, number + 1), current = taken.at(-1), previous = taken.at(-2);
  const items = current ? current.items : recommended;
  showOnMap(items, taken, places);
  byId("step").value = number;
  byId("step-value").textContent = current ? `${number + 1} of ${steps.length}, t = ${current.t}` : "";
  byId("step").setAttribute("aria-valuetext", `step ${number + 1}, first ${items.length ? titleOf(items[0]) : "none"}`);
  byId("step-heading").textContent = current ? `Top ${items.length} at step ${number + 1}` : `Top ${items.length}`;
  const history = new Set(historyIds().map(String));
  const ranks = new Map(previous?.items.map((item, n) => [item.item_id, n]));
  byId("step-list").replaceChildren(...items.map((item, n) => {
    const rank = ranks.get(item.item_id);
    const change = !previous || rank === n ? "" : rank === undefined ? "new" : rank > n ? `↑ ${rank - n}` : `↓ ${n - rank}`;
    const seen = history.has(String(item.item_id)) ? el("span", { className: "soft small" }, " in the history") : null;
    return el("li", {}, el("span", {}, titleOf(item), seen), el("span", { className: "change small" }, change));
  }));
}

export function redrawTrajectory() {
  if (!shown) return;
  drawMap(shown);
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

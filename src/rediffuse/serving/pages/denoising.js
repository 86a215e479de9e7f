// The denoising trajectory of a run: its steps, and what the page says about them.

import { api } from "./api.js";
import { plural } from "./dom.js";
import { optionsFor, userOrHistory } from "./recommendations.js";
import { state } from "./state.js";

export const title = "Denoising trajectory";

// Calibration often chooses one step, which shows no trajectory, so more steps are shown by default.
const stepsFor = (run) => (run.max_sampling_steps === null ? null
  : state.sampling_steps ?? Math.min(run.max_sampling_steps, Math.max(16, run.calibrated_sampling_steps ?? 16)));

/** Request the steps: {steps, notes}. */
export const load = (run, signal) => api("denoise", { ...optionsFor(run, stepsFor(run)), ...userOrHistory() }, signal);

export function describe({ run, steps, notes }) {
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
  if (state.sampling_steps === null && calibrated !== null && calibrated !== stepsFor(run)) {
    text.push(`The recommendations above use ${plural(calibrated, "step")}, as calibrated; the trajectory has more for illustration.`);
  }
  if (steps.length > 1) {
    text.push(changes ? `The top ${steps[0].items.length} items change at ${changes} of ${steps.length - 1} steps.`
      : "The top items are the same at every step: for this history, the first x0_hat decides.");
  }
  return text.join(" ");
}

export const describeMap = ({ steps }) => (steps[0]?.state ? "Noise has no direction, so the state starts near the middle." : "");
export const describeStep = () => "";

export const listed = (step) => step.items;
export const nameOf = (step, n, steps) => `${n + 1} of ${steps.length}, t = ${step.t}`;
export const headingOf = (step, n) => `Top ${step.items.length} at step ${n + 1}`;

/** How the rank of the n-th item changed since the step before. */
export function remark(item, n, step, previous) {
  if (!previous) return "";
  const rank = previous.items.findIndex((other) => other.item_id === item.item_id);
  return rank === n ? "" : rank < 0 ? "new" : rank > n ? `↑ ${rank - n}` : `↓ ${n - rank}`;
}

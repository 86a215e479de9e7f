// The sampling settings. Where an option has no effect on a run, the text below it says so.

import { byId } from "./dom.js";
import { DEFAULTS, inRange, shownRuns, state, update } from "./state.js";

const NUMBERS = ["sampling_steps", "samples", "noise", "seed", "k"];
const listed = (runs) => runs.map((run) => run.model).join(", ");

function set(name, value, enabled, note) {
  if (document.activeElement !== byId(name)) byId(name).value = value;
  byId(name).disabled = !enabled;
  byId(`${name}-note`).textContent = note;
}

export function renderSettings() {
  const shown = shownRuns();
  const [stepped, unstepped] = [shown.filter((run) => run.max_sampling_steps !== null), shown.filter((run) => run.max_sampling_steps === null)];
  const [stochastic, exact] = [shown.filter((run) => run.stochastic), shown.filter((run) => !run.stochastic)];

  const defaults = stepped.map((run) => run.calibrated_sampling_steps ?? run.max_sampling_steps);
  const explained = state.sampling_steps === null ? "As calibrated on validation data."
    : stepped.length > 1 ? "A run with fewer steps uses all of its own." : "";
  const note = stepped.length
    ? [explained, unstepped.length ? `No effect on ${listed(unstepped)}.` : ""].join(" ").trim()
    : `Off: ${listed(unstepped)} ${unstepped.length === 1 ? "has" : "have"} no sampling steps.`;
  byId("sampling_steps").max = Math.max(1, ...stepped.map((run) => run.max_sampling_steps));
  set("sampling_steps", state.sampling_steps ?? defaults[0] ?? 1, stepped.length > 0, note);
  byId("sampling_steps-value").textContent = stepped.length ? state.sampling_steps ?? [...new Set(defaults)].join(", ") : "–";

  const any = stochastic.length > 0;
  const off = !exact.length ? "" : any ? `No effect on ${listed(exact)}.` : `Off: ${listed(exact)} ${exact.length === 1 ? "draws" : "draw"} no noise.`;
  set("samples", state.samples, any, [any && state.samples === 1 ? "With more than one, scores have a standard deviation." : "", off].join(" ").trim());
  set("noise", state.noise, any, any ? "Models are trained with 1." : off);
  set("seed", state.seed, any, any ? "The same seed gives the same lists." : off);
  byId("samples-value").textContent = any ? state.samples : "–";
  byId("noise-value").textContent = any ? `× ${state.noise.toFixed(1)}` : "–";
  byId("new-seed").disabled = !any;
  if (document.activeElement !== byId("k")) byId("k").value = state.k;
  byId("filter_seen").checked = state.filter_seen;
}

export function initSettings() {
  for (const name of NUMBERS) {
    byId(name).addEventListener("input", () => {
      const { value } = byId(name);
      if (value !== "") update({ [name]: inRange(name, Number(value)), step: null });
    });
  }
  byId("new-seed").addEventListener("click", () => update({ seed: state.seed + 1 }));
  byId("filter_seen").addEventListener("change", () => update({ filter_seen: byId("filter_seen").checked }));
  byId("reset").addEventListener("click", () => update({ ...DEFAULTS, step: null }));
}

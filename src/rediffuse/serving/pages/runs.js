// The served runs, their colours, and the picker at the top of both pages.

import { api } from "./api.js";
import { byId, el, plural } from "./dom.js";

// Okabe and Ito's colours, as in comparison reports. They differ for readers with any colour vision.
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C00", "#7A5CD0", "#A6761D", "#6B7280"];

/** The entries of /v1/models. */
export const runs = [];
export const loadRuns = async () => { runs.push(...(await api("models")).models); };

export const colourOf = (name) => COLOURS[runs.findIndex((run) => run.model === name) % COLOURS.length];

/** Names in a link that are served, or the first two runs. */
export function namesOf(query) {
  const names = query.getAll("run").filter((name) => runs.some((run) => run.model === name));
  return names.length ? names : runs.slice(0, 2).map((run) => run.model);
}

/** Show the runs with check boxes, of which at least one stays checked. */
export function renderRunPicker(names, onChange) {
  const rows = runs.map((run) => {
    const details = [run.architecture, plural(run.items, "item"), plural(run.users, "user")];
    if (run.validation !== null) details.push(`validation ${run.metric} ${run.validation.toFixed(3)}`);
    const box = el("input", { type: "checkbox", value: run.model, checked: names.includes(run.model), change: () => {
      const checked = [...byId("runs").querySelectorAll("input:checked")].map((one) => one.value);
      if (checked.length) onChange(checked);
      else box.checked = true;
    } });
    const dot = el("span", { className: "dot", ariaHidden: "true" });
    dot.style.background = colourOf(run.model);
    const label = el("span", {}, el("b", {}, run.model), el("small", { className: "soft" }, details.join(" · ")));
    return el("label", { className: "run" }, box, dot, label);
  });
  byId("runs").replaceChildren(...rows);
}

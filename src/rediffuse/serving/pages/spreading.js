// How mass spreads from the history over the item map, hop by hop, and what the page says about it.

import { api } from "./api.js";
import { plural } from "./dom.js";
import { userOrHistory } from "./recommendations.js";
import { state } from "./state.js";

const ON_THE_MAP = 500; // items per hop whose mass is on the map

export const title = "How mass spreads from the history";

/** Request the hops: {steps, notes}. */
export const load = (run, signal) => api("spread", { model: run.model, k: ON_THE_MAP, ...userOrHistory() }, signal);

export function describe({ run, steps, notes }) {
  if (!steps.length) return notes.find((note) => note.includes("no mass to spread")) ?? "There is no mass to spread.";
  const hops = steps.slice(1, -1).map((step) => step.hop);
  return `${run.architecture} puts mass on the items of the history and lets it flow along the item graph`
    + `${hops.length ? `: ${hops.join(", ")}` : ""}. The scores combine what arrives.`;
}

export const describeMap = () => "The area of a circle is the mass of its item, in proportion to the largest of this hop.";

/** How far the mass has spread at a step, and how much of it the list holds. */
export function describeStep(step) {
  const held = listed(step).reduce((sum, { mass }) => sum + mass, 0);
  const share = step.total > 0 ? ` These hold ${Math.round((100 * held) / step.total)}% of it.` : "";
  return `${plural(step.reached, "item has", "items have")} mass.${share}`;
}

export const listed = (step) => step.items.slice(0, state.k);
export const nameOf = (step, n, steps) => `${n + 1} of ${steps.length}, ${step.hop}`;
export const headingOf = (step) => (step.hop === "scores" ? "Highest scores" : `Most mass: ${step.hop}`);

/** The share of the mass that an item holds. */
export const remark = (item, n, step) => (step.total > 0 ? `${((100 * item.mass) / step.total).toFixed(1)}%` : "");

// What a score is made of, for models whose scores are sums over the history: a stacked bar, a line of text and a list.

import { el, titleOf } from "./dom.js";

const NAMED = 2; // sources in the line below the bar; the list has all

const percent = (share) => (Math.abs(share) >= 0.005 || share === 0 ? `${Math.round(100 * share)}%` : "<1%");
const named = ({ name, share }) => `${name} ${percent(share)}`;

/** Add up the contributions of each source: an item of the history, a prior, or the rest. Largest first, the rest last. */
function sourcesOf(contributions) {
  const found = new Map();
  for (const { history_item: item, part, share } of contributions) {
    const key = item ? `item ${item.item_id}` : `part ${part}`;
    const kind = item ? "item" : part === "other" ? "rest" : "prior";
    if (!found.has(key)) found.set(key, { name: item ? titleOf(item) : part, kind, share: 0, parts: [] });
    const source = found.get(key);
    source.share += share ?? 0;
    source.parts.push({ name: part, share: share ?? 0 });
  }
  return [...found.values()].sort((a, b) => (a.kind === "rest") - (b.kind === "rest") || Math.abs(b.share) - Math.abs(a.share));
}

/** The bar and the line below it; nothing without contributions. */
export function shareBar(contributions) {
  const sources = sourcesOf(contributions);
  if (!sources.length) return [];
  const whole = sources.reduce((sum, { share }) => sum + Math.abs(share), 0) || 1;
  let items = 0;
  const segments = sources.map((source) => {
    const segment = el("i", { className: source.kind, title: named(source) });
    segment.style.width = `${(100 * Math.abs(source.share)) / whole}%`;
    if (source.kind === "item") segment.style.opacity = Math.max(0.25, 0.85 - 0.17 * items++);
    return segment;
  });
  const shown = sources.slice(0, NAMED), left = sources.slice(NAMED).reduce((sum, { share }) => sum + share, 0);
  const rest = sources.length > NAMED ? `, and ${percent(left)} from the rest` : "";
  return [
    el("div", { className: "shares", ariaHidden: "true" }, segments),
    el("p", { className: "shares-text soft small" }, `${shown.map(named).join(", ")}${rest}`),
  ];
}

/** All sources with their hops, for the explanation of an item. */
export function shareList(contributions) {
  if (!contributions.length) return [];
  const hops = ({ kind, parts }) => (kind !== "item" ? null : el("span", { className: "soft" }, ` ${parts.map(named).join(", ")}`));
  return [
    el("p", { className: "soft" }, "Shares of the score, from the history and by hop"),
    el("ul", {}, sourcesOf(contributions).map((source) => el("li", {}, named(source), hops(source)))),
  ];
}

/** What the colours of the bars mean. */
export function shareLegend() {
  const entries = [["item", "items of the history, largest first"], ["prior", "not from the history"], ["rest", "the rest"]];
  return el("p", { className: "shares-legend soft small" }, "The bar below a score divides it: ",
    entries.map(([kind, text]) => el("span", {}, el("i", { className: kind, ariaHidden: "true" }), ` ${text}`)));
}

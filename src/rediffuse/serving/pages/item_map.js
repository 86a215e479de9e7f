// The item map: the items in two dimensions, with the history, the top items, and the denoising trajectory or the mass.

import { modelApi } from "./api.js";
import { byId, cssVariable, el, titleOf } from "./dom.js";
import { draw, plotText } from "./plots.js";
import { state } from "./state.js";

export const MAX_POINTS = 2500; // grey points; more would make the SVG slow
const LATEST = 10; // items of the history that are drawn larger; most models depend on the latest items most
// Order of the traces; those from MASS on change from step to step.
const MASS = 2, TOP_ITEMS = 3, STATE = 4, X0_HAT = 5, CURRENT = 6;
const LARGEST = 30; // diameter of the circle of the item with the most mass

const maps = new Map(); // by run and version
export function loadMap(run) {
  const key = `${run.model} ${run.version}`;
  if (!maps.has(key)) {
    const request = modelApi(run.model, "map", { limit: 20000 });
    maps.set(key, request.catch((error) => { maps.delete(key); throw error; }));
  }
  return maps.get(key);
}

const coordinates = (points) => ({ x: points.map((point) => point?.[0] ?? null), y: points.map((point) => point?.[1] ?? null) });

function place(items, places) {
  const known = items.map((item) => places.get(item.item_id)).filter(Boolean);
  return { ...coordinates(known.map(({ x, y }) => [x, y])), text: known.map((item) => plotText(titleOf(item))) };
}

function range(points, axis) {
  const values = points.map((point) => point[axis]);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const margin = 0.05 * (high - low || 1);
  return [low - margin, high + margin];
}

/** Draw the map without a step; `showOnMap` adds it. */
export function drawMap({ map, places, steps }) {
  const markers = (name, color, marker, more = {}) => ({
    type: "scatter", mode: "markers", name, x: [], y: [], marker: { color, ...marker }, hovertemplate: "%{text}<extra></extra>", ...more,
  });
  const track = (name, color, line, marker) => markers(name, color, marker, {
    mode: "lines+markers", line: { color, ...line }, hovertemplate: `${name} at step %{text}<extra></extra>`,
  });
  const edge = (color) => ({ line: { color, width: 1.5 } });
  const cloud = map.items.slice(0, MAX_POINTS), history = place(state.history, places);
  const sizes = history.text.map((_, n) => (history.text.length - n <= LATEST ? 9 : 5));
  const traces = [
    markers("items", cssVariable("--cloud"), { size: 4 }, place(cloud, places)),
    markers("history", cssVariable("--history"), { size: sizes, symbol: "square-open", line: { width: 1.5 } }, history),
  ];
  traces[MASS] = markers("mass", cssVariable("--x0-hat"), { size: [], opacity: 0.4, line: { width: 0 } });
  traces[TOP_ITEMS] = markers("top items", cssVariable("--top"), { size: 10, symbol: "diamond", ...edge(cssVariable("--paper")) });
  traces[STATE] = track("state", cssVariable("--soft"), { width: 1, dash: "dot" }, { size: 4 });
  traces[X0_HAT] = track("x0_hat", cssVariable("--x0-hat"), { width: 2 }, { size: 5 });
  traces[CURRENT] = markers("current step", [cssVariable("--soft"), cssVariable("--x0-hat")],
    { size: 13, symbol: ["circle-open", "circle"], ...edge(cssVariable("--ink")) });
  const points = [...cloud.map(({ x, y }) => [x, y]), ...steps.flatMap((step) => [step.x0_hat, step.state].filter(Boolean))];
  const bare = { showgrid: false, zeroline: false, showline: false, showticklabels: false, automargin: false, fixedrange: true };
  draw("map", traces, {
    height: innerWidth < 600 ? 340 : 500, margin: { l: 0, r: 0, t: 0, b: 0 }, dragmode: false,
    xaxis: { ...bare, range: range(points, 0) }, yaxis: { ...bare, range: range(points, 1) },
  });
  drawLegend(steps);
}

function drawLegend(steps) {
  const entries = [
    ["•", "--cloud", "item"],
    ["□", "--history", state.history.length > LATEST ? `history, the latest ${LATEST} larger` : "history"],
    ["◆", "--top", steps[0]?.x0_hat ? "top items at this step" : "recommended items"],
    ...(steps[0]?.state ? [["○", "--soft", "noisy state"]] : []),
    ...(steps.length ? [["●", "--x0-hat", steps[0].x0_hat ? "x0_hat" : "mass at this hop"]] : []),
  ];
  byId("legend").replaceChildren(...entries.map(([symbol, color, text]) => {
    const sign = el("b", { ariaHidden: "true" }, symbol);
    sign.style.color = `var(${color})`;
    return el("span", {}, sign, ` ${text}`);
  }));
}

/** The circles of the items with mass. Their areas are in proportion to it. */
function circles(items, places) {
  const known = items.filter((item) => item.mass > 0 && places.has(item.item_id));
  const most = Math.max(...known.map(({ mass }) => mass));
  const sizes = known.map(({ mass }) => Math.max(2, LARGEST * Math.sqrt(mass / most)));
  const text = known.map((item) => plotText(`${titleOf(item)}: ${item.mass.toPrecision(3)}`));
  return { ...place(known, places), text, sizes };
}

/** Show a step: the mass after it, or the top items and the trajectory up to it; without steps, the recommended items. */
export function showOnMap({ steps, places, recommended }, number) {
  const current = steps[number], mass = current && !current.x0_hat;
  const taken = mass ? [] : steps.slice(0, number + 1), numbers = taken.map((_, n) => n + 1);
  const { sizes, ...masses } = circles(mass ? current.items : [], places);
  const data = [
    { ...masses, marker: { ...byId("map").data[MASS].marker, size: sizes } },
    place(current?.x0_hat ? current.items : recommended, places),
    { ...coordinates(taken.map((step) => step.state)), text: numbers },
    { ...coordinates(taken.map((step) => step.x0_hat)), text: numbers },
    { ...coordinates(taken.length ? [current.state, current.x0_hat] : []), text: taken.length ? ["current state", "current x0_hat"] : [] },
  ];
  // A frame redraws only these traces; Plotly.restyle would draw all grey points again. A later frame may replace this one.
  const options = { mode: "immediate", transition: { duration: 0 }, frame: { duration: 0, redraw: false } };
  Plotly.animate(byId("map"), { data, traces: [MASS, TOP_ITEMS, STATE, X0_HAT, CURRENT] }, options).catch(() => {});
}

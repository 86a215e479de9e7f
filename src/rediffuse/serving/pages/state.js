// The state of the explorer: what it shows. The part of the address after # holds all of it, so a link restores it.

import { api, modelApi } from "./api.js";
import { clamp } from "./dom.js";
import { namesOf, runs } from "./runs.js";

export const MAX_HISTORY = 1000; // the most items that the service accepts in a history
export const DEFAULTS = { k: 10, sampling_steps: null, samples: 1, noise: 1, seed: 0, filter_seen: true };
export const RANGES = {
  k: [1, 50], sampling_steps: [1, 10000], samples: [1, 32], noise: [0, 3], step: [0, 10000],
  seed: [-Number.MAX_SAFE_INTEGER, Number.MAX_SAFE_INTEGER],
};

/** `user` is an id, or null for an edited history; `trajectory` the run whose trajectory is shown, or null. */
export const state = { ...DEFAULTS, runs: [], filters: [], user: null, history: [], trajectory: null, step: null };

export const shownRuns = () => runs.filter((run) => state.runs.includes(run.model));
export const historyIds = () => state.history.map((item) => item.item_id);

/** Force a number into the range of an option. */
export function inRange(name, value) {
  return clamp(name === "noise" ? value : Math.round(value), ...RANGES[name]);
}

const listeners = [];
export const onUpdate = (listener) => listeners.push(listener);

/** Change the state and render it. `focus`: position in the history that gets the keyboard focus. */
export function update(changes, focus) {
  Object.assign(state, changes);
  writeAddress();
  for (const listener of listeners) listener(focus);
}

/** Replace the history. The step that was shown belongs to the old one. */
export const editHistory = (history, focus) => update({ history, user: null, step: null }, focus);

export async function loadHistory(user) {
  const { items } = await modelApi(state.runs[0], "history", {}, { user }).catch((error) => {
    if (error.kind !== "urn:rediffuse:unknown-user") throw error;
    throw new Error(`${state.runs[0]} knows no user with the id “${user}”. Type the beginning of an id and choose from the list, or press Random.`);
  });
  Object.assign(state, { history: items, user });
}

export function writeAddress() {
  const query = new URLSearchParams(state.runs.map((name) => ["run", name]));
  if (state.user !== null) query.set("user", state.user);
  else for (const id of state.history.length ? historyIds() : [""]) query.append("item", id);
  for (const [name, value] of Object.entries(DEFAULTS)) if (state[name] !== value) query.set(name, state[name]);
  if (state.filters.length) query.set("filters", JSON.stringify(state.filters));
  for (const name of ["trajectory", "step"]) if (state[name] !== null) query.set(name, state[name]);
  window.history.replaceState(null, "", `#${query}`);
}

/** The filters of an address; those that are no clauses are left out. */
function readFilters(text) {
  let found = [];
  try { found = JSON.parse(text ?? "[]"); } catch { return []; }
  const valid = (one) => typeof one?.column === "string" && (one.eq !== undefined || Array.isArray(one.in) || typeof one.range === "object" && one.range !== null);
  return Array.isArray(found) ? found.filter(valid) : [];
}

export async function readAddress() {
  const query = new URLSearchParams(location.hash.slice(1));
  const number = (name) => {
    const value = query.has(name) ? Number(query.get(name)) : NaN;
    return Number.isFinite(value) ? inRange(name, value) : DEFAULTS[name] ?? null;
  };
  Object.assign(state, Object.fromEntries(Object.keys(RANGES).map((name) => [name, number(name)])), {
    runs: namesOf(query), filter_seen: query.get("filter_seen") !== "false", trajectory: query.get("trajectory"), user: null, history: [],
    filters: readFilters(query.get("filters")),
  });
  if (query.has("item")) {
    const ids = query.getAll("item").filter(Boolean).slice(0, MAX_HISTORY);
    if (!ids.length) return;
    // The address holds ids. A recommendation of these items to an empty history returns their titles.
    const request = { model: state.runs[0], histories: [[]], candidates: ids, k: ids.length, filter_seen: false };
    const found = new Map((await api("recommend", request)).results[0].items.map((item) => [item.item_id, item]));
    state.history = ids.map((id) => found.get(id) ?? { item_id: id, title: null });
  } else {
    // The first visit shows the history of the first user.
    const user = query.get("user") ?? (await modelApi(state.runs[0], "users", { limit: 1 })).users[0];
    if (user !== undefined) await loadHistory(user);
  }
}

"use strict";
// The script of both pages. All it shows comes from /v1, and enters the page as text, never as HTML.

const byId = (id) => document.getElementById(id);
// Okabe & Ito's colours, as in the report of comparisons: told apart by people with any colour vision.
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C00", "#7A5CD0", "#A6761D", "#6B7280"];
const CHIPS = 8; // of a long history, shown until all are asked for
const CLOUD = 2500; // grey points of the map; more would make SVG slow
const LATEST = 10; // items of the history that the map shows large
const calm = matchMedia("(prefers-reduced-motion: reduce)");
let runs = []; // what /v1/models says

// --- small things ------------------------------------------------------------------------------------------------

function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

const named = (item) => item.title ?? String(item.item_id);
const count = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const colour = (name) => COLOURS[runs.findIndex((run) => run.name === name) % COLOURS.length];
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const say = (text) => { byId("status").textContent = text; };
// Plotly reads a few tags in texts; titles must not have any.
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");

function debounced(wait, run) {
  let timer;
  return (...args) => { clearTimeout(timer); timer = setTimeout(() => run(...args), wait); };
}

function trouble(error) {
  if (error?.name === "AbortError") return;
  const text = error ? String(error.message ?? error) : "";
  byId("trouble").hidden = !text;
  byId("trouble").textContent = text;
}

const guarded = (run) => (...args) => run(...args).catch(trouble);

// --- the service -------------------------------------------------------------------------------------------------

async function api(path, body, signal) {
  const token = sessionStorage.getItem("token");
  const headers = { ...(body && { "Content-Type": "application/json" }), ...(token && { Authorization: `Bearer ${token}` }) };
  let answer;
  try {
    answer = await fetch(`v1/${path}`, { method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body) });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error("The service does not answer. Is it still running?");
  }
  if (answer.status === 401) {
    // Another request may have been given the token while this one was under way.
    if (token === sessionStorage.getItem("token")) await tokenFromPerson(token !== null);
    return api(path, body, signal);
  }
  const content = await answer.json();
  if (answer.ok) return content;
  const fields = (content.errors ?? []).map((one) => `${one.field}: ${one.message}`).join("; ");
  throw new Error([content.detail ?? content.title, fields, content.remedy].filter(Boolean).join(" "));
}

const about = (run, what, query = {}) => api(`models/${encodeURIComponent(run)}/${what}?${new URLSearchParams(query)}`);

let asking = null;
function tokenFromPerson(refused) {
  asking ??= new Promise((resolve) => {
    const form = byId("token-form");
    if (refused) byId("token-label").textContent = "The service refused that token. Try another.";
    form.hidden = false;
    byId("token").focus();
    form.onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem("token", byId("token").value);
      byId("token").value = "";
      form.hidden = true;
      asking = null;
      resolve();
    };
  });
  return asking;
}

// --- runs and plots, of both pages -------------------------------------------------------------------------------

function runPicker(chosen, changed) {
  const rows = runs.map((run) => {
    const facts = [run.model, count(run.items, "item"), count(run.users, "person", "people")];
    if (run.validation !== null) facts.push(`${run.metric} ${run.validation.toFixed(3)} on validation`);
    const box = el("input", { type: "checkbox", value: run.name, checked: chosen.includes(run.name), change: () => {
      const names = [...byId("runs").querySelectorAll("input:checked")].map((one) => one.value);
      if (names.length) changed(names);
      else box.checked = true; // one at least
    } });
    const dot = el("span", { className: "dot", ariaHidden: "true" });
    dot.style.background = colour(run.name);
    return el("label", { className: "run" }, box, dot, el("span", {}, el("b", {}, run.name), el("small", { className: "soft" }, facts.join(" · "))));
  });
  byId("runs").replaceChildren(...rows);
}

function draw(id, traces, more = {}) {
  const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), linecolor: css("--line"), automargin: true };
  const title = (text) => ({ title: { text: plain(text ?? "") } });
  const layout = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: css("--ink"), family: "system-ui, sans-serif", size: 13 }, hoverlabel: { font: { family: "system-ui, sans-serif" } },
    margin: more.margin ?? { l: 55, r: 15, t: 15, b: 45 }, hovermode: "closest", showlegend: false, height: more.height ?? 340,
    xaxis: { ...axis, ...title(more.x), ...more.xaxis }, yaxis: { ...axis, ...title(more.y), ...more.yaxis }, dragmode: more.dragmode ?? "zoom",
  };
  return Plotly.react(byId(id), traces, layout, { responsive: true, displaylogo: false, displayModeBar: false });
}

// --- the explorer: what is shown, and its address ------------------------------------------------------------------

const DEFAULTS = { k: 10, steps: null, samples: 1, noise: 1, seed: 0, unseen: true };
const state = { ...DEFAULTS, runs: [], user: null, history: [], path: null, step: null };
const chosen = () => runs.filter((run) => state.runs.includes(run.name));
const ids = () => state.history.map((item) => item.item_id);

function toAddress() {
  const said = new URLSearchParams(state.runs.map((name) => ["run", name]));
  if (state.user !== null) said.set("user", state.user);
  else for (const id of ids().length ? ids() : [""]) said.append("item", id);
  for (const name of ["k", "steps", "samples", "noise", "seed"]) if (state[name] !== DEFAULTS[name]) said.set(name, state[name]);
  if (!state.unseen) said.set("seen", "kept");
  if (state.path !== null) said.set("path", state.path);
  if (state.step !== null) said.set("step", state.step);
  window.history.replaceState(null, "", `#${said}`);
}

async function fromAddress() {
  const said = new URLSearchParams(location.hash.slice(1));
  const number = (name, low, high) => {
    const value = said.has(name) ? Number(said.get(name)) : NaN;
    return Number.isFinite(value) ? clamp(name === "noise" ? value : Math.round(value), low, high) : DEFAULTS[name] ?? null;
  };
  const names = said.getAll("run").filter((name) => runs.some((run) => run.name === name));
  Object.assign(state, {
    runs: names.length ? names : runs.slice(0, 2).map((run) => run.name),
    k: number("k", 1, 50), steps: number("steps", 1, 10000), samples: number("samples", 1, 32), noise: number("noise", 0, 3),
    seed: number("seed", -Number.MAX_SAFE_INTEGER, Number.MAX_SAFE_INTEGER), unseen: said.get("seen") !== "kept",
    path: said.get("path"), step: number("step", 0, 10000), user: null, history: [],
  });
  if (said.has("item")) {
    const wanted = said.getAll("item").filter(Boolean).slice(0, 1000);
    if (!wanted.length) return;
    // Candidates that are ranked for nobody come back with their titles.
    const asked = { model: state.runs[0], histories: [[]], candidates: wanted, k: wanted.length, filter_seen: false };
    const titles = new Map((await api("recommend", asked)).results[0].items.map((item) => [String(item.item_id), item]));
    state.history = wanted.map((id) => titles.get(id) ?? { item_id: id, title: null });
  } else {
    // A first visit: somebody's history, so that there is something to see.
    const user = said.get("user") ?? (await about(state.runs[0], "users", { limit: 1 })).users[0];
    if (user !== undefined) await takeHistory(String(user));
  }
}

async function takeHistory(user) {
  state.history = (await about(state.runs[0], "history", { user })).items;
  state.user = user;
}

// What was drawn for one history is not kept for another.
function edit(history, focus) {
  Object.assign(state, { history, user: null, step: null });
  changed();
  chips(focus);
}

const refresh = debounced(120, guarded(() => answer()));
function changed() {
  toAddress();
  chips();
  controls();
  refresh();
}

// --- the explorer: history -----------------------------------------------------------------------------------------

let unfolded = false;
function chips(focus) {
  const first = unfolded ? 0 : Math.max(0, state.history.length - CHIPS);
  byId("whose").textContent = state.user !== null ? `${count(state.history.length, "item")} of person ${state.user}, oldest first.`
    : state.history.length ? `${count(state.history.length, "item")} put together here, oldest first.` : "Empty: this is what somebody unknown gets.";
  byId("earlier").hidden = !first && !unfolded;
  byId("earlier").textContent = unfolded ? "Show the latest only" : `Show ${first.toLocaleString("en")} earlier`;
  byId("clear").hidden = !state.history.length;
  const move = (from, to) => {
    if (to < 0 || to >= state.history.length) return;
    if (to < first) unfolded = true;
    const history = [...state.history];
    history.splice(to, 0, ...history.splice(from, 1));
    edit(history, to);
  };
  const remove = (at) => edit(state.history.filter((_, n) => n !== at), Math.min(at, state.history.length - 2));
  byId("chips").replaceChildren(...state.history.slice(first).map((item, n) => {
    const at = first + n;
    const keys = (event) => {
      const way = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1 }[event.key];
      if (way && event.altKey) move(at, at + way);
      else if (way) byId("chips").children[clamp(n + way, 0, byId("chips").children.length - 1)].firstChild.focus();
      else if (event.key === "Delete" || event.key === "Backspace") remove(at);
      else return;
      event.preventDefault();
    };
    // The small buttons are for pointers; keys do the same on the name, so that a history is one stop of the Tab key.
    const small = (text, label, click, disabled = false) => el("button", { type: "button", tabIndex: -1, className: "tiny", ariaLabel: `${label} ${named(item)}`, title: label, disabled, click }, text);
    const name = el("button", { type: "button", className: "chip-name", title: named(item), tabIndex: at === (focus ?? state.history.length - 1) ? 0 : -1,
      "aria-describedby": "keys", ariaKeyShortcuts: "Alt+ArrowUp Alt+ArrowDown Delete", keydown: keys }, named(item));
    return el("li", {}, name, small("↑", "Earlier:", () => move(at, at - 1), at === 0),
      small("↓", "Later:", () => move(at, at + 1), at === state.history.length - 1), small("×", "Remove", () => remove(at)));
  }));
  if (focus !== undefined) (byId("chips").children[focus - first]?.firstChild ?? byId("search")).focus();
}

function combobox() {
  const input = byId("search"), list = byId("found");
  let found = [], active = -1, latest = 0;
  const open = (shown) => {
    list.hidden = !shown;
    input.setAttribute("aria-expanded", String(shown));
    if (!shown) mark(-1);
  };
  const mark = (place) => {
    active = place;
    [...list.children].forEach((option, n) => option.setAttribute("aria-selected", String(n === place)));
    if (place < 0) input.removeAttribute("aria-activedescendant");
    else {
      input.setAttribute("aria-activedescendant", `found-${place}`);
      list.children[place].scrollIntoView({ block: "nearest" });
    }
  };
  const take = (item) => { input.value = ""; open(false); edit([...state.history, item]); };
  const search = guarded(async () => {
    const mine = ++latest;
    const items = (await about(state.runs[0], "items", { q: input.value.trim(), limit: 12 })).items;
    if (mine !== latest || document.activeElement !== input) return;
    found = items;
    list.replaceChildren(...found.map((item, n) => el("li", { id: `found-${n}`, role: "option", mousedown: (event) => { event.preventDefault(); take(item); } }, named(item))));
    if (!found.length) list.append(el("li", { className: "soft", role: "option", "aria-disabled": "true" }, "Nothing found."));
    open(true);
    mark(found.length && input.value.trim() ? 0 : -1);
    say(`${count(found.length, "item")} found.`);
  });
  const soon = debounced(150, search);
  input.addEventListener("input", soon);
  input.addEventListener("click", search);
  input.addEventListener("blur", () => { latest++; open(false); });
  input.addEventListener("keydown", (event) => {
    const way = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (way && list.hidden) search();
    else if (way && found.length) mark((active + way + found.length) % found.length);
    else if (event.key === "Enter" && active >= 0) take(found[active]);
    else if (event.key === "Escape" && !list.hidden) open(false);
    else return;
    event.preventDefault();
  });
}

// --- the explorer: settings ----------------------------------------------------------------------------------------

function controls() {
  const names = (list) => list.map((run) => run.name).join(", ");
  const [stepping, flat] = [chosen().filter((run) => run.max_sampling_steps !== null), chosen().filter((run) => run.max_sampling_steps === null)];
  const [noisy, still] = [chosen().filter((run) => run.stochastic), chosen().filter((run) => !run.stochastic)];
  const set = (id, value, able, why) => {
    if (document.activeElement !== byId(id)) byId(id).value = value;
    byId(id).disabled = !able;
    byId(`${id}-why`).textContent = why;
  };
  const usual = stepping.map((run) => run.calibrated_steps ?? run.max_sampling_steps);
  byId("steps").max = Math.max(1, ...stepping.map((run) => run.max_sampling_steps));
  const without = flat.length ? ` None in ${names(flat)}.` : "";
  set("steps", state.steps ?? usual[0] ?? 1, stepping.length, stepping.length ? (state.steps === null ? "As calibrated on validation data." : stepping.length > 1 ? "Fewer where a run has fewer." : "") + without : `Off: ${names(flat)} ${flat.length === 1 ? "has" : "have"} no steps to choose.`);
  byId("steps-out").textContent = stepping.length ? state.steps ?? [...new Set(usual)].join(", ") : "–";
  const off = still.length ? `${noisy.length ? "Not for" : "Off:"} ${names(still)}${noisy.length ? "" : still.length === 1 ? " draws no noise" : " draw no noise"}.` : "";
  set("samples", state.samples, noisy.length, [noisy.length && state.samples === 1 ? "More than one shows how sure a score is." : "", off].join(" "));
  set("noise", state.noise, noisy.length, noisy.length ? "1 is what the model was made for." : off);
  set("seed", state.seed, noisy.length, noisy.length ? "The same seed gives the same answer." : off);
  byId("samples-out").textContent = noisy.length ? state.samples : "–";
  byId("noise-out").textContent = noisy.length ? `× ${state.noise.toFixed(1)}` : "–";
  byId("again").disabled = !noisy.length;
  if (document.activeElement !== byId("k")) byId("k").value = state.k;
  byId("unseen").checked = state.unseen;
}

// --- the explorer: recommendations -----------------------------------------------------------------------------------

// 1,000 items are what the service takes; of a person it knows, it takes all.
const forWhom = () => (state.user !== null ? { user: state.user } : { history: ids().slice(-1000) });
const drawn = (run, steps = state.steps) => ({
  model: run.name, k: state.k, ...(run.stochastic && { seed: state.seed, noise: state.noise }),
  ...(steps !== null && run.max_sampling_steps !== null && { sampling_steps: Math.min(steps, run.max_sampling_steps) }),
});

let running = new AbortController();
async function answer() {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  byId("columns").ariaBusy = "true";
  const { user, history } = forWhom();
  const answers = [];
  // One after the other: together they would wait for one another, and the times would say so.
  for (const run of chosen()) {
    const body = { ...drawn(run), ...(history ? { histories: [history] } : { users: [user] }), filter_seen: state.unseen, samples: run.stochastic ? state.samples : 1, explain: true };
    const began = performance.now();
    try {
      const said = await api("recommend", body, signal);
      run.version = said.version; // the folder may have changed; then there is another map, too
      answers.push({ run, took: performance.now() - began, notes: said.notes, items: said.results[0].items });
    } catch (error) {
      if (error.name === "AbortError") return;
      answers.push({ run, failed: error.message, notes: [], items: [] });
    }
  }
  trouble(null);
  columns(answers);
  await path(answers, signal);
}

function columns(answers) {
  const lists = answers.filter((one) => !one.failed);
  const times = new Map();
  for (const { items } of lists) for (const item of items) times.set(String(item.item_id), (times.get(String(item.item_id)) ?? 0) + 1);
  const shared = [...times.values()].filter((n) => n === lists.length).length;
  byId("agreement").textContent = lists.length < 2 ? "" : `${shared} of ${state.k} items are in ${lists.length === 2 ? "both lists" : `all ${lists.length} lists`}.`;
  byId("columns").replaceChildren(...answers.map((one) => column(one, times, lists.length)));
  byId("columns").ariaBusy = "false";
  say(answers.map(({ run, items, failed }) => (failed ? `${run.name}: ${failed}` : `${count(items.length, "item")} from ${run.name}, first ${items.length ? named(items[0]) : "none"}.`)).join(" "));
}

function column({ run, took, notes, items, failed }, times, lists) {
  const box = el("section", { className: "column", ariaLabel: run.name });
  box.style.setProperty("--mine", colour(run.name));
  box.append(el("h3", {}, el("span", { className: "dot", ariaHidden: "true" }), run.name), el("p", { className: "soft small" }, failed ? run.model : `${run.model} · ${took.toFixed(took < 10 ? 1 : 0)} ms`));
  if (failed) {
    box.append(el("p", { className: "warning small" }, failed));
    return box;
  }
  for (const note of notes) box.append(el("p", { className: "note small" }, note));
  // Scores have no zero that means anything: bars run from a little below the lowest to the highest of the list.
  const ends = items.flatMap(({ score, uncertainty }) => [score - (uncertainty ?? 0), score + (uncertainty ?? 0)]);
  const [low, high] = [Math.min(...ends), Math.max(...ends)];
  const at = (score) => `${(high > low ? 100 * clamp(0.06 + (0.94 * (score - low)) / (high - low), 0, 1) : 100).toFixed(1)}%`;
  const decimals = high - low > 5 ? 1 : high - low > 0.2 ? 2 : 4;
  box.append(el("ol", {}, items.map((item, n) => {
    const bar = el("div", { className: "bar", ariaHidden: "true" }, el("i"), item.uncertainty ? el("b") : null);
    const spread = item.uncertainty ?? 0;
    for (const [name, value] of [["--score", item.score], ["--from", item.score - spread], ["--to", item.score + spread]]) bar.style.setProperty(name, at(value));
    const within = times.get(String(item.item_id));
    const score = item.score.toFixed(decimals) + (item.uncertainty === null ? "" : ` ± ${spread && spread < 10 ** -decimals ? Number(spread.toPrecision(1)) : spread.toFixed(decimals)}`);
    return el("li", {},
      el("span", { className: "rank", ariaHidden: "true" }, n + 1),
      el("div", { className: "title" }, el("span", {}, named(item)), " ", within > 1 ? el("span", { className: "tag" }, lists === 2 ? "both" : `${within} of ${lists}`) : null),
      el("button", { type: "button", className: "tiny", title: "Add to the history", ariaLabel: `Add ${named(item)} to the history`, click: () => edit([...state.history, item]) }, "+"),
      el("div", { className: "line" }, bar, el("span", { className: "score soft small" }, score)), why(run, item));
  })));
  if (items.length) box.append(el("p", { className: "soft small" }, "Bars: lowest to highest score of this list; scores of different models are different quantities." + (items[0].uncertainty === null ? "" : ` Line: ± one standard deviation over ${state.samples} samples.`)));
  return box;
}

function why(run, item) {
  const listed = (head, items) => (items.length ? [el("p", { className: "soft" }, head), el("ul", {}, items.map((one) => el("li", {}, named(one), el("span", { className: "soft" }, ` ${one.cosine.toFixed(2)}`))))] : []);
  const says = listed("Nearest in the history, by cosine", item.why.nearest);
  if (item.why.paths.length) {
    says.push(el("p", { className: "soft" }, "In the knowledge graph"), el("ul", {}, item.why.paths.map((way) => {
      const back = way.relation_back === way.relation ? "" : ` (${way.relation_back})`;
      const words = way.entity === null ? `${way.relation}: ${named(way.touched_item)}` : `${way.relation}: ${way.entity}, as for ${named(way.touched_item)}${back}`;
      return el("li", { className: way.kept ? "" : "pruned" }, el("span", {}, words), " ", way.kept ? null : el("span", { className: "tag" }, "pruned by diffusion"));
    })));
  }
  if (!says.length) says.push(el("p", { className: "soft" }, state.history.length ? "This model has neither vectors of items nor a knowledge graph, so it can give no reason." : "There is no history to reason from."));
  const box = el("details", { className: "why small" }, el("summary", { ariaLabel: `Why ${named(item)}` }, "Why"), says);
  // What else is near is asked for when somebody looks.
  if (run.has_vectors) box.addEventListener("toggle", guarded(async () => {
    const near = (await api("similar", { model: run.name, items: [item.item_id], k: 4 })).results[0];
    if (near) box.append(...listed("Nearest in the catalogue", near.items));
  }), { once: true });
  return box;
}

// --- the explorer: the denoising path ----------------------------------------------------------------------------------

const maps = new Map();
let walk = null, player = null;

function mapOf(run) {
  const key = `${run.name} ${run.version}`;
  if (!maps.has(key)) maps.set(key, about(run.name, "map", { limit: 20000 }).catch((error) => { maps.delete(key); throw error; }));
  return maps.get(key);
}

async function path(answers, signal) {
  const fit = chosen().find((run) => run.has_vectors && run.max_sampling_steps !== null) ?? chosen().find((run) => run.has_vectors) ?? chosen()[0];
  const run = chosen().find((one) => one.name === state.path) ?? fit;
  byId("path-run").replaceChildren(...chosen().map((one) => new Option(one.name, one.name, false, one === run)));
  for (const id of ["map", "legend", "map-says", "player", "step-items"]) byId(id).hidden = !run.has_vectors;
  if (!run.has_vectors) {
    pause();
    byId("path-says").textContent = `${run.model} has no vectors of items, so there is no map, and no path on it.`;
    return;
  }
  // Calibration often says that one step is enough; a path of one step is none, so it is drawn with more.
  const steps = run.max_sampling_steps === null ? null : state.steps ?? Math.min(run.max_sampling_steps, Math.max(16, run.calibrated_steps ?? 16));
  const [shown, said] = await Promise.all([mapOf(run), api("denoise", { ...drawn(run, steps), ...forWhom() }, signal)]);
  if (signal.aborted) return;
  const places = new Map(shown.items.map((item) => [String(item.item_id), item]));
  const found = answers.find((one) => one.run === run)?.items ?? [];
  walk = { run, shown, places, steps: said.steps, found, notes: said.notes };
  pathSays(steps);
  const last = Math.max(0, said.steps.length - 1);
  byId("step").max = last;
  byId("player").hidden = said.steps.length < 2;
  const share = Math.round(100 * shown.explained);
  byId("map-says").textContent = `Every point is an item, by the direction of its vector: the two main directions of ${run.name}. ` +
    `They hold ${share} % of how the vectors differ. The other ${100 - share} % cannot be seen here, so what looks near may be far apart.` + (said.steps[0]?.state ? " Noise has no direction of its own, and mostly starts about the middle." : "") +
    (shown.total > CLOUD ? ` Grey: the ${CLOUD.toLocaleString("en")} of ${shown.total.toLocaleString("en")} items with the most events.` : "");
  drawMap();
  step(player ? 0 : clamp(state.step ?? last, 0, last));
}

function pathSays(steps) {
  const { run, steps: taken, notes } = walk;
  const same = (a, b) => a.items.every((item, n) => item.item_id === b.items[n]?.item_id);
  const moved = taken.filter((one, n) => n && !same(one, taken[n - 1])).length;
  const text = [];
  const none = notes.find((note) => note.includes("nothing to denoise"));
  if (!taken.length) text.push(none ?? `${run.model} does not denoise, so there is no path: the map has the history and what is recommended.`);
  else {
    const long = count(taken.length, "step");
    if (taken[0].state) text.push(`From noise to items in ${long}. At each the network is given a noisy state and guesses the end.`);
    else text.push(`${long}. At each the network guesses the end anew; what it is given is no item vector, so the map has the guesses alone.`);
    if (state.steps === null && run.calibrated_steps !== null && run.calibrated_steps !== steps) text.push(`The answer above takes ${run.calibrated_steps}, as calibrated; more are drawn here to look at.`);
    if (taken.length > 1) text.push(moved ? `The first ${taken[0].items.length} items changed in ${moved} of ${taken.length - 1} steps.` : "The list never changed on the way: for this history the first x0_hat decides.");
  }
  byId("path-says").textContent = text.join(" ");
}

const at = (points) => ({ x: points.map((point) => point?.[0] ?? null), y: points.map((point) => point?.[1] ?? null) });
const placed = (items) => {
  const known = items.map((item) => walk.places.get(String(item.item_id))).filter(Boolean);
  return { ...at(known.map(({ x, y }) => [x, y])), text: known.map((item) => plain(named(item))) };
};

function drawMap() {
  const mark = (name, color, marker, more = {}) => ({ type: "scatter", mode: "markers", name, x: [], y: [], marker: { color, ...marker }, hovertemplate: "%{text}<extra></extra>", ...more });
  const track = (name, color, line, marker) => mark(name, color, marker, { mode: "lines+markers", line: { color, ...line }, hovertemplate: `${name} at step %{text}<extra></extra>` });
  const edge = (color) => ({ line: { color, width: 1.5 } });
  const cloud = walk.shown.items.slice(0, CLOUD), past = placed(state.history);
  const traces = [
    mark("items", css("--cloud"), { size: 4 }, placed(cloud)),
    // Most models read the latest items only, or most.
    mark("history", css("--past"), { size: past.text.map((_, n) => (past.text.length - n <= LATEST ? 9 : 5)), symbol: "square-open", line: { width: 1.5 } }, past),
    mark("first items", css("--pick"), { size: 10, symbol: "diamond", ...edge(css("--paper")) }),
    track("state", css("--soft"), { width: 1, dash: "dot" }, { size: 4 }),
    track("x0_hat", css("--walk"), { width: 2 }, { size: 5 }),
    mark("now", [css("--soft"), css("--walk")], { size: 13, symbol: ["circle-open", "circle"], ...edge(css("--ink")) }),
  ];
  const points = [...cloud.map(({ x, y }) => [x, y]), ...walk.steps.flatMap((one) => [one.x0_hat, ...(one.state ? [one.state] : [])])];
  const range = (axis) => {
    const values = points.map((point) => point[axis]);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return [low - 0.05 * (high - low || 1), high + 0.05 * (high - low || 1)];
  };
  const bare = { showgrid: false, zeroline: false, showline: false, showticklabels: false, automargin: false };
  draw("map", traces, { height: innerWidth < 600 ? 340 : 500, margin: { l: 0, r: 0, t: 0, b: 0 }, dragmode: false, xaxis: { ...bare, range: range(0), fixedrange: true }, yaxis: { ...bare, range: range(1), fixedrange: true } });
  const keys = [["•", "--cloud", "item"], ["□", "--past", state.history.length > LATEST ? `history, the latest ${LATEST} large` : "history"], ["◆", "--pick", walk.steps.length ? "first items at this step" : "recommended"], ...(walk.steps[0]?.state ? [["○", "--soft", "noisy state"]] : []), ...(walk.steps.length ? [["●", "--walk", "x0_hat"]] : [])];
  byId("legend").replaceChildren(...keys.map(([glyph, color, text]) => {
    const sign = el("b", { ariaHidden: "true" }, glyph);
    sign.style.color = `var(${color})`;
    return el("span", {}, sign, ` ${text}`);
  }));
}

function step(number) {
  const taken = walk.steps.slice(0, number + 1), now = taken.at(-1), before = taken.at(-2);
  const items = now ? now.items : walk.found;
  const numbers = taken.map((_, n) => n + 1);
  const lines = [placed(items), { ...at(taken.map((one) => one.state)), text: numbers }, { ...at(taken.map((one) => one.x0_hat)), text: numbers },
    { ...at(now ? [now.state, now.x0_hat] : []), text: now ? ["state now", "x0_hat now"] : [] }];
  // A frame of four traces leaves the cloud alone, which a restyling would draw again. One may overtake another.
  const still = { mode: "immediate", transition: { duration: 0 }, frame: { duration: 0, redraw: false } };
  Plotly.animate(byId("map"), { data: lines, traces: [2, 3, 4, 5] }, still).catch(() => {});
  byId("step").value = number;
  byId("step-out").textContent = now ? `${number + 1} of ${walk.steps.length}, t = ${now.t}` : "";
  byId("step").setAttribute("aria-valuetext", `step ${number + 1}, first ${items.length ? named(items[0]) : "none"}`);
  byId("step-head").textContent = now ? `First ${items.length} at step ${number + 1}` : `First ${items.length}`;
  const past = new Set(ids().map(String));
  const earlier = new Map(before?.items.map((item, n) => [item.item_id, n]));
  byId("step-list").replaceChildren(...items.map((item, n) => {
    const was = earlier.get(item.item_id);
    const change = !before || was === n ? "" : was === undefined ? "new" : was > n ? `↑ ${was - n}` : `↓ ${n - was}`;
    return el("li", {}, el("span", {}, named(item), past.has(String(item.item_id)) ? el("span", { className: "soft small" }, " in the history") : null),
      el("span", { className: "change small" }, change));
  }));
}

function goTo(number) {
  state.step = number;
  toAddress();
  step(number);
}

function pause() {
  clearInterval(player);
  player = null;
  byId("play").textContent = "Play";
}

function play() {
  if (player) return pause();
  if (!walk || walk.steps.length < 2) return;
  const last = walk.steps.length - 1;
  if (Number(byId("step").value) >= last) goTo(0);
  byId("play").textContent = "Pause";
  // Nothing glides anyway; people who want little motion get fewer changes a second.
  player = setInterval(() => {
    const next = Math.min(Number(byId("step").value) + 1, walk.steps.length - 1);
    goTo(next);
    if (next >= walk.steps.length - 1) pause();
  }, calm.matches ? 1500 : 500);
}

// --- the explorer: its events --------------------------------------------------------------------------------------------

async function explorer() {
  const on = (id, event, run) => byId(id).addEventListener(event, run);
  const open = async () => {
    pause();
    await fromAddress();
    runPicker(state.runs, (names) => { state.runs = names; changed(); });
    changed();
  };
  combobox();
  on("person", "input", debounced(150, guarded(async () => {
    const { users } = await about(state.runs[0], "users", { q: byId("person").value, limit: 20 });
    byId("people").replaceChildren(...users.map((user) => new Option(user, user)));
  })));
  on("person-form", "submit", guarded(async (event) => {
    event.preventDefault();
    await takeHistory(byId("person").value.trim());
    state.step = null;
    changed();
  }));
  const number = (id, low, high) => on(id, "input", () => {
    if (byId(id).value === "") return;
    const value = Number(byId(id).value);
    state[id] = clamp(id === "noise" ? value : Math.round(value), low, high);
    state.step = null;
    changed();
  });
  number("steps", 1, 10000); number("samples", 1, 32); number("noise", 0, 3); number("k", 1, 50);
  number("seed", -Number.MAX_SAFE_INTEGER, Number.MAX_SAFE_INTEGER);
  on("again", "click", () => { state.seed += 1; changed(); });
  on("unseen", "change", () => { state.unseen = byId("unseen").checked; changed(); });
  on("reset", "click", () => { Object.assign(state, DEFAULTS, { step: null }); changed(); });
  on("clear", "click", () => { edit([]); byId("search").focus(); });
  on("chips", "focusin", (event) => {
    for (const name of byId("chips").querySelectorAll(".chip-name")) name.tabIndex = event.target.closest("li").contains(name) ? 0 : -1;
  });
  on("earlier", "click", () => { unfolded = !unfolded; chips(); });
  on("path-run", "change", () => { pause(); state.path = byId("path-run").value; state.step = null; changed(); });
  on("step", "input", () => { pause(); goTo(Number(byId("step").value)); });
  on("play", "click", play);
  document.addEventListener("keydown", (event) => {
    const here = byId("path").getBoundingClientRect();
    const looking = byId("path").contains(event.target) || (here.top < innerHeight / 2 && here.bottom > innerHeight / 4);
    if (event.key !== " " || !looking || byId("player").hidden || event.target.closest("button, input:not(#step), select, summary, a")) return;
    event.preventDefault();
    play();
  });
  window.addEventListener("hashchange", guarded(open));
  if (innerWidth < 900) byId("settings").open = false;
  await open();
  return () => { if (walk && !byId("map").hidden) { drawMap(); step(Number(byId("step").value)); } };
}

// --- the training page -----------------------------------------------------------------------------------------------------

async function training() {
  const said = new URLSearchParams(location.hash.slice(1));
  const known = said.getAll("run").filter((name) => runs.some((run) => run.name === name));
  let names = known.length ? known : runs.slice(0, 2).map((run) => run.name);
  let metric = said.get("metric");
  const told = new Map();
  const show = guarded(async () => {
    await Promise.all(names.filter((name) => !told.has(name)).map(async (name) => told.set(name, await about(name, "training"))));
    trouble(null);
    const list = names.map((name) => ({ name, ...told.get(name) }));
    const metrics = [...new Set(list.flatMap((run) => run.epochs.flatMap((one) => Object.keys(one.validation ?? {}))))];
    if (!metrics.includes(metric)) metric = list.find((run) => metrics.includes(run.metric))?.metric ?? metrics[0] ?? null;
    byId("metric").replaceChildren(...metrics.map((name) => new Option(inWords(name), name, false, name === metric)));
    window.history.replaceState(null, "", `#${new URLSearchParams([...names.map((name) => ["run", name]), ...(metric ? [["metric", metric]] : [])])}`);
    metricsTable(list);
    curves(list, metric);
    slices(list, metric);
    quality(list);
    byId("cards").replaceChildren(...list.map((run, n) => el("details", { open: n === 0, className: "card" }, el("summary", {}, run.name), el("div", {}, markdown(run.card)))));
    say(`Training of ${names.join(", ")}.`);
  });
  runPicker(names, (chosen) => { names = chosen; show(); });
  byId("metric").addEventListener("change", () => { metric = byId("metric").value; show(); });
  await show();
  return show;
}

const inWords = (metric) => (metric.endsWith("/unseen") ? `${metric.slice(0, -7)}, seen items filtered` : `${metric}, seen items kept`);

function metricsTable(list) {
  const shown = ["hr@10", "ndcg@10", "recall@20", "mrr@10"];
  const rows = list.flatMap(({ name, validation, test }) => ["kept", "filtered"].flatMap((seen) => {
    const suffix = seen === "kept" ? "" : "/unseen";
    const parts = [["validation", shown.map((metric) => validation?.[metric + suffix])], ["test", shown.map((metric) => test?.[seen === "kept" ? "all" : "unseen"]?.[metric])]];
    return parts.filter(([, values]) => values.some((value) => value !== undefined)).map(([part, values]) => [name, part, seen, ...values.map((value) => (value === undefined ? "–" : value.toFixed(4)))]);
  }));
  const line = (kind, cells) => el("tr", {}, cells.map((cell) => el(kind, kind === "th" ? { scope: "col" } : {}, cell)));
  byId("metrics").replaceChildren(el("thead", {}, line("th", ["run", "part", "seen items", ...shown])), el("tbody", {}, rows.map((cells) => line("td", cells))));
  const without = list.filter((run) => !run.test).map((run) => run.name);
  if (without.length) byId("metrics").append(el("caption", {}, `Not evaluated on the test part: ${without.join(", ")} (rediffuse evaluate).`));
}

const lineOf = (name, x, y, more = {}) => ({ type: "scatter", mode: "lines+markers", name: plain(name), x, y, line: { color: colour(name), width: 2 }, marker: { color: colour(name), size: 5 }, hovertemplate: `${plain(name)}<br>%{x}: %{y:.4f}<extra></extra>`, ...more });

function curves(list, metric) {
  byId("curves").hidden = !list.some((run) => run.epochs.length);
  if (byId("curves").hidden) return;
  const losses = [], values = [];
  for (const { name, epochs } of list) {
    const phases = [...new Set(epochs.map((one) => one.phase))];
    phases.forEach((phase, n) => {
      const mine = epochs.filter((one) => one.phase === phase);
      const dash = ["solid", "dot", "dash"][n % 3], label = phases.length > 1 ? `${name}, ${phase}` : name;
      const styled = (trace) => ({ ...trace, line: { color: colour(name), width: 2, dash }, marker: { color: colour(name), size: 4 }, name: plain(label), hovertemplate: `${plain(label)}<br>epoch %{x}: %{y:.4f}<extra></extra>` });
      losses.push(styled(lineOf(name, mine.map((one) => one.epoch), mine.map((one) => one.loss))));
      const measured = mine.filter((one) => one.validation?.[metric] !== undefined);
      if (!measured.length) return;
      values.push(styled(lineOf(name, measured.map((one) => one.epoch), measured.map((one) => one.validation[metric]))));
    });
    const { best_epoch } = list.find((run) => run.name === name);
    const best = epochs.findLast((one) => one.epoch === best_epoch);
    if (best?.validation?.[metric] !== undefined) values.push({ type: "scatter", mode: "markers", x: [best.epoch], y: [best.validation[metric]], marker: { symbol: "circle-open", size: 14, color: colour(name), line: { width: 2 } }, hovertemplate: `${plain(name)}: best epoch %{x}<extra></extra>` });
  }
  draw("loss", losses, { x: "epoch", y: "loss" });
  draw("validation", values, { x: "epoch", y: metric ? inWords(metric) : "" });
}

function slices(list, metric) {
  const measured = list.filter((run) => run.slices.length && metric in run.slices[0]);
  byId("slices").hidden = !measured.length;
  if (!measured.length) return;
  draw("slices-plot", measured.map(({ name, slices: rows }) => lineOf(name, rows.map((row) => `${row.slice}<br>n = ${row.people.toLocaleString("en")}`), rows.map((row) => row[metric]), { line: { color: colour(name), width: 1.5 }, marker: { color: colour(name), size: 8 } })),
    { x: "events in the history", y: inWords(metric), xaxis: { type: "category" }, yaxis: { rangemode: "tozero" } });
}

function quality(list) {
  const measured = list.filter(({ metric_by_steps }) => metric_by_steps).map(({ name, metric, metric_by_steps }) => (
    { name, metric, points: Object.entries(metric_by_steps).map(([steps, value]) => [Number(steps), value]) }
  ));
  byId("quality").hidden = !measured.length;
  if (!measured.length) return;
  const level = measured.filter(({ points }) => new Set(points.map(([, value]) => value.toFixed(4))).size === 1).map(({ name }) => name);
  byId("quality-says").textContent = "Validation metric by the number of denoising steps; the fewest that are as good as any are taken by default." +
    (level.length ? ` Of ${level.join(", ")} it is the same for all: one step is as good as many.` : "");
  const ticks = [...new Set(measured.flatMap(({ points }) => points.map(([steps]) => steps)))];
  draw("quality-plot", measured.map(({ name, points }) => lineOf(name, points.map(([steps]) => steps), points.map(([, value]) => value))),
    { x: "denoising steps", y: measured[0].metric, height: 280, xaxis: { type: "log", tickvals: ticks, ticktext: ticks.map(String) }, yaxis: { rangemode: "tozero" } });
}

// As much of Markdown as model cards use. It makes nodes, not HTML, so nothing in a card can become a tag.
function markdown(text) {
  const lines = text.split("\n"), out = [];
  const inline = (words) => words.split(/(`[^`]+`|\*\*[^*]+\*\*)/).map((part) => {
    if (/^`.+`$/.test(part)) return el("code", {}, part.slice(1, -1));
    return /^\*\*.+\*\*$/.test(part) ? el("strong", {}, part.slice(2, -2)) : part;
  });
  const cells = (line) => line.replace(/^\||\|\s*$/g, "").split("|").map((cell) => cell.trim());
  const run = (pattern) => {
    const found = [];
    while (lines.length && pattern.test(lines[0])) found.push(lines.shift());
    return found;
  };
  while (lines.length) {
    const heading = /^(#{1,4}) (.*)/.exec(lines[0]);
    if (!lines[0].trim()) lines.shift();
    else if (heading) {
      lines.shift();
      out.push(el(`h${Math.min(6, heading[1].length + 2)}`, {}, inline(heading[2])));
    } else if (lines[0].startsWith("```")) {
      lines.shift();
      out.push(el("pre", { tabIndex: 0 }, el("code", {}, run(/^(?!```)/).join("\n"))));
      lines.shift();
    } else if (lines[0].startsWith("|")) {
      const [head, , ...rows] = run(/^\|/).map(cells);
      const line = (kind, row) => el("tr", {}, row.map((cell) => el(kind, {}, inline(cell))));
      out.push(el("div", { className: "scroll" }, el("table", {}, el("thead", {}, line("th", head)), el("tbody", {}, rows.map((row) => line("td", row))))));
    } else if (/^[-*] /.test(lines[0])) out.push(el("ul", {}, run(/^[-*] /).map((line) => el("li", {}, inline(line.slice(2))))));
    else if (/^\d+\. /.test(lines[0])) out.push(el("ol", {}, run(/^\d+\. /).map((line) => el("li", {}, inline(line.replace(/^\d+\. /, ""))))));
    else out.push(el("p", {}, inline([lines.shift(), ...run(/^(?!#{1,4} |```|\||[-*] |\d+\. )\s*\S/)].join(" "))));
  }
  return out;
}

// --- both ------------------------------------------------------------------------------------------------------------------

async function start() {
  runs = (await api("models")).models;
  document.body.classList.remove("waiting");
  const redraw = await { explorer, training }[document.body.dataset.page]();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}

// Browsers give a clipboard to pages of this machine and of https alone; elsewhere there is the address bar.
byId("copy").hidden = !navigator.clipboard;
byId("copy").addEventListener("click", guarded(async () => {
  await navigator.clipboard.writeText(location.href);
  byId("copy").textContent = "Copied";
  setTimeout(() => { byId("copy").textContent = "Copy link"; }, 2000);
}));
guarded(start)();

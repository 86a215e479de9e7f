// The recommendations of the runs, side by side.

import { api, modelApi } from "./api.js";
import { announce, byId, clamp, el, guarded, plural, titleOf } from "./dom.js";
import { filterFor } from "./filters.js";
import { colourOf } from "./runs.js";
import { shareBar, shareLegend, shareList } from "./shares.js";
import { editHistory, historyIds, MAX_HISTORY, shownRuns, state } from "./state.js";

/** `user` or `history` of a request. Histories in requests are limited, those of known users are not. */
export const userOrHistory = () => (state.user !== null ? { user: state.user } : { history: historyIds().slice(-MAX_HISTORY) });

/** The options of a request that apply to a run. */
export const optionsFor = (run, steps = state.sampling_steps) => ({
  model: run.model,
  k: state.k,
  ...(run.stochastic && { seed: state.seed, noise: state.noise }),
  ...(steps !== null && run.max_sampling_steps !== null && { sampling_steps: Math.min(steps, run.max_sampling_steps) }),
});

/** Request recommendations from the runs: [{run, latency, notes, items}] or [{run, failure}]. */
export async function recommend(signal) {
  byId("columns").ariaBusy = "true";
  const { user, history } = userOrHistory();
  const results = [];
  // One after the other: requests at the same time would wait for each other, which would add to their latency.
  for (const run of shownRuns()) {
    const { filter, notes } = filterFor(run);
    const body = {
      ...optionsFor(run), ...filter, ...(history ? { histories: [history] } : { users: [user] }),
      filter_seen: state.filter_seen, samples: run.stochastic ? state.samples : 1, explain: true,
    };
    const began = performance.now();
    try {
      const response = await api("recommend", body, signal);
      run.version = response.version; // after a reload the run has another map, too
      const latency = performance.now() - began, { items } = response.results[0];
      await addColumns(run, items);
      results.push({ run, latency, notes: [...notes, ...response.notes], items });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      results.push({ run, failure: error.message, notes: [], items: [] });
    }
  }
  return results;
}

/** Add what the item table says about each item. */
async function addColumns(run, items) {
  if (!run.item_columns.some(({ name }) => name !== "title") || !items.length) return;
  const ids = items.slice(0, 50).map(({ item_id }) => item_id);
  const rows = (await modelApi(run.model, "columns", {}, { items: ids })).items;
  const found = new Map(rows.map(({ item_id, columns }) => [item_id, columns]));
  for (const item of items) item.columns = found.get(item.item_id);
}

/** The columns of an item as a line; the title is shown above it. */
function columnLine(item) {
  const shown = Object.entries(item.columns ?? {}).filter(([, value]) => value !== null && value !== item.title);
  const text = shown.map(([name, value]) => `${name}: ${Array.isArray(value) ? value.join(", ") : value}`).join(" · ");
  return text ? el("div", { className: "soft small item-columns" }, text) : null;
}

export function renderRecommendations(results) {
  const lists = results.filter((result) => !result.failure);
  const occurrences = new Map();
  for (const { items } of lists) {
    for (const item of items) occurrences.set(item.item_id, (occurrences.get(item.item_id) ?? 0) + 1);
  }
  const shared = [...occurrences.values()].filter((n) => n === lists.length).length;
  const all = lists.length === 2 ? "both lists" : `all ${lists.length} lists`;
  byId("agreement").textContent = lists.length < 2 ? "" : `${shared} of ${state.k} items are in ${all}.`;
  byId("columns").replaceChildren(...results.map((result) => column(result, occurrences, lists.length)));
  byId("columns").ariaBusy = "false";
  announce(results.map(({ run, items, failure }) => (failure ? `${run.model}: ${failure}`
    : `${plural(items.length, "item")} from ${run.model}, first ${items.length ? titleOf(items[0]) : "none"}.`)).join(" "));
}

function column({ run, latency, notes, items, failure }, occurrences, lists) {
  const box = el("section", { className: "column", ariaLabel: run.model });
  box.style.setProperty("--run", colourOf(run.model));
  box.append(el("h3", {}, el("span", { className: "dot", ariaHidden: "true" }), run.model));
  if (failure) {
    box.append(el("p", { className: "soft small" }, run.architecture), el("p", { className: "warning small" }, failure));
    return box;
  }
  const milliseconds = latency.toFixed(latency < 10 ? 1 : 0);
  box.append(el("p", { className: "soft small", title: "Latency of the request, as measured by this page" }, `${run.architecture} · ${milliseconds} ms`));
  box.append(...notes.map((note) => el("p", { className: "note small" }, note)));
  const scale = scoreScale(items);
  box.append(el("ol", {}, items.map((item, n) => row(run, item, n, scale, occurrences.get(item.item_id), lists))));
  if (items.length) {
    const whiskers = items[0].uncertainty === null ? "" : ` Whiskers: ± one standard deviation over ${state.samples} samples.`;
    box.append(el("p", { className: "soft small" }, `Bars run from the lowest to the highest score of this list. Scores of different models are not comparable.${whiskers}`));
    if (run.explains_scores) box.append(shareLegend());
  } else {
    const causes = [state.filters.length ? "the filters" : "", state.filter_seen ? "leaving out seen items" : ""].filter(Boolean);
    box.append(el("p", { className: "soft" }, `No item is left to recommend${causes.length ? ` after ${causes.join(" and ")}` : ""}.`));
  }
  return box;
}

/** Zero means nothing for scores, so bars begin a little below the lowest score of the list and end at the highest. */
function scoreScale(items) {
  const ends = items.flatMap(({ score, uncertainty }) => [score - (uncertainty ?? 0), score + (uncertainty ?? 0)]);
  const [low, high] = [Math.min(...ends), Math.max(...ends)];
  const share = (score) => (high > low ? 100 * clamp(0.06 + (0.94 * (score - low)) / (high - low), 0, 1) : 100);
  // The masses of a diffusion may be small numbers.
  const decimals = high - low > 5 ? 1 : high - low > 0.2 ? 2 : high > low ? clamp(2 - Math.floor(Math.log10(high - low)), 4, 12) : 4;
  return { percent: (score) => `${share(score).toFixed(1)}%`, decimals };
}

function row(run, item, n, { percent, decimals }, occurrences, lists) {
  const deviation = item.uncertainty ?? 0;
  const bar = el("div", { className: "bar", ariaHidden: "true" }, el("i"), item.uncertainty ? el("b") : null);
  bar.style.setProperty("--score", percent(item.score));
  bar.style.setProperty("--from", percent(item.score - deviation));
  bar.style.setProperty("--to", percent(item.score + deviation));
  const rounded = deviation && deviation < 10 ** -decimals ? Number(deviation.toPrecision(1)) : deviation.toFixed(decimals);
  const score = item.score.toFixed(decimals) + (item.uncertainty === null ? "" : ` ± ${rounded}`);
  const tag = occurrences > 1 ? el("span", { className: "tag" }, lists === 2 ? "both" : `${occurrences} of ${lists}`) : null;
  const fresh = item.new ? el("span", { className: "tag", title: "No interaction in training: ranked by its features" }, "new") : null;
  return el("li", {},
    el("span", { className: "rank", ariaHidden: "true" }, n + 1),
    el("div", { className: "title" }, el("span", {}, titleOf(item)), " ", fresh, " ", tag, columnLine(item)),
    el("button", {
      type: "button", className: "tiny", title: "Add to the history", ariaLabel: `Add ${titleOf(item)} to the history`,
      click: () => editHistory([...state.history, item]),
    }, "+"),
    el("div", { className: "line" }, bar, el("span", { className: "score soft small" }, score)),
    ...shareBar(item.explanation.contributions),
    explanation(run, item));
}

function explanation(run, item) {
  const { contributions, nearest, paths } = item.explanation;
  const list = (heading, items) => (!items.length ? [] : [
    el("p", { className: "soft" }, heading),
    el("ul", {}, items.map((one) => el("li", {}, titleOf(one), el("span", { className: "soft" }, ` ${Number((one.cosine ?? one.weight).toPrecision(2))}`)))),
  ]);
  const content = shareList(contributions);
  content.push(...list("Nearest in the history, by cosine", nearest));
  if (paths.length) content.push(el("p", { className: "soft" }, "In the knowledge graph"), el("ul", {}, paths.map(knowledgePath)));
  if (!content.length) {
    const reason = state.history.length ? "This model has neither item vectors nor a knowledge graph." : "The history is empty.";
    content.push(el("p", { className: "soft" }, `No explanation. ${reason}`));
  }
  const box = el("details", { className: "explanation small" }, el("summary", { ariaLabel: `Why ${titleOf(item)}` }, "Why"), content);
  // Similar items are requested when the explanation is opened.
  if (run.has_similar) box.addEventListener("toggle", guarded(async () => {
    const similar = (await api("similar", { model: run.model, items: [item.item_id], k: 4 })).results[0];
    if (similar) box.append(...list(`Most similar in the catalogue, by ${similar.items[0]?.weight == null ? "cosine" : "weight"}`, similar.items));
  }), { once: true });
  return box;
}

function knowledgePath(path) {
  const item = titleOf(path.history_item);
  const back = path.relation_back === path.relation ? "" : ` (${path.relation_back})`;
  const text = path.entity === null ? `${path.relation}: ${item}` : `${path.relation}: ${path.entity}, as for ${item}${back}`;
  const tag = path.kept ? null : el("span", { className: "tag" }, "pruned by diffusion");
  return el("li", { className: path.kept ? "" : "pruned" }, el("span", {}, text), " ", tag);
}

// The training page: metrics, curves, slices, quality by sampling steps, and model cards.

import { modelApi } from "./api.js";
import { announce, byId, el, guarded, showError } from "./dom.js";
import { markdown } from "./markdown.js";
import { draw, plotText } from "./plots.js";
import { colourOf, namesOf, renderRunPicker } from "./runs.js";
import { start } from "./start.js";

const TABLE_METRICS = ["hr@10", "ndcg@10", "recall@20", "mrr@10"];
const metricLabel = (metric) => {
  const [name, seen] = metric.endsWith("/unseen") ? [metric.slice(0, -7), "filtered"] : [metric, "kept"];
  return `${name.replace("with_history/", "users with a history: ")}, seen items ${seen}`;
};

start(async () => {
  const query = new URLSearchParams(location.hash.slice(1));
  let names = namesOf(query), metric = query.get("metric");
  const loaded = new Map(); // the training of runs, by name
  const render = guarded(async () => {
    await Promise.all(names.filter((name) => !loaded.has(name)).map(async (name) => loaded.set(name, await modelApi(name, "training"))));
    showError(null);
    const runs = names.map((name) => ({ name, ...loaded.get(name) }));
    const metrics = [...new Set(runs.flatMap((run) => run.epochs.flatMap((epoch) => Object.keys(epoch.validation ?? {}))))];
    if (!metrics.includes(metric)) metric = runs.find((run) => metrics.includes(run.metric))?.metric ?? metrics[0] ?? null;
    byId("metric").replaceChildren(...metrics.map((name) => new Option(metricLabel(name), name, false, name === metric)));
    const address = new URLSearchParams([...names.map((name) => ["run", name]), ...(metric ? [["metric", metric]] : [])]);
    window.history.replaceState(null, "", `#${address}`);
    renderMetrics(runs);
    drawCurves(runs, metric);
    drawSlices(runs, metric);
    drawQuality(runs);
    byId("cards").replaceChildren(...runs.map((run, n) => el("details", { open: n === 0, className: "card" },
      el("summary", {}, run.name), el("div", {}, markdown(run.card)))));
    announce(`Training of ${names.join(", ")}.`);
  });
  renderRunPicker(names, (checked) => { names = checked; render(); });
  byId("metric").addEventListener("change", () => { metric = byId("metric").value; render(); });
  await render();
  return render;
});

function renderMetrics(runs) {
  const rows = runs.flatMap(({ name, validation, test }) => ["kept", "filtered"].flatMap((seen) => {
    const suffix = seen === "kept" ? "" : "/unseen", policy = seen === "kept" ? "all" : "unseen";
    const subsets = [
      ["validation", TABLE_METRICS.map((metric) => validation?.[metric + suffix])],
      ["test", TABLE_METRICS.map((metric) => test?.[policy]?.[metric])],
    ];
    return subsets.filter(([, values]) => values.some((value) => value !== undefined))
      .map(([subset, values]) => [name, subset, seen, ...values.map((value) => (value === undefined ? "–" : value.toFixed(4)))]);
  }));
  const line = (tag, cells) => el("tr", {}, cells.map((cell) => el(tag, tag === "th" ? { scope: "col" } : {}, cell)));
  byId("metrics").replaceChildren(el("thead", {}, line("th", ["run", "subset", "seen items", ...TABLE_METRICS])),
    el("tbody", {}, rows.map((cells) => line("td", cells))));
  const missing = runs.filter((run) => !run.test).map((run) => run.name);
  if (missing.length) byId("metrics").append(el("caption", {}, `Not evaluated on the test subset: ${missing.join(", ")} (run: rediffuse evaluate).`));
}

const trace = (name, x, y, more = {}) => ({
  type: "scatter", mode: "lines+markers", name: plotText(name), x, y,
  line: { color: colourOf(name), width: 2 }, marker: { color: colourOf(name), size: 5 },
  hovertemplate: `${plotText(name)}<br>%{x}: %{y:.4f}<extra></extra>`, ...more,
});

function drawCurves(runs, metric) {
  byId("curves").hidden = !runs.some((run) => run.epochs.length);
  if (byId("curves").hidden) return;
  const losses = [], values = [];
  for (const { name, epochs, best_epoch } of runs) {
    const color = colourOf(name), phases = [...new Set(epochs.map((epoch) => epoch.phase))];
    phases.forEach((phase, n) => {
      const label = plotText(phases.length > 1 ? `${name}, ${phase}` : name);
      const style = {
        name: label, line: { color, width: 2, dash: ["solid", "dot", "dash"][n % 3] }, marker: { color, size: 4 },
        hovertemplate: `${label}<br>epoch %{x}: %{y:.4f}<extra></extra>`,
      };
      const inPhase = epochs.filter((epoch) => epoch.phase === phase);
      const validated = inPhase.filter((epoch) => epoch.validation?.[metric] !== undefined);
      losses.push(trace(name, inPhase.map((one) => one.epoch), inPhase.map((one) => one.loss), style));
      if (validated.length) values.push(trace(name, validated.map((one) => one.epoch), validated.map((one) => one.validation[metric]), style));
    });
    const best = epochs.findLast((epoch) => epoch.epoch === best_epoch)?.validation?.[metric];
    if (best !== undefined) {
      values.push({
        type: "scatter", mode: "markers", x: [best_epoch], y: [best],
        marker: { symbol: "circle-open", size: 14, color, line: { width: 2 } }, hovertemplate: `${plotText(name)}: best epoch %{x}<extra></extra>`,
      });
    }
  }
  draw("loss", losses, { x: "epoch", y: "loss" });
  draw("validation", values, { x: "epoch", y: metric ? metricLabel(metric) : "" });
}

function drawSlices(runs, metric) {
  const evaluated = runs.filter((run) => run.slices.length && metric in run.slices[0]);
  byId("slices").hidden = !evaluated.length;
  if (!evaluated.length) return;
  const traces = evaluated.map(({ name, slices }) => trace(name,
    slices.map((row) => `${row.slice}<br>${row.users.toLocaleString("en")} users`), slices.map((row) => row[metric]),
    { line: { color: colourOf(name), width: 1.5 }, marker: { color: colourOf(name), size: 8 } }));
  draw("slices-plot", traces, { x: "interactions in the history", y: metricLabel(metric), xaxis: { type: "category" }, yaxis: { rangemode: "tozero" } });
}

function drawQuality(runs) {
  const calibrated = runs.filter((run) => run.metric_by_steps).map(({ name, metric, metric_by_steps }) => (
    { name, metric, points: Object.entries(metric_by_steps).map(([steps, value]) => [Number(steps), value]) }
  ));
  byId("quality").hidden = !calibrated.length;
  if (!calibrated.length) return;
  const constant = calibrated.filter(({ points }) => new Set(points.map(([, value]) => value.toFixed(4))).size === 1).map(({ name }) => name);
  byId("quality-note").textContent = "Validation metric by number of sampling steps. By default, a run uses the smallest number that is as good as any other." +
    (constant.length ? ` For ${constant.join(", ")}, the metric is the same for every number: one step is as good as many.` : "");
  const ticks = [...new Set(calibrated.flatMap(({ points }) => points.map(([steps]) => steps)))];
  draw("quality-plot", calibrated.map(({ name, points }) => trace(name, points.map(([steps]) => steps), points.map(([, value]) => value))), {
    x: "sampling steps", y: calibrated[0].metric, height: 280,
    xaxis: { type: "log", tickvals: ticks, ticktext: ticks.map(String) }, yaxis: { rangemode: "tozero" },
  });
}

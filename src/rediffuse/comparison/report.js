"use strict";
const D = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
// Okabe & Ito's colours, which are distinct with any colour vision; ten symbols repeat the distinction.
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C00", "#7A5CD0", "#A6761D", "#6B7280"];
const GLYPHS = [..."●■◆▲✕★⬢✚▼⬟"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "x", "star", "hexagon", "cross", "triangle-down", "pentagon"];
const labels = [...new Set(D.summary.map((row) => row.variant))];
const style = (label) => {
  const place = labels.indexOf(label);
  return { color: COLOURS[place % COLOURS.length], symbol: SYMBOLS[place % SYMBOLS.length] };
};
// Higher is better for these metrics; for the others, no value is marked as best.
const ACCURACY = /^(hr|ndcg|recall|precision|map|mrr)@/;
const SHOWN = ["hr@10", "ndcg@10", "recall@20", "mrr@10", "coverage@10", "gini@10", "novelty@10", "popularity_lift@10", "diversity@10", "calibration@10"];
const state = { policy: D.policy, metric: D.metric, sort: D.metric, ascending: false };
if (!D.facts.protocol.seen.includes(state.policy)) state.policy = D.facts.protocol.seen[0];

// Adding zero turns -0 into 0, so "-0.0000" is not shown.
const digits = (value, n = 4) => (value === null || value === undefined ? "" : (Number(value.toFixed(n)) + 0).toFixed(n));
const whole = (value) => (value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en"));
const probability = (p) => (p === null ? "" : p < 0.0001 ? "< 0.0001" : p.toPrecision(2));
const of = (rows, wanted) => rows.filter((row) => Object.entries(wanted).every(([key, value]) => row[key] === value));

function fill(table, heads, rows) {
  table.replaceChildren();
  const head = table.createTHead().insertRow();
  for (const name of heads) {
    const cell = document.createElement("th");
    if (name instanceof Node) cell.append(name);
    else cell.textContent = name;
    head.append(cell);
  }
  const body = table.createTBody();
  for (const { cells, kind } of rows) {
    const row = body.insertRow();
    if (kind) row.className = kind;
    for (const value of cells) {
      const cell = row.insertCell();
      if (value && typeof value === "object") {
        cell.textContent = value.text;
        if (value.best) cell.className = "best";
        if (value.small) cell.append(Object.assign(document.createElement("small"), { textContent: ` ${value.small}` }));
      } else cell.textContent = value;
    }
  }
  return head;
}

function summary() {
  const rows = of(D.summary, { policy: state.policy });
  const names = SHOWN.filter((name) => rows.some((row) => row.metric === name));
  if (!names.includes(state.metric)) names.unshift(state.metric);
  const value = (label, metric) => rows.find((row) => row.variant === label && row.metric === metric);
  const best = (metric) => Math.max(...labels.map((label) => value(label, metric)?.mean ?? -Infinity));
  const order = [...labels].sort((a, b) => {
    const [x, y] = [a, b].map((label) => value(label, state.sort)?.mean ?? -Infinity);
    return state.ascending ? x - y : y - x;
  });
  const lines = order.map((label) => ({
    cells: [label, ...names.map((metric) => {
      const found = value(label, metric);
      if (!found) return "";
      const small = found.low === null ? "" : `±${digits((found.high - found.low) / 2)}`;
      return { text: digits(found.mean), small, best: ACCURACY.test(metric) && found.mean === best(metric) };
    })],
  }));
  const suffix = state.policy === "all" ? "" : `/${state.policy}`;
  for (const [label, figures] of Object.entries(D.published)) {
    const cells = names.map((metric) => digits(figures[metric + suffix]));
    if (cells.some(Boolean)) {
      lines.push({ kind: "published", cells: [`${label} (published, not run here: ${figures.source ?? "no source"})`, ...cells] });
    }
  }
  const buttons = names.map((name) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: name });
    button.addEventListener("click", () => {
      state.ascending = state.sort === name ? !state.ascending : false;
      state.sort = name;
      summary();
    });
    return button;
  });
  const head = fill(byId("summary"), ["", ...buttons], lines);
  head.cells[names.indexOf(state.sort) + 1]?.setAttribute("aria-sort", state.ascending ? "ascending" : "descending");
}

function spread() {
  const between = (low, high, none) => (low === null ? none : `${digits(low)} to ${digits(high)}`);
  const rows = of(D.summary, { policy: state.policy, metric: state.metric }).sort((a, b) => b.mean - a.mean);
  fill(byId("spread"), [state.metric, "mean", "seeds", "95 % over training seeds", "sd over sampling seeds", "95 % over users", "with a history"], rows.map((row) => ({
    cells: [row.variant, digits(row.mean), row.seeds, between(row.low, row.high, "one seed"),
      row.sampling_std === null ? "–" : `${row.sampling_std.toExponential(1)} (${row.sampling_seeds} seeds)`,
      between(row.users_low, row.users_high, "–"), digits(row.with_history)],
  })));
}

/** Each pair once, under the variant with the larger mean; variants from the best mean to the worst. */
function pairs() {
  const groups = new Map();
  for (const row of of(D.pairs, { policy: state.policy })) {
    const [first, second, sign] = row.difference >= 0 ? [row.first, row.second, 1] : [row.second, row.first, -1];
    if (!groups.has(first)) groups.set(first, []);
    groups.get(first).push({ second, row, sign });
  }
  const order = [...groups].sort(([, a], [, b]) => b.length - a.length);
  fill(byId("pairs"), ["", `difference in ${D.metric}`, "95 % interval", "effect d_z", "p (Holm)", "p (FDR)", "p (seeds)"], order.flatMap(([first, found]) => [
    { kind: "group", cells: [first, "", "", "", "", "", ""] },
    ...found.map(({ second, row, sign }) => {
      const ends = [sign * row.low, sign * row.high].sort((a, b) => a - b);
      const significant = row.p_holm < SIGNIFICANT;
      return { cells: [
        { text: significant ? `better than ${second}` : `no significant difference from ${second}`, best: significant },
        digits(sign * row.difference), `${digits(ends[0])} to ${digits(ends[1])}`, digits(sign * row.effect, 3),
        ...[row.p_holm, row.p_fdr, row.p_seeds].map(probability),
      ] };
    }),
  ]));
}

function costs() {
  fill(byId("costs"), ["", "training, min", "best epoch", "users/s", "peak memory, MiB", "parameters"], D.costs.map((row) => ({
    cells: [row.variant, digits(row.train_minutes, 2), digits(row.best_epoch, 0), whole(row.users_per_second), whole(row.peak_memory_mib), whole(row.parameters)],
  })));
}

// Ticks 1, 2, 5, 10, ... in the range of the values, for logarithmic axes.
function ticks(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const found = [];
  for (let power = Math.floor(Math.log10(low)) - 1; power <= Math.log10(high) + 1; power++) {
    for (const digit of [1, 2, 5]) found.push(digit * 10 ** power);
  }
  const shown = found.filter((tick, n) => (found[n + 1] ?? Infinity) > low && (found[n - 1] ?? 0) < high);
  const wide = shown.length > 8 ? shown.filter((tick) => String(tick.toPrecision(1)).startsWith("1")) : shown;
  return { tickvals: wide, ticktext: wide.map((tick) => Number(tick.toPrecision(1)).toLocaleString("en", { maximumFractionDigits: 3 })),
    range: [Math.log10(shown[0]) - 0.02, Math.log10(shown.at(-1)) + 0.02] };
}

// --- plots ---------------------------------------------------------------------------------------------------

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function draw(id, traces, x, y, more = {}) {
  const axis = { gridcolor: css("--line"), zerolinecolor: css("--soft"), linecolor: css("--line"), automargin: true };
  const layout = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: css("--ink"), family: "system-ui, sans-serif", size: 13 },
    margin: { l: 60, r: 20, t: 20, b: 50 }, hovermode: "closest",
    xaxis: { ...axis, title: { text: x }, ...more.xaxis }, yaxis: { ...axis, title: { text: y }, ...more.yaxis },
    showlegend: false, height: more.height ?? 360, barmode: "group",
  };
  Plotly.react(byId(id), traces, layout, { responsive: true, displaylogo: false, displayModeBar: false });
}

function bars() {
  const rows = of(D.summary, { policy: state.policy, metric: state.metric }).sort((a, b) => a.mean - b.mean);
  const traces = rows.flatMap((row) => {
    const { color, symbol } = style(row.variant);
    const line = (low, high, width, opacity) => ({
      type: "scatter", mode: "lines", x: [low, high], y: [row.variant, row.variant], line: { color, width }, opacity, hoverinfo: "skip",
    });
    return [
      ...(row.low === null ? [] : [line(row.low, row.high, 12, 0.3)]),
      ...(row.users_low === null ? [] : [line(row.users_low, row.users_high, 2, 1)]),
      { type: "scatter", mode: "markers", x: [row.mean], y: [row.variant], marker: { color, symbol, size: 11 },
        hovertemplate: `${row.variant}<br>%{x:.4f}<br>seeds: ${row.seeds}` +
          (row.sampling_std === null ? "" : `<br>spread over ${row.sampling_seeds} sampling seeds: ${row.sampling_std.toExponential(1)}`) + "<extra></extra>" },
    ];
  });
  draw("bars", traces, state.metric, "", { height: 80 + 34 * rows.length, xaxis: { rangemode: "tozero" } });
}

function ablations() {
  const rows = of(D.ablations, { policy: state.policy });
  byId("ablations-section").hidden = !rows.length;
  if (!rows.length) return;
  const traces = [...new Set(rows.map((row) => row.variant))].map((label) => {
    const mine = of(rows, { variant: label });
    return {
      type: "scatter", mode: "markers", name: label, x: mine.map((row) => row.difference_mean), y: mine.map((row) => row.metric),
      marker: { ...style(label), size: 11 },
      error_x: { type: "data", symmetric: false, array: mine.map((row) => row.difference_high - row.difference_mean), arrayminus: mine.map((row) => row.difference_mean - row.difference_low), color: style(label).color },
    };
  });
  fill(byId("ablations-table"), ["", "metric", "with diffusion", "without", "difference", "95 % interval", "p (users)", "p (seeds)"], rows.map((row) => ({
    cells: [`${row.variant} and ${row.ablation}`, row.metric, digits(row.with_diffusion), digits(row.without), digits(row.difference_mean),
      `${digits(row.difference_low)} to ${digits(row.difference_high)}`, probability(row.p), probability(row.p_seeds)],
  })));
  draw("ablations", traces, "with diffusion − without", "", { height: 300, xaxis: { zeroline: true, zerolinewidth: 2, rangemode: "tozero" } });
}

const validation = (rows) => `validation ${[...new Set(rows.map((row) => row.metric))].join(" or ")}`;

function steps() {
  byId("steps-section").hidden = !D.steps.length;
  if (!D.steps.length) return;
  const traces = [...new Set(D.steps.map((row) => row.variant))].map((label) => {
    const mine = of(D.steps, { variant: label });
    return { type: "scatter", mode: "lines+markers", name: label, x: mine.map((row) => row.sampling_steps), y: mine.map((row) => row.value), marker: style(label), line: { color: style(label).color } };
  });
  const ticks = [...new Set(D.steps.map((row) => row.sampling_steps))];
  draw("steps", traces, "sampling steps", validation(D.steps), { xaxis: { type: "log", tickvals: ticks, ticktext: ticks.map(String) }, yaxis: { rangemode: "tozero" } });
}

function cost(id, column, title) {
  const measured = new Map(of(D.summary, { policy: state.policy, metric: state.metric }).map((row) => [row.variant, row]));
  const rows = D.costs.filter((row) => row[column] && measured.has(row.variant));
  const traces = rows.map((row) => {
    const found = measured.get(row.variant);
    return { type: "scatter", mode: "markers", name: row.variant, x: [Math.max(row[column], 0.01)], y: [found.mean], marker: { ...style(row.variant), size: 12 }, hovertemplate: `${row.variant}<br>${title}: ${row[column].toLocaleString("en", { maximumFractionDigits: 2 })}<br>%{y:.4f}<extra></extra>` };
  });
  draw(id, traces, title, state.metric, { xaxis: { type: "log", ...ticks(rows.map((row) => Math.max(row[column], 0.01))) }, yaxis: { rangemode: "tozero" }, height: 420 });
}

function slices(id, by, metric) {
  const rows = of(D.slices, { policy: state.policy, by, metric });
  const traces = labels.map((label) => {
    const mine = of(rows, { variant: label });
    return {
      type: "scatter", mode: "lines+markers", name: label, x: mine.map((row) => `${row.slice}<br>n=${row.size.toLocaleString("en")}`), y: mine.map((row) => row.mean),
      marker: { ...style(label), size: 8 }, line: { color: style(label).color, width: 1.5 },
      error_y: { type: "data", array: mine.map((row) => (row.high ?? row.mean) - row.mean), thickness: 1, width: 2, color: style(label).color },
    };
  });
  const axes = { "history length": "interactions in the history", "number of friends": "friends", "item popularity": "training interactions of the item" };
  byId(id).hidden = !rows.length;
  if (rows.length) draw(id, traces, axes[by] ?? by, rows[0]?.metric ?? "", { xaxis: { type: "category" }, yaxis: { rangemode: "tozero" }, height: 420 });
}

function curves() {
  byId("curves-section").hidden = !D.curves.length;
  if (!D.curves.length) return;
  const traces = [...new Set(D.curves.map((row) => row.variant))].map((label) => {
    const mine = of(D.curves, { variant: label });
    return { type: "scatter", mode: "lines", name: label, x: mine.map((row) => row.minutes), y: mine.map((row) => row.value), line: { color: style(label).color, width: 2 } };
  });
  draw("curves", traces, "minutes", validation(D.curves), { yaxis: { rangemode: "tozero" } });
}

function all() {
  for (const button of document.querySelectorAll("[data-policy]")) {
    button.setAttribute("aria-pressed", String(button.dataset.policy === state.policy));
  }
  summary(); spread(); pairs(); costs(); bars(); ablations(); steps();
  cost("cost-train", "train_minutes", "training, minutes"); cost("cost-serve", "users_per_second", "users per second");
  // Some metrics, such as coverage, have no value per user.
  const perUser = D.slices.some((row) => row.by === "history length" && row.metric === state.metric);
  const sliced = perUser ? state.metric : D.metric;
  byId("slices-metric").textContent = perUser ? sliced : `${sliced}, because ${state.metric} has no value per user`;
  slices("slices-users", "history length", sliced);
  slices("slices-friends", "number of friends", sliced);
  slices("slices-items", "item popularity", /^(ndcg|mrr|map)@/.test(state.metric) ? "gain@10" : "recall@10");
  slices("slices-new-users", "new and known users", sliced);
  slices("slices-near-duplicates", "near-duplicates", sliced);
  slices("slices-new-items", "new and known items", sliced);
  slices("slices-ages", "time since the item appeared", sliced);
  curves();
}

byId("legend").replaceChildren(...labels.map((label) => {
  const chip = Object.assign(document.createElement("span"), { textContent: ` ${label}` });
  const glyph = Object.assign(document.createElement("b"), { textContent: GLYPHS[labels.indexOf(label) % GLYPHS.length] });
  glyph.style.color = style(label).color;
  chip.prepend(glyph);
  return chip;
}));
const select = byId("metric");
for (const name of new Set(D.summary.map((row) => row.metric))) select.add(new Option(name, name, false, name === state.metric));
select.addEventListener("change", () => { state.metric = state.sort = select.value; state.ascending = false; all(); });
for (const button of document.querySelectorAll("[data-policy]")) {
  button.addEventListener("click", () => { state.policy = button.dataset.policy; all(); });
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);
all();

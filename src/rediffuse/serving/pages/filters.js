// Filters on the columns of the item table. Each is a clause of the field `filter` of POST /v1/recommend.

import { byId, el, guarded } from "./dom.js";
import { shownRuns, state, update } from "./state.js";

const TYPES = ["number", "text", "boolean"];

/** Columns that a run can filter by: name -> type. Titles differ from item to item, so they are left out. */
const columnsOf = (run) => new Map(run.item_columns.filter(({ name, type }) => name !== "title" && TYPES.includes(type)).map(({ name, type }) => [name, type]));

function columns() {
  return new Map(shownRuns().flatMap((run) => [...columnsOf(run)]));
}

/** The field `filter` for a run, and a note if it lacks a column. */
export function filterFor(run) {
  const known = columnsOf(run), missing = state.filters.map(({ column }) => column).filter((name) => !known.has(name));
  if (!state.filters.length) return { filter: {}, notes: [] };
  if (missing.length) return { filter: {}, notes: [`Not filtered: ${run.model} has no column ${missing.join(", ")}.`] };
  return { filter: { filter: state.filters.length === 1 ? state.filters[0] : { and: state.filters } }, notes: [] };
}

/** A clause in words. */
function describe({ column, eq, in: values, range }) {
  if (eq !== undefined) return `${column} is ${eq}`;
  if (values) return `${column} is ${values.join(" or ")}`;
  return [range.gte === undefined ? "" : `${range.gte} ≤ `, column, range.lt === undefined ? "" : ` < ${range.lt}`].join("");
}

/** The number that a field holds. Integers that a browser would round are refused. */
function exact(text) {
  const number = Number(text);
  if (Math.abs(number) > Number.MAX_SAFE_INTEGER) throw new Error(`${text} is beyond 2^53, which this page cannot send exactly. Use the API.`);
  return number;
}

/** The clause in the form, or null if it is empty. */
function entered() {
  const column = byId("filter-column").value, type = columns().get(column);
  if (type === "number") {
    const range = {};
    for (const [name, id] of [["gte", "filter-from"], ["lt", "filter-below"]]) if (byId(id).value !== "") range[name] = exact(byId(id).value);
    return Object.keys(range).length ? { column, range } : null;
  }
  if (type === "boolean") return { column, eq: byId("filter-boolean-value").value === "true" };
  const values = byId("filter-values").value.split(",").map((value) => value.trim()).filter(Boolean);
  return !values.length ? null : values.length === 1 ? { column, eq: values[0] } : { column, in: values };
}

function showInputs() {
  const type = columns().get(byId("filter-column").value);
  for (const name of TYPES) byId(`filter-${name}`).hidden = name !== type;
}

export function renderFilters() {
  const known = columns(), select = byId("filter-column"), chosen = select.value;
  byId("filters").hidden = !known.size && !state.filters.length;
  select.replaceChildren(...[...known.keys()].map((name) => new Option(name, name, false, name === chosen)));
  byId("filter-form").hidden = !known.size;
  showInputs();
  byId("filter-list").replaceChildren(...state.filters.map((clause, n) => el("li", {}, el("span", {}, describe(clause)), el("button", {
    type: "button", className: "tiny", ariaLabel: `Remove the filter: ${describe(clause)}`, title: "Remove",
    click: () => update({ filters: state.filters.toSpliced(n, 1), step: null }),
  }, "×"))));
}

export function initFilters() {
  byId("filter-column").addEventListener("change", showInputs);
  byId("filter-form").addEventListener("submit", guarded(async (event) => {
    event.preventDefault();
    const clause = entered();
    if (!clause) return;
    for (const id of ["filter-values", "filter-from", "filter-below"]) byId(id).value = "";
    update({ filters: [...state.filters, clause], step: null });
  }));
}

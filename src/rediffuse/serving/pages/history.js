// The history: its list of items, the search for items to add, and the form that loads a user's history.

import { modelApi } from "./api.js";
import { announce, byId, clamp, debounced, el, guarded, plural, titleOf } from "./dom.js";
import { editHistory, loadHistory, state, update } from "./state.js";

const FOLDED = 8; // items shown until the user asks for earlier ones
let unfolded = false;

export function renderHistory(focus) {
  const { user, history } = state;
  const first = unfolded ? 0 : Math.max(0, history.length - FOLDED);
  byId("history-summary").textContent =
    user !== null ? `${plural(history.length, "interaction")} of user ${user}, oldest first.`
    : history.length ? `${plural(history.length, "item")}, edited here, oldest first.`
    : "Empty. The recommendations are those for a user without a history.";
  byId("earlier").hidden = !first && !unfolded;
  byId("earlier").textContent = unfolded ? "Show only the latest" : `Show ${first.toLocaleString("en")} earlier`;
  byId("clear").hidden = !history.length;
  byId("history-list").replaceChildren(...history.slice(first).map((item, n) => entry(item, first + n, first, focus)));
  if (focus !== undefined) (byId("history-list").children[focus - first]?.firstChild ?? byId("search")).focus();
}

function entry(item, position, first, focus) {
  const { history } = state, last = history.length - 1;
  const move = (to) => {
    if (to < 0 || to > last) return;
    if (to < first) unfolded = true;
    const items = history.toSpliced(position, 1);
    editHistory(items.toSpliced(to, 0, item), to);
  };
  const remove = () => editHistory(history.toSpliced(position, 1), Math.min(position, last - 1));
  const keydown = (event) => {
    const direction = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1 }[event.key];
    if (direction && event.altKey) move(position + direction);
    else if (direction) byId("history-list").children[clamp(position - first + direction, 0, last - first)].firstChild.focus();
    else if (event.key === "Delete" || event.key === "Backspace") remove();
    else return;
    event.preventDefault();
  };
  // The history is one stop of the Tab key. The small buttons are for pointers; keys on the title do the same.
  const title = el("button", {
    type: "button", className: "history-title", title: titleOf(item), tabIndex: position === (focus ?? last) ? 0 : -1,
    "aria-describedby": "history-keys", ariaKeyShortcuts: "Alt+ArrowUp Alt+ArrowDown Delete", keydown,
  }, titleOf(item));
  const small = (text, label, click, disabled = false) => el("button", {
    type: "button", className: "tiny", tabIndex: -1, ariaLabel: `${label}: ${titleOf(item)}`, title: label, disabled, click,
  }, text);
  return el("li", {}, title,
    small("↑", "Move earlier", () => move(position - 1), position === 0),
    small("↓", "Move later", () => move(position + 1), position === last),
    small("×", "Remove", remove));
}

function initSearch() {
  const input = byId("search"), list = byId("found");
  let found = [], active = -1, latest = 0;
  const open = (shown) => {
    list.hidden = !shown;
    input.setAttribute("aria-expanded", String(shown));
    if (!shown) select(-1);
  };
  const select = (position) => {
    active = position;
    [...list.children].forEach((option, n) => option.setAttribute("aria-selected", String(n === position)));
    if (position < 0) input.removeAttribute("aria-activedescendant");
    else {
      input.setAttribute("aria-activedescendant", `found-${position}`);
      list.children[position].scrollIntoView({ block: "nearest" });
    }
  };
  const add = (item) => { input.value = ""; open(false); editHistory([...state.history, item]); };
  const option = (item, n) => {
    const mousedown = (event) => { event.preventDefault(); add(item); };
    return el("li", { id: `found-${n}`, role: "option", mousedown }, titleOf(item));
  };
  const search = guarded(async () => {
    const request = ++latest;
    const { items } = await modelApi(state.runs[0], "items", { q: input.value.trim(), limit: 12 });
    if (request !== latest || document.activeElement !== input) return;
    found = items;
    list.replaceChildren(...found.map(option));
    if (!found.length) list.append(el("li", { className: "soft", role: "option", "aria-disabled": "true" }, "No items found."));
    open(true);
    select(found.length && input.value.trim() ? 0 : -1);
    announce(`${plural(found.length, "item")} found.`);
  });
  input.addEventListener("input", debounced(150, search));
  input.addEventListener("click", search);
  input.addEventListener("blur", () => { latest++; open(false); });
  input.addEventListener("keydown", (event) => {
    const direction = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (direction && list.hidden) search();
    else if (direction && found.length) select((active + direction + found.length) % found.length);
    else if (event.key === "Enter" && active >= 0) add(found[active]);
    else if (event.key === "Escape" && !list.hidden) open(false);
    else return;
    event.preventDefault();
  });
}

export function initHistory() {
  initSearch();
  byId("user").addEventListener("input", debounced(150, guarded(async () => {
    const { users } = await modelApi(state.runs[0], "users", { q: byId("user").value, limit: 20 });
    byId("users").replaceChildren(...users.map((user) => new Option(user, user)));
  })));
  byId("user-form").addEventListener("submit", guarded(async (event) => {
    event.preventDefault();
    await loadHistory(byId("user").value.trim());
    update({ step: null });
  }));
  byId("random-user").addEventListener("click", guarded(async () => {
    const [user] = (await modelApi(state.runs[0], "users", { limit: 1, random: true })).users;
    if (user === undefined) throw new Error("This run holds no users.");
    byId("user").value = "";
    await loadHistory(user);
    update({ step: null });
  }));
  byId("clear").addEventListener("click", () => { editHistory([]); byId("search").focus(); });
  byId("earlier").addEventListener("click", () => { unfolded = !unfolded; renderHistory(); });
  byId("history-list").addEventListener("focusin", (event) => {
    const focused = event.target.closest("li");
    for (const title of byId("history-list").querySelectorAll(".history-title")) title.tabIndex = focused.contains(title) ? 0 : -1;
  });
}

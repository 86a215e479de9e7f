// Helpers for elements, numbers and messages. Text from the service enters the page as text, never as HTML.

export const byId = (id) => document.getElementById(id);

/** Create an element. Functions in `props` become event listeners, other values properties or attributes. */
export function el(tag, props = {}, ...children) {
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

export const titleOf = (item) => item.title ?? item.item_id;
export const plural = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
export const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
export const cssVariable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Have a screen reader read a message. */
export const announce = (text) => { byId("status").textContent = text; };

export function debounced(milliseconds, run) {
  let timer;
  return (...args) => { clearTimeout(timer); timer = setTimeout(() => run(...args), milliseconds); };
}

/** Show an error above the content; null hides it. Requests that were replaced by newer ones are no errors. */
export function showError(error) {
  if (error?.name === "AbortError") return;
  const text = error ? String(error.message ?? error) : "";
  byId("error").hidden = !text;
  byId("error").textContent = text;
}

/** Wrap an async function so that its errors are shown. */
export const guarded = (run) => (...args) => run(...args).catch(showError);

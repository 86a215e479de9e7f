// Requests to /v1. If the service requires a token, the page asks for it once and keeps it for this tab.

import { byId } from "./dom.js";

export async function api(path, body, signal) {
  const token = sessionStorage.getItem("token");
  const headers = { ...(body && { "Content-Type": "application/json" }), ...(token && { Authorization: `Bearer ${token}` }) };
  let response;
  try {
    response = await fetch(`v1/${path}`, { method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body) });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error("The service does not answer. Is it still running?");
  }
  if (response.status === 401) {
    // While this request was in progress, the user may have given the token for another one.
    if (token === sessionStorage.getItem("token")) await requestToken(token !== null);
    return api(path, body, signal);
  }
  const content = await response.json();
  if (response.ok) return content;
  const fields = (content.errors ?? []).map((error) => `${error.field}: ${error.message}`).join("; ");
  const error = new Error([content.detail ?? content.title, fields, content.remedy].filter(Boolean).join(" "));
  throw Object.assign(error, { kind: content.type });
}

/** GET /v1/models/{model}/{resource}, or POST with a body, where ids may be long. Ids are text: numbers would be rounded. */
export const modelApi = (model, resource, query = {}, body = undefined) =>
  api(`models/${encodeURIComponent(model)}/${resource}${body ? "" : `?${new URLSearchParams(query)}`}`, body);

let tokenRequest = null; // requests that are refused at the same time wait for one answer
function requestToken(refused) {
  tokenRequest ??= new Promise((resolve) => {
    const form = byId("token-form");
    if (refused) byId("token-label").textContent = "The service refused this token. Try another one.";
    form.hidden = false;
    byId("token").focus();
    form.onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem("token", byId("token").value);
      byId("token").value = "";
      form.hidden = true;
      tokenRequest = null;
      resolve();
    };
  });
  return tokenRequest;
}

// Plotly with the colours of the page.

import { byId, cssVariable } from "./dom.js";

/** Escape the tags that Plotly interprets in labels. */
export const plotText = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");

export function draw(id, traces, options = {}) {
  const line = cssVariable("--line"), height = options.height ?? 340;
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
  const title = (text) => ({ title: { text: plotText(text ?? "") } });
  const layout = {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: cssVariable("--ink"), family: "system-ui, sans-serif", size: 13 },
    hoverlabel: { font: { family: "system-ui, sans-serif" } },
    margin: options.margin ?? { l: 55, r: 15, t: 15, b: 45 },
    hovermode: "closest",
    showlegend: false,
    height,
    xaxis: { ...axis, ...title(options.x), ...options.xaxis },
    yaxis: { ...axis, ...title(options.y), ...options.yaxis },
    dragmode: options.dragmode ?? "zoom",
  };
  // When the window is resized, Plotly takes the height of the element, which is 0 after a second drawing if unset.
  byId(id).style.height = `${height}px`;
  return Plotly.react(byId(id), traces, layout, { responsive: true, displaylogo: false, displayModeBar: false });
}

// The Markdown that model cards use. It becomes nodes, not HTML, so nothing in a card can become a tag.

import { el } from "./dom.js";

const inline = (text) => text.split(/(`[^`]+`|\*\*[^*]+\*\*)/).map((piece) => {
  if (/^`.+`$/.test(piece)) return el("code", {}, piece.slice(1, -1));
  return /^\*\*.+\*\*$/.test(piece) ? el("strong", {}, piece.slice(2, -2)) : piece;
});

function table(lines) {
  const cells = (line) => line.replace(/^\||\|\s*$/g, "").split("|").map((cell) => cell.trim());
  const [head, , ...rows] = lines.map(cells);
  const row = (tag, content) => el("tr", {}, content.map((cell) => el(tag, {}, inline(cell))));
  return el("table", {}, el("thead", {}, row("th", head)), el("tbody", {}, rows.map((content) => row("td", content))));
}

export function markdown(text) {
  const lines = text.split("\n"), nodes = [];
  const takeWhile = (pattern) => {
    const taken = [];
    while (lines.length && pattern.test(lines[0])) taken.push(lines.shift());
    return taken;
  };
  const list = (tag, marker) => el(tag, {}, takeWhile(marker).map((line) => el("li", {}, inline(line.replace(marker, "")))));
  while (lines.length) {
    const heading = /^(#{1,4}) (.*)/.exec(lines[0]);
    if (!lines[0].trim()) lines.shift();
    else if (heading) {
      lines.shift();
      nodes.push(el(`h${Math.min(6, heading[1].length + 2)}`, {}, inline(heading[2])));
    } else if (lines[0].startsWith("```")) {
      lines.shift();
      nodes.push(el("pre", { tabIndex: 0 }, el("code", {}, takeWhile(/^(?!```)/).join("\n"))));
      lines.shift();
    } else if (lines[0].startsWith("|")) nodes.push(el("div", { className: "scroll" }, table(takeWhile(/^\|/))));
    else if (/^[-*] /.test(lines[0])) nodes.push(list("ul", /^[-*] /));
    else if (/^\d+\. /.test(lines[0])) nodes.push(list("ol", /^\d+\. /));
    else nodes.push(el("p", {}, inline([lines.shift(), ...takeWhile(/^(?!#{1,4} |```|\||[-*] |\d+\. )\s*\S/)].join(" "))));
  }
  return nodes;
}

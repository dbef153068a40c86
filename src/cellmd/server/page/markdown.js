// Markdown to DOM nodes. A model's text becomes text nodes and nothing else: no markup of its own reaches the page.

import { copyButton, element, make } from "./elements.js";

const FENCE = /^( *)(`{3,}|~{3,})\s*([\w+#.-]*)/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)/;
const ROW = /^\s*\|?(.*\|.*)$/;
const UNDER_HEAD = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const INLINE = new RegExp(
  [
    "\\\\(?<literal>[\\\\`*_{}\\[\\]()#+\\-.!~|>])",
    "(?<ticks>`+)(?<code>[^`]|[^`][\\s\\S]*?[^`])\\k<ticks>(?!`)",
    "\\*\\*\\*(?=\\S)(?<both>[\\s\\S]*?\\S)\\*\\*\\*",
    "\\*\\*(?=\\S)(?<strong>[\\s\\S]*?\\S)\\*\\*",
    "(?<!\\w)__(?=\\S)(?<strong2>[\\s\\S]*?\\S)__(?!\\w)",
    "\\*(?=\\S)(?<em>[^*]*?\\S)\\*",
    "(?<!\\w)_(?=\\S)(?<em2>[^_]*?\\S)_(?!\\w)",
    "~~(?=\\S)(?<del>[^~]*?\\S)~~",
    "\\[(?<label>[^\\]]+)\\]\\((?<url>https?:\\/\\/[^\\s)]+)\\)",
    "(?<bare>https?:\\/\\/[^\\s<>()\\[\\]]*[^\\s<>()\\[\\].,;:!?'\"*_])",
  ].join("|"),
);

export function markdown(text) {
  const out = document.createDocumentFragment();
  const lines = text.split("\n");
  let at = 0;
  while (at < lines.length) at = block(lines, at, out);
  return out;
}

function block(lines, at, out) {
  const line = lines[at];
  if (!line.trim()) return at + 1;
  const fence = FENCE.exec(line);
  if (fence) return code(lines, at, fence, out);
  const heading = HEADING.exec(line);
  if (heading) {
    // The page's own headings are h1 and h2.
    out.append(element(`h${Math.min(6, heading[1].length + 2)}`, inline(heading[2])));
    return at + 1;
  }
  if (RULE.test(line)) {
    out.append(make("hr"));
    return at + 1;
  }
  if (line.startsWith(">")) return quote(lines, at, out);
  if (ITEM.test(line)) return list(lines, at, out);
  if (isTable(lines, at)) return table(lines, at, out);
  return paragraph(lines, at, out);
}

function code(lines, at, [, indent, mark], out) {
  const end = lines.findIndex((line, i) => i > at && line.trim().startsWith(mark));
  const stop = end < 0 ? lines.length : end;
  const text = lines.slice(at + 1, stop).map((line) => dedented(line, indent.length)).join("\n");
  const box = element("div", element("pre", make("code", text)), copyButton(() => text));
  box.className = "code";
  out.append(box);
  return stop + 1;
}

function quote(lines, at, out) {
  const quoted = [];
  while (at < lines.length && lines[at].startsWith(">")) quoted.push(lines[at++].replace(/^> ?/, ""));
  out.append(element("blockquote", markdown(quoted.join("\n"))));
  return at;
}

function list(lines, at, out) {
  const [, indent, mark] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(mark);
  const made = make(ordered ? "ol" : "ul");
  if (ordered) made.start = parseInt(mark, 10);
  while (at < lines.length) {
    const item = ITEM.exec(lines[at]);
    if (!item || item[1].length < indent.length || /\d/.test(item[2]) !== ordered) break;
    const width = lines[at++].length - item[3].length;
    const inner = [];
    while (at < lines.length && leading(lines, at) > indent.length) inner.push(dedented(lines[at++], width));
    made.append(element("li", inline(item[3].replace(/^\[([ x])\] /i, (_, x) => (x === " " ? "☐ " : "☑ "))), markdown(inner.join("\n"))));
    if (at < lines.length && !lines[at].trim() && ITEM.test(lines[filled(lines, at)] ?? "")) at = filled(lines, at);
  }
  out.append(made);
  return at;
}

function isTable(lines, at) {
  return ROW.test(lines[at]) && lines[at + 1]?.includes("-") && UNDER_HEAD.test(lines[at + 1] ?? "");
}

function table(lines, at, out) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim());
  const sides = cells(lines[at + 1]).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : ""));
  const row = (line, kind) => element("tr", ...cells(line).map((cell, i) => {
    const made = element(kind, inline(cell));
    made.className = sides[i] ?? "";
    return made;
  }));
  const body = make("tbody");
  const made = element("table", element("thead", row(lines[at], "th")), body);
  at += 2;
  while (at < lines.length && lines[at].trim() && ROW.test(lines[at])) body.append(row(lines[at++], "td"));
  out.append(made);
  return at;
}

function paragraph(lines, at, out) {
  const own = [lines[at++].trimStart()];
  const begins = [FENCE, HEADING, ITEM, RULE, /^>|^\s*$/];
  while (at < lines.length && !begins.some((one) => one.test(lines[at])) && !isTable(lines, at)) own.push(lines[at++].trimStart());
  out.append(element("p", inline(own.join("\n"))));
  return at;
}

function inline(text) {
  const out = document.createDocumentFragment();
  let found;
  while ((found = INLINE.exec(text))) {
    out.append(text.slice(0, found.index), marked(found.groups));
    text = text.slice(found.index + found[0].length);
  }
  out.append(text);
  return out;
}

function marked({ literal, code: codeText, both, strong, strong2, em, em2, del, label, url, bare }) {
  if (literal !== undefined) return literal;
  if (codeText !== undefined) return make("code", codeText);
  if (both !== undefined) return element("strong", element("em", inline(both)));
  if (strong !== undefined || strong2 !== undefined) return element("strong", inline(strong ?? strong2));
  if (em !== undefined || em2 !== undefined) return element("em", inline(em ?? em2));
  if (del !== undefined) return element("del", inline(del));
  return link(label ?? bare, url ?? bare);
}

function link(label, url) {
  const made = make("a", label);
  made.href = url;
  made.title = url;
  made.target = "_blank";
  made.rel = "noopener noreferrer";
  return made;
}

// How far the next line with something in it is indented.
function leading(lines, at) {
  const line = lines[filled(lines, at)] ?? "";
  return line.length - line.trimStart().length;
}

function filled(lines, at) {
  while (at < lines.length && !lines[at].trim()) at++;
  return at;
}

function dedented(line, most) {
  return line.slice(Math.min(most, line.length - line.trimStart().length));
}

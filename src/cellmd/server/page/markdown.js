// Markdown to DOM nodes. A model's text becomes text nodes and nothing else: no markup of its own reaches the page.

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/;
const HEADING = /^(#{1,6})\s+(.*)/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)/;
const ROW = /^\s*\|(.+)\|\s*$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const INLINE = /(`+)([^`]|[^`][\s\S]*?[^`])\1(?!`)|\*\*(?=\S)([\s\S]*?\S)\*\*|\*(?=\S)([^*]*?\S)\*|\[([^\]]+)\]\((https?:\/\/[^\s)]+)\)/;

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
    out.append(document.createElement("hr"));
    return at + 1;
  }
  if (line.startsWith(">")) return quote(lines, at, out);
  if (ITEM.test(line)) return list(lines, at, out);
  if (ROW.test(line) && /^[\s|:-]+$/.test(lines[at + 1] ?? "")) return table(lines, at, out);
  return paragraph(lines, at, out);
}

function code(lines, at, fence, out) {
  const end = lines.findIndex((line, i) => i > at && line.trim().startsWith(fence[1]));
  const stop = end < 0 ? lines.length : end;
  const text = lines.slice(at + 1, stop).join("\n");
  const copy = element("button", document.createTextNode("Copy"));
  copy.type = "button";
  copy.addEventListener("click", () => navigator.clipboard?.writeText(text));
  const box = element("div", element("pre", element("code", document.createTextNode(text))), copy);
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
  const made = document.createElement(ordered ? "ol" : "ul");
  if (ordered) made.start = parseInt(mark, 10);
  while (at < lines.length) {
    const item = ITEM.exec(lines[at]);
    if (!item || item[1].length < indent.length || /\d/.test(item[2]) !== ordered) break;
    const inner = [item[3]];
    at++;
    while (at < lines.length && lines[at].trim() && (/^\s/.test(lines[at]) && leading(lines[at]) > indent.length)) {
      inner.push(lines[at++].slice(indent.length + 2));
    }
    made.append(element("li", inner.length > 1 ? nested(inner) : inline(inner[0])));
    while (at < lines.length && !lines[at].trim() && ITEM.test(lines[at + 1] ?? "")) at++;
  }
  out.append(made);
  return at;
}

function nested([first, ...rest]) {
  const out = document.createDocumentFragment();
  out.append(inline(first), markdown(rest.join("\n")));
  return out;
}

function table(lines, at, out) {
  const cells = (line) => ROW.exec(line)[1].split("|").map((cell) => inline(cell.trim()));
  const row = (line, kind) => element("tr", ...cells(line).map((cell) => element(kind, cell)));
  const body = document.createElement("tbody");
  const made = element("table", element("thead", row(lines[at], "th")), body);
  at += 2;
  while (at < lines.length && ROW.test(lines[at])) body.append(row(lines[at++], "td"));
  out.append(made);
  return at;
}

function paragraph(lines, at, out) {
  const own = [lines[at++]];
  const ends = (line) => !line.trim() || FENCE.test(line) || HEADING.test(line) || ITEM.test(line) || line.startsWith(">");
  while (at < lines.length && !ends(lines[at])) own.push(lines[at++]);
  out.append(element("p", inline(own.join("\n"))));
  return at;
}

function inline(text) {
  const out = document.createDocumentFragment();
  let found;
  while ((found = INLINE.exec(text))) {
    out.append(text.slice(0, found.index));
    const [whole, , codeText, bold, italic, label, url] = found;
    if (codeText !== undefined) out.append(element("code", document.createTextNode(codeText)));
    else if (bold !== undefined) out.append(element("strong", inline(bold)));
    else if (italic !== undefined) out.append(element("em", inline(italic)));
    else out.append(link(label, url));
    text = text.slice(found.index + whole.length);
  }
  out.append(text);
  return out;
}

function link(label, url) {
  const made = element("a", document.createTextNode(label));
  made.href = url;
  made.title = url;
  made.target = "_blank";
  made.rel = "noopener noreferrer";
  return made;
}

function element(name, ...children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}

function leading(line) {
  return line.length - line.trimStart().length;
}

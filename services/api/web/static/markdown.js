// A small part of Markdown, as DOM nodes. Text only ever becomes text nodes: no string is parsed as markup.

const BLOCK = /^(?:(#{1,6})\s+(.*)|(\s*)(?:[-*+•]|(\d{1,9})[.)、])\s+(.*)|>\s?(.*))$/;
// Bounded on purpose: hostile text costs time linear in its length.
const INLINE = new RegExp(
  [
    "(`{1,3})([^`\\n]{1,2000})\\1",
    "\\*\\*(?=\\S)([^\\n]{1,1000}?)\\*\\*",
    "\\*(?=[^\\s*])([^*\\n]{1,400})\\*",
    "\\[([^\\[\\]\\n]{1,300})\\]\\(((?:[^()\\s]|\\([^()\\s]{0,200}\\)){1,800})\\)",
    "(https?://[\\w\\-.~:/?#@!$&*+,;=%]{1,500})",
  ].join("|"),
  "g",
);

/** The address if it may be linked to, else null: http and https only, with no user name to mislead. */
export function safeAddress(text) {
  try {
    const url = new URL(text);
    return /^https?:$/.test(url.protocol) && !url.username && !url.password ? url.href : null;
  } catch {
    return null;
  }
}

function element(name, ...children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}

function link(address, children, source) {
  const safe = safeAddress(address);
  if (!safe) return [source];
  const made = element("a", ...children);
  made.href = safe;
  made.rel = "noopener noreferrer";
  made.target = "_blank";
  return [made];
}

/** Inline parts of one line as nodes. */
export function inline(text, depth = 0) {
  if (depth > 3) return [text];
  const nodes = [];
  let at = 0;
  for (const found of text.matchAll(INLINE)) {
    if (found.index < at) continue;
    if (found.index > at) nodes.push(text.slice(at, found.index));
    const [all, , code, bold, italic, label, address, bare] = found;
    at = found.index + all.length;
    if (code !== undefined) nodes.push(element("code", code));
    else if (bold !== undefined) nodes.push(element("strong", ...inline(bold, depth + 1)));
    else if (italic !== undefined) nodes.push(element("em", ...inline(italic, depth + 1)));
    else if (label !== undefined) nodes.push(...link(address, inline(label, 3), all));
    else {
      const end = bare.match(/[.,;:!?*]*$/)[0];
      const address = bare.slice(0, bare.length - end.length);
      nodes.push(...(depth < 3 ? link(address, [address], address) : [address]), end);
    }
  }
  if (at < text.length) nodes.push(text.slice(at));
  return nodes;
}

const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
const isRule = (line) => /^\s*\|?\s*:?-{2,}[\s:|-]*$/.test(line ?? "") && line.includes("|");

function table(lines, at) {
  const head = element("tr", ...cells(lines[at]).map((cell) => element("th", ...inline(cell))));
  const body = element("tbody");
  for (at += 2; at < lines.length && lines[at].includes("|"); at += 1) {
    body.append(element("tr", ...cells(lines[at]).map((cell) => element("td", ...inline(cell)))));
  }
  const wrapper = element("div", element("table", element("thead", head), body));
  wrapper.className = "table";
  return [wrapper, at];
}

/** A text as a fragment: paragraphs, headings, lists, quotes, code, tables. */
export function render(text) {
  const out = document.createDocumentFragment();
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  let paragraph = null;
  let list = null;
  const rest = () => { paragraph = null; list = null; };
  for (let at = 0; at < lines.length; at += 1) {
    const line = lines[at];
    const fence = line.match(/^\s*(`{3,}|~{3,})/);
    if (fence) {
      rest();
      const code = [];
      for (at += 1; at < lines.length && !lines[at].trim().startsWith(fence[1]); at += 1) code.push(lines[at]);
      out.append(element("pre", element("code", code.join("\n"))));
      continue;
    }
    if (!line.trim()) { rest(); continue; }
    if (/^\s*([-*_])(\s*\1){2,}\s*$/.test(line)) { rest(); out.append(element("hr")); continue; }
    if (line.includes("|") && isRule(lines[at + 1])) {
      rest();
      const [made, next] = table(lines, at);
      out.append(made);
      at = next - 1;
      continue;
    }
    const [, marks, heading, , number, item, quote] = line.match(BLOCK) ?? [];
    if (marks) {
      rest();
      out.append(element(`h${Math.min(6, marks.length + 2)}`, ...inline(heading)));
    } else if (item !== undefined) {
      const kind = number ? "OL" : "UL";
      if (list?.tagName !== kind) {
        list = element(kind);
        if (number) list.start = Number(number);
        out.append(list);
      }
      paragraph = element("li", ...inline(item));
      list.append(paragraph);
    } else if (quote !== undefined) {
      rest();
      out.append(element("blockquote", ...inline(quote)));
    } else if (paragraph) {
      paragraph.append(element("br"), ...inline(line));
    } else {
      list = null;
      paragraph = element("p", ...inline(line));
      out.append(paragraph);
    }
  }
  return out;
}

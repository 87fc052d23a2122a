// Markdown as models write it -> DOM nodes. Never HTML: tags stay text, except br, sub, sup, kbd and details without
// attributes. Links lead to http(s) and mailto only. Images become links, as the page loads nothing from other servers.
//
// Two steps: `blocks` splits lines into blocks, `inline` splits a text into spans. Math ($...$, \(...\), $$...$$,
// \[...\]) becomes MathML once math.js is loaded; formulas that it can't read stay unchanged. Linear in the length of
// ordinary text. Nesting is limited, so odd input can't overflow the stack.

import { copyButton, h } from './dom.js';
import { Colours } from './highlight.js';
import { t } from './i18n.js';

const MAX_DEPTH = 12;
const MAX_DETAILS = 400;        // lines

const FENCE = /^( {0,3})(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t](.*))?$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(\s+|$)/;
const TABLE_LINE = /^\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?$/;
const DETAILS = /^ {0,3}<details>/;
const NOTE = /^\[\^([\w-]{1,40})\]:[ \t]*/;
const MATH_OPEN = /^\s*(\$\$|\\\[)/;

let notes = [];                 // ids of the present text's footnotes
let outline = [];               // its open headings: number of #, level on the page

// Headings are below the page's title and skip no level.
const newOutline = () => [[0, 1]];

// The nodes for `text`, below the headings `above`.
export function markdown(text, above = newOutline()) {
  outline = above;
  notes = [...text.matchAll(new RegExp(NOTE, 'gm'))].map(([, id]) => id);
  return blocks(text.replace(/\r\n?/g, '\n').split('\n'), 0);
}

function blocks(lines, depth) {
  const nodes = [];
  for (let at = 0; at < lines.length;) {
    if (lines[at].trim() === '') {
      at += 1;
      continue;
    }
    const reader = depth < MAX_DEPTH ? READERS.find((one) => one.starts(lines, at)) : null;
    const [node, next] = (reader?.read ?? readParagraph)(lines, at, depth);
    // Each block has the direction of its text, except code (see codeBlock).
    if (depth === 0 && !node.dir) node.dir = 'auto';
    nodes.push(node);
    at = next;
  }
  return nodes;
}

// Characters that change the direction of text could disguise code: shown as numbers.
const BIDI = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;
export const withBidiShown = (text) => text.replace(BIDI, (one) => `\u27e8U+${one.codePointAt(0).toString(16).toUpperCase().padStart(4, '0')}\u27e9`);

const READERS = [
  { starts: (lines, at) => FENCE.test(lines[at]), read: readFence },
  { starts: (lines, at) => DETAILS.test(lines[at]) && detailsEnd(lines, at) > 0, read: readDetails },
  { starts: (lines, at) => NOTE.test(lines[at]), read: readNote },
  { starts: (lines, at) => MATH_OPEN.test(lines[at]), read: readMath },
  { starts: (lines, at) => HEADING.test(lines[at]), read: readHeading },
  { starts: (lines, at) => RULE.test(lines[at]), read: (lines, at) => [h('hr'), at + 1] },
  { starts: (lines, at) => /^ {0,3}>/.test(lines[at]), read: readQuote },
  { starts: (lines, at) => ITEM.test(lines[at]), read: readList },
  { starts: (lines, at) => lines[at].includes('|') && lines[at + 1]?.includes('|') && TABLE_LINE.test(lines[at + 1].trim()),
    read: readTable },
];

const interrupts = (lines, at) => READERS.some((one) => one.starts(lines, at));

function readParagraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() !== '' && !interrupts(lines, end)) end += 1;
  const text = lines.slice(at, end).map((line) => line.trim()).join('\n');
  return [h('p', {}, inline(text)), end];
}

function readHeading(lines, at) {
  const [, marks, text] = HEADING.exec(lines[at]);
  while (outline.at(-1)[0] > marks.length) outline.pop();
  const [above, level] = outline.at(-1);
  if (above < marks.length) outline.push([marks.length, level + 1]);
  return [h(`h${Math.min(outline.at(-1)[1], 6)}`, {}, inline((text ?? '').trim().replace(/(^|[ \t])#+$/, '').trim())), at + 1];
}

function readFence(lines, at) {
  const [, indent, marks, info] = FENCE.exec(lines[at]);
  let end = at + 1;
  const closes = new RegExp(`^ {0,3}\\${marks[0]}{${marks.length},}\\s*$`);
  while (end < lines.length && !closes.test(lines[end])) end += 1;
  const cut = new RegExp(`^ {0,${indent.length}}`);
  const code = lines.slice(at + 1, end).map((line) => line.replace(cut, '')).join('\n');
  return [codeBlock(code, languageOf(info)), end + 1];
}

const languageOf = (info) => info.trim().split(/\s+/)[0].replace(/^\{?\.?|\}$/g, '');

// A block of code that may grow.
class CodeBlock {
  #code = '';

  constructor(language) {
    const button = copyButton(t('copy-code'), () => this.#code);
    const code = h('code', {});
    this.pre = h('pre', { tabindex: 0, 'aria-label': t('code') }, code);
    this.element = h('figure', { class: 'code', dir: 'ltr' }, h('figcaption', {}, h('span', {}, language || t('code')), button), this.pre);
    this.colours = new Colours(code, language);
  }

  show(code, isFinal) {
    this.#code = code;
    this.colours.show(withBidiShown(code), isFinal);
    if (isFinal) this.pre.setAttribute('aria-label', t('code-label', { n: code.split('\n').length }));
  }
}

export function codeBlock(code, language) {
  const block = new CodeBlock(language);
  block.show(code, true);
  return block.element;
}

function readMath(lines, at) {
  const close = lines[at].trim().startsWith('$$') ? '$$' : '\\]';
  for (let end = at; end < Math.min(lines.length, at + 60) && lines[end].trim() !== ''; end++) {
    const line = lines[end].trim();
    if (line.slice(end === at ? 2 : 0).includes(close)) {
      if (!line.endsWith(close)) break;
      return [formula('p', lines.slice(at, end + 1).join('\n').trim(), true), end + 1];
    }
  }
  return readParagraph(lines, at);
}

// LaTeX with its marks ($, $$, \\(, \\[). The first formula loads math.js.
let drawMath = null;

function formula(tag, text, isDisplay = /^(\$\$|\\\[)/.test(text)) {
  const element = h(tag, { class: 'math', dir: 'ltr' }, text);
  if (drawMath) drawFormula(element, text, isDisplay);
  else {
    import('./math.js').then(({ mathML }) => {
      drawMath = mathML;
      drawFormula(element, text, isDisplay);
    }, () => {});
  }
  return element;
}

function drawFormula(element, text, isDisplay) {
  const inner = text.replace(/^(\$\$|\$|\\\(|\\\[)/, '').replace(/(\$\$|\$|\\\)|\\\])$/, '').trim();
  try {
    element.replaceChildren(drawMath(inner, isDisplay));
  } catch {
    // It stays unchanged.
  }
}

// The line with the </details> of the <details> at `at`; -1 if there is none.
function detailsEnd(lines, at) {
  let open = 0;
  for (let end = at; end < Math.min(lines.length, at + MAX_DETAILS); end++) {
    open += (lines[end].match(/<details>/g) ?? []).length - (lines[end].match(/<\/details>/g) ?? []).length;
    if (open <= 0) return end;
  }
  return -1;
}

function readDetails(lines, at, depth) {
  const end = detailsEnd(lines, at);
  const text = lines.slice(at, end + 1).join('\n');
  const inner = text.slice(text.indexOf('<details>') + 9, text.lastIndexOf('</details>'));
  const [whole, summary] = /^\s*<summary>([\s\S]{0,500}?)<\/summary>/.exec(inner) ?? ['', t('show')];
  return [h('details', {}, h('summary', {}, inline(summary.trim())), blocks(inner.slice(whole.length).split('\n'), depth + 1)), end + 1];
}

function readNote(lines, at) {
  const [mark, id] = NOTE.exec(lines[at]);
  let end = at + 1;
  while (end < lines.length && lines[end].trim() !== '' && !NOTE.test(lines[end])) end += 1;
  const text = [lines[at].slice(mark.length), ...lines.slice(at + 1, end).map((line) => line.trim())].join('\n');
  return [h('p', { class: 'footnote', tabindex: -1, 'data-note': id }, noteLink(id, `[data-ref="${id}"]`, {}), ' ', inline(text)), end];
}

// A small number that links to the first element `target` of its text.
function noteLink(id, target, props) {
  const n = notes.indexOf(id) + 1;
  const button = h('button', { type: 'button', class: 'quiet', 'aria-label': t('footnote', { n }), ...props, onclick: () => {
    const there = button.closest('.md')?.querySelector(target);
    there?.scrollIntoView({ block: 'nearest' });
    there?.focus();
  } }, n);
  return h('sup', {}, button);
}

function readQuote(lines, at, depth) {
  let end = at;
  while (end < lines.length && /^ {0,3}>/.test(lines[end])) end += 1;
  const inner = lines.slice(at, end).map((line) => line.replace(/^ {0,3}> ?/, ''));
  return [h('blockquote', {}, blocks(inner, depth + 1)), end];
}

// Items of one list have the same kind of mark; indented lines belong to the item above.
function readList(lines, at, depth) {
  const first = ITEM.exec(lines[at]);
  const isOrdered = /\d/.test(first[2]);
  const base = first[1].length;
  const items = [];
  let end = at;
  for (; end < lines.length; end++) {
    const mark = ITEM.exec(lines[end]);
    const isEmpty = lines[end].trim() === '';
    if (mark && mark[1].length <= base + 1 && !RULE.test(lines[end])) {
      if (/\d/.test(mark[2]) !== isOrdered || mark[1].length < base) break;
      items.push({ indent: mark[0].length, lines: [lines[end].slice(mark[0].length)] });
    } else if (isEmpty) {
      const next = lines.slice(end + 1).find((line) => line.trim() !== '');
      const again = next === undefined ? null : ITEM.exec(next);
      const goesOn = next !== undefined && (/^ {2,}|^\t/.test(next) && next.search(/\S/) > base
        || again && again[1].length === base && /\d/.test(again[2]) === isOrdered);
      if (!goesOn) break;
      items.at(-1).lines.push('');
    } else if (lines[end].search(/\S/) > base || (items.at(-1).lines.at(-1) !== '' && !interrupts(lines, end))) {
      const item = items.at(-1);
      item.lines.push(lines[end].slice(Math.min(lines[end].search(/\S/), item.indent)));
    } else break;
  }
  const list = h(isOrdered ? 'ol' : 'ul', isOrdered && first[2] !== '1.' ? { start: parseInt(first[2], 10) } : {},
    items.map((item) => listItem(item.lines, depth)));
  return [list, end];
}

function listItem(lines, depth) {
  const task = /^\[([ xX])\]\s+/.exec(lines[0]);
  if (task) lines[0] = lines[0].slice(task[0].length);
  const nodes = blocks(lines, depth + 1);
  // A tight item: its only paragraph needs no box.
  const [head, ...rest] = nodes;
  const content = head?.tagName === 'P' && !lines.includes('') ? [...head.childNodes, ...rest] : nodes;
  if (!task) return h('li', {}, content);
  const box = h('input', { type: 'checkbox', disabled: true, 'aria-label': t('task'), checked: task[1] !== ' ' });
  return h('li', { class: 'task' }, box, ' ', content);
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, '').replace(/(^|[^\\])\|$/, '$1');
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replace(/\\\|/g, '|'));
}

function readTable(lines, at) {
  const aligns = cells(lines[at + 1]).map((cell) => (/^:-*:$/.test(cell) ? 'center' : /:$/.test(cell) ? 'right' : ''));
  let end = at + 2;
  while (end < lines.length && lines[end].includes('|') && lines[end].trim() !== '') end += 1;
  const row = (line, tag) => h('tr', {}, cells(line).map((cell, i) => h(tag, { class: aligns[i] }, inline(cell))));
  const table = h('table', {}, h('thead', {}, row(lines[at], 'th')),
    h('tbody', {}, lines.slice(at + 2, end).map((line) => row(line, 'td'))));
  return [h('div', { class: 'table', tabindex: 0, role: 'group', 'aria-label': t('table') }, table), end];
}

// Spans: [first characters, text that must follow somewhere, pattern, node]. The first match is used. The second
// column, the bounded lengths and MAX_MISSES limit the time for text full of unclosed marks.
const SPANS = [
  ['\\', '\\)', /\\\(([\s\S]{1,1000}?)\\\)/y, (m) => formula('span', m[0])],
  ['\\', '\\]', /\\\[([\s\S]{1,1000}?)\\\]/y, (m) => formula('span', m[0])],
  // A model's line break is meant as one.
  ['\\\n', '\n', /\\?\n/y, () => h('br')],
  ['\\', '', /\\([!-'*-/:-@^-`{-~[\]()])/y, (m) => (m[1] === '(' || m[1] === '[' ? null : m[1])],
  ['`', '`', /(`+)(?!`)([\s\S]{0,4000}?[^`])\1(?!`)/y, (m) => h('code', { dir: 'ltr' }, withBidiShown(m[2]).replace(/\n/g, ' ').replace(/^ (.*\S.*) $/, '$1'))],
  ['$', '$$', /\$\$([^$]{1,1000}?)\$\$/y, (m) => formula('span', m[0])],
  ['$', '$', /\$(?=\S)([^$\n]{1,300}?\S|\S)\$(?!\d)/y, (m) => (/[\\^_{}=+]|^[A-Za-z]$/.test(m[1]) ? formula('span', m[0]) : null)],
  ['!', '](', /!\[([^\]\n]{0,500})\]\( ?<?((?:[^\s()<>]|\([^\s()<>]{0,200}\)){1,2000})>?[^()\n]{0,200}\)/y,
    (m) => link(m[2], [t('image-link', { name: m[1] || m[2] })])],
  ['[', ']', /\[\^([\w-]{1,40})\]/y, (m) => (notes.includes(m[1]) ? noteLink(m[1], `[data-note="${m[1]}"]`, { 'data-ref': m[1] }) : null)],
  ['[', '](', /\[((?:[^[\]\n]|\[[^\]\n]{0,100}\]){1,500})\]\( ?<?((?:[^\s()<>]|\([^\s()<>]{0,200}\)){1,2000})>?(?: +["'][^\n]{0,200}?["'])? ?\)/y,
    (m, d) => link(m[2], inline(m[1], d))],
  ['<', '>', /<(https?:\/\/[^\s<>]{1,2000})>/y, (m) => link(m[1], [m[1]])],
  ['h', '', /https?:\/\/[^\s<>"'`]{0,2000}[^\s<>"'`.,;:!?)\]}*_]/y, (m) => link(m[0], [m[0]])],
  ['<', '>', /<br ?\/?>/y, () => h('br')],
  ['<', '</', /<(sub|sup|kbd)>([^<]{1,300})<\/\1>/y, (m, d) => h(m[1], {}, inline(m[2], d))],
  ['*', '***', /\*\*\*(?=\S)([\s\S]{0,1500}?\S)\*\*\*/y, (m, d) => h('strong', {}, h('em', {}, inline(m[1], d)))],
  ['*', '**', /\*\*(?=\S)([\s\S]{0,1500}?\S)\*\*/y, (m, d) => h('strong', {}, inline(m[1], d))],
  ['_', '__', /(?<![\p{L}\p{N}])__(?=\S)([\s\S]{0,1500}?\S)__(?![\p{L}\p{N}])/uy, (m, d) => h('strong', {}, inline(m[1], d))],
  ['~', '~~', /~~(?=\S)([\s\S]{0,1500}?\S)~~/y, (m, d) => h('del', {}, inline(m[1], d))],
  ['*', '*', /\*(?=[^\s*])((?:[^*]|\*\*[^*]{1,500}\*\*){0,1500}?[^\s*])\*(?!\*)/y, (m, d) => h('em', {}, inline(m[1], d))],
  ['_', '_', /(?<![\p{L}\p{N}_])_(?=[^\s_])([^_]{0,1500}?[^\s_])_(?![\p{L}\p{N}_])/uy, (m, d) => h('em', {}, inline(m[1], d))],
];
const MAX_MISSES = 400;
const SPECIAL = /[\\`$![<*_~\n]|https?:\/\//g;

// A text as nodes and strings.
export function inline(text, depth = 0) {
  const out = [];
  const last = SPANS.map(([, needs]) => text.lastIndexOf(needs));
  let from = 0;
  let misses = 0;
  for (let at = 0; at < text.length && depth < MAX_DEPTH && misses < MAX_MISSES;) {
    SPECIAL.lastIndex = at;
    const special = SPECIAL.exec(text);
    if (!special) break;
    at = special.index;
    const found = span(text, at, depth, last);
    if (!found) {
      at += 1;
      misses += 1;
      continue;
    }
    if (at > from) out.push(text.slice(from, at));
    out.push(found.node);
    from = at = found.end;
  }
  if (from < text.length) out.push(text.slice(from));
  return out;
}

function span(text, at, depth, last) {
  for (const [i, [starts, , pattern, make]] of SPANS.entries()) {
    if (!starts.includes(text[at]) || last[i] < at) continue;
    pattern.lastIndex = at;
    const match = pattern.exec(text);
    const node = match && make(match, depth + 1);
    if (node) return { node, end: at + match[0].length };
  }
  return null;
}

// A link to a web page or mail address; otherwise its text.
function link(target, content) {
  if (!/^(https?:\/\/|mailto:)/i.test(target)) return h('span', { title: target }, content);
  return h('a', { href: target, target: '_blank', rel: 'noopener noreferrer nofollow' }, content);
}

// Renders a text that grows. Text before the last safe place (an empty line outside of code and lists, the beginning or
// end of code) is drawn once; each update draws only the rest, and code grows at its end. So a long answer stays cheap.
export class MarkdownView {
  #drawn = 0;             // length of the text with final nodes
  #outline = newOutline();        // its headings
  #tail = [];
  #code = null;           // GrowingCode, while the text ends in code
  #text = '';
  #isDone = false;

  constructor(element) {
    this.element = element;
  }

  // Can this view grow to `text`? Not if it shows another text, or the end was drawn.
  canShow(text) {
    return this.#isDone ? text === this.#text : text.startsWith(this.#text);
  }

  update(text, isFinal = false) {
    this.#text = text;
    this.#isDone = isFinal;
    // Footnotes at the end change the text before.
    if (isFinal && this.#drawn && new RegExp(NOTE, 'm').test(text)) {
      this.element.replaceChildren();
      [this.#drawn, this.#tail, this.#code, this.#outline] = [0, [], null, newOutline()];
    }
    const rest = text.slice(this.#drawn);
    if (this.#code) {
      const end = this.#code.update(rest, isFinal);
      if (!end) return;
      [this.#tail, this.#code] = [[], null];
      this.#drawn += end;
      this.update(text, isFinal);
      return;
    }
    const { safe, isInCode } = isFinal ? { safe: rest.length, isInCode: false } : safeEnd(rest);
    for (const node of this.#tail) node.remove();
    if (safe > 0) this.element.append(...markdown(rest.slice(0, safe), this.#outline));
    this.#drawn += safe;
    this.#code = isInCode ? new GrowingCode(rest.slice(safe)) : null;
    this.#tail = this.#code ? [this.#code.element] : markdown(rest.slice(safe), [...this.#outline]);
    this.element.append(...this.#tail);
  }
}

// Code without its end yet. `text` begins with its first fence.
class GrowingCode {
  #lines = 0;             // where its last line begins

  constructor(text) {
    [, , this.fence] = FENCE.exec(text.slice(0, text.indexOf('\n')));
    this.block = new CodeBlock(languageOf(FENCE.exec(text.slice(0, text.indexOf('\n')))[3]));
    this.element = this.block.element;
    this.update(text, false);
  }

  // Its end in `text`; 0 while it is open.
  update(text, isFinal) {
    const from = text.indexOf('\n') + 1;
    const closes = new RegExp(`^ {0,3}\\${this.fence[0]}{${this.fence.length},}[ \\t]*(\\n${isFinal ? '|$(?![^])' : ''})`, 'gm');
    closes.lastIndex = Math.max(from, this.#lines);
    const found = closes.exec(text);
    const isOpen = !found && !isFinal;
    const code = text.slice(from, found?.index);
    this.#lines = text.lastIndexOf('\n') + 1;
    this.block.show(isOpen ? code : code.replace(/\n$/, ''), !isOpen);
    return isOpen ? 0 : found ? found.index + found[0].length : text.length;
  }
}

// Up to where `text` can't change any more, and whether open code follows.
function safeEnd(text) {
  let safe = 0;
  let at = 0;
  let fence = '';
  let isTop = false;            // the fence begins its line, so it isn't in a list
  let isAfterBlank = false;
  for (const line of text.split('\n').slice(0, -1)) {
    const mark = FENCE.exec(line);
    const end = at + line.length + 1;
    if (!fence && mark) {
      fence = mark[2];
      isTop = mark[1] === '';
      if (isTop) safe = at;
    } else if (fence && mark?.[2].startsWith(fence) && !mark[3].trim()) {
      fence = '';
      if (isTop) safe = end;
    } else if (!fence && isAfterBlank && /^[^\s\d>*+-]/.test(line)) safe = at;
    isAfterBlank = !fence && line.trim() === '';
    at = end;
  }
  return { safe, isInCode: fence !== '' && isTop };
}

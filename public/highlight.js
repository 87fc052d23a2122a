// Colours for code: comments, strings, numbers, keywords, called names. One scanner for all languages, with a table of
// differences. It has no grammar and isn't always right, but never changes the text.

import { h } from './dom.js';

const words = (text) => new Set(text.split(/\s+/));

const C_LIKE = words(`abstract as async await auto bool boolean break case catch char class const constexpr continue
  default defer delete do double else enum export extends extern false final finally float fn for from func function
  go goto if impl implements import in instanceof int interface let long loop match mod module mut namespace new nil
  null nullptr number of operator override package private protected pub public readonly return self short signed
  sizeof static string struct super switch template this throw throws trait true try type typedef typeof undefined
  union unsafe unsigned use using val var virtual void volatile when where while with yield`);
const PYTHON = words(`False None True and as assert async await break case class continue def del elif else except
  finally for from global if import in is lambda match nonlocal not or pass raise return self try while with yield
  begin do end ensure module next nil require rescue then unless until puts`);
const SHELL = words(`if then else elif fi for in do done while until case esac function return exit export local echo
  cd set source sudo apt pip npm git docker curl FROM RUN COPY CMD ENTRYPOINT ENV WORKDIR`);
const SQL = words(`select from where and or not in is null like between join left right inner outer full on group by
  order having limit offset insert into values update set delete create table index view drop alter add primary key
  foreign references unique default as distinct count sum avg min max case when then else end union all exists with`);
const NOTHING = words('true false null yes no on off');

const BLOCK = '\\/\\*[\\s\\S]*?(?:\\*\\/|$)';

// [names, keywords, comment pattern]
const LANGUAGES = [
  ['js javascript mjs ts typescript jsx tsx java c cpp c++ h hpp cs csharp go rust rs swift kotlin kt php scala dart zig',
    C_LIKE, `\\/\\/[^\\n]*|${BLOCK}`],
  ['css scss less', words('important media import from to'), BLOCK],
  ['json jsonc', NOTHING, '\\/\\/[^\\n]*'],
  ['py python ruby rb r julia jl nim', PYTHON, '#[^\\n]*'],
  ['sh bash shell zsh console dockerfile make makefile powershell ps1', SHELL, '(?<![\\w$"\'])#[^\\n]*'],
  ['yaml yml toml ini conf', NOTHING, '(?<!\\S)[#;][^\\n]*'],
  ['sql', SQL, `--[^\\n]*|${BLOCK}`],
  ['html xml svg vue', words(''), '<!--[\\s\\S]*?(?:-->|$)'],
  ['lua haskell hs', words(`and break do else elseif end false for function if in local nil not or repeat return then
  true until while where let data type module import case of`), '--[^\\n]*'],
];

const STRINGS = '"""[\\s\\S]*?(?:"""|$)|"(?:\\\\.|[^"\\\\\\n])*"?|\'(?:\\\\.|[^\'\\\\\\n])*\'?|`(?:\\\\.|[^`\\\\])*`?';
const NUMBERS = '\\b(?:0[xXbBoO][\\da-fA-F_]+|\\d[\\d_]*(?:\\.\\d+)?(?:[eE][-+]?\\d+)?)\\b';
const MAX_LENGTH = 200000;      // longer code stays plain
const SLICE = 2500;             // characters coloured in one step
const MAX_TOKENS = 1000;        // coloured in a slice
const AT_ONCE = 10000;          // characters coloured before a pause for the page

const scanners = new Map();

function scanner(language) {
  const row = LANGUAGES.find(([names]) => names.split(' ').includes(language.toLowerCase()));
  if (!row) return null;
  if (!scanners.has(row)) {
    const [, keywords, comment] = row;
    const isMarkup = row[0].startsWith('html');
    const name = isMarkup ? '<\\/?[\\w:-]+|\\/?>' : '[A-Za-z_$][\\w$]*';
    scanners.set(row, { keywords, isMarkup, isSql: row[0] === 'sql',
      pattern: new RegExp(`(${comment})|(${STRINGS})|(${NUMBERS})|(${name})`, 'g') });
  }
  return scanners.get(row);
}

// Code in `element`: the text appears at once, the colours follow slice by slice, with pauses for the page. Each slice
// is a box of whole lines, so that the browser lays out only the one that has changed.
export class Colours {
  #text = '';
  #isFinal = false;
  #at = 0;                      // end of the coloured text, where a line begins
  #box = null;                  // the last slice's box
  #length = 0;                  // of its text

  constructor(element, language) {
    this.scanner = scanner(language);
    this.newline = document.createTextNode('');         // before the rest, for readers of the text
    this.rest = document.createTextNode('');
    element.append(this.newline, h('span', {}, this.rest));
  }

  // The code has grown to `text`; `isFinal`: complete.
  show(text, isFinal) {
    this.#text = text;
    this.#isFinal = isFinal;
    if (queue.has(this) || !mayPaint()) {
      later(this);
      this.#showRest();
    } else this.paint();
  }

  // Colour the next slice.
  paint() {
    const limit = this.#isFinal ? this.#text.length : this.#text.lastIndexOf('\n') + 1;
    if (this.#at < limit) {
      const { tokens, to } = this.#scan(limit);
      if (to > this.#at) {
        this.#fill(tokens, to);
        painted += to - this.#at;
        this.#at = to;
        if (to < limit) later(this);
      }
    }
    this.#showRest();
  }

  #showRest() {
    this.newline.data = this.#at && this.#text[this.#at - 1] === '\n' ? '\n' : '';
    this.rest.data = this.#text.slice(this.#at);
  }

  // Tokens up to the end of a line, `to`; without a token that may continue after `limit`, and its line.
  #scan(limit) {
    const text = this.#text;
    const lineEnd = (at) => {
      const end = text.indexOf('\n', at);
      return end < 0 || end >= limit ? limit : end + 1;
    };
    const tokens = [];
    let to = lineEnd(this.#at + SLICE);
    const { pattern } = this.scanner ?? {};
    if (!pattern || to > MAX_LENGTH) return { tokens, to };
    pattern.lastIndex = this.#at;
    for (let match; (match = pattern.exec(text)) && match.index < to;) {
      const end = match.index + match[0].length;
      if (end >= limit && !this.#isFinal) return { tokens, to: text.lastIndexOf('\n', match.index) + 1 };
      if (end > to) to = lineEnd(end);
      const kind = kindOf(match, this.scanner, text);
      if (kind && tokens.length < MAX_TOKENS) tokens.push([match.index, end, kind]);
    }
    return { tokens, to };
  }

  #fill(tokens, to) {
    const nodes = [];
    let at = this.#at;
    const text = this.#text.slice(0, this.#text[to - 1] === '\n' ? to - 1 : to);
    for (const [start, end, kind] of tokens) {
      if (start >= to) break;
      nodes.push(text.slice(at, start), h('span', { class: kind }, text.slice(start, end)));
      at = end;
    }
    nodes.push(text.slice(at));
    if (this.#box && this.#length < SLICE) this.#box.append('\n', ...nodes);
    else {
      if (this.#box) this.newline.before('\n');
      this.#box = h('span', {}, nodes);
      this.#length = 0;
      this.newline.before(this.#box);
    }
    this.#length += to - this.#at;
  }
}

const queue = new Set();        // code to be coloured; the latest is next
let painted = 0;                // characters since the last pause
let isOn = false;

function mayPaint() {
  if (!painted) setTimeout(() => { painted = 0; });
  return painted < AT_ONCE;
}

function later(one) {
  queue.add(one);
  if (isOn) return;
  isOn = true;
  setTimeout(work);
}

function work() {
  const one = [...queue].at(-1);
  queue.delete(one);
  painted = 0;
  one.paint();
  isOn = queue.size > 0;
  if (isOn) setTimeout(work);
}

function kindOf(match, { keywords, isMarkup, isSql }, code) {
  const [whole, comment, string, digits] = match;
  if (comment) return 'hl-comment';
  if (string) return 'hl-string';
  if (digits) return 'hl-number';
  if (isMarkup || keywords.has(isSql ? whole.toLowerCase() : whole)) return 'hl-keyword';
  return code[match.index + whole.length] === '(' ? 'hl-call' : '';
}

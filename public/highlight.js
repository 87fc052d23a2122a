// Colours for code: comments, strings, numbers, keywords, names that are called. One scanner for all languages, with
// a table of what differs; it needs no grammar and may be wrong in corners, but never changes the text.

import { h } from './dom.js';

const words = (text) => new Set(text.split(' '));

const C_LIKE = words('abstract as async await auto bool boolean break case catch char class const constexpr continue '
  + 'default defer delete do double else enum export extends extern false final finally float fn for from func function '
  + 'go goto if impl implements import in instanceof int interface let long loop match mod module mut namespace new nil '
  + 'null nullptr number of operator override package private protected pub public readonly return self short signed '
  + 'sizeof static string struct super switch template this throw throws trait true try type typedef typeof undefined '
  + 'union unsafe unsigned use using val var virtual void volatile when where while with yield');
const PYTHON = words('False None True and as assert async await break case class continue def del elif else except '
  + 'finally for from global if import in is lambda match nonlocal not or pass raise return self try while with yield '
  + 'begin do end ensure module next nil require rescue then unless until puts');
const SHELL = words('if then else elif fi for in do done while until case esac function return exit export local echo '
  + 'cd set source sudo apt pip npm git docker curl FROM RUN COPY CMD ENTRYPOINT ENV WORKDIR');
const SQL = words('select from where and or not in is null like between join left right inner outer full on group by '
  + 'order having limit offset insert into values update set delete create table index view drop alter add primary key '
  + 'foreign references unique default as distinct count sum avg min max case when then else end union all exists with');
const NOTHING = words('true false null yes no on off');

// [names, keywords, comment pattern]
const LANGUAGES = [
  ['js javascript mjs ts typescript jsx tsx java c cpp c++ h hpp cs csharp go rust rs swift kotlin kt php scala dart zig',
    C_LIKE, '\\/\\/[^\\n]*|\\/\\*[\\s\\S]*?(?:\\*\\/|$)'],
  ['css scss less', words('important media import from to'), '\\/\\*[\\s\\S]*?(?:\\*\\/|$)'],
  ['json jsonc', NOTHING, '\\/\\/[^\\n]*'],
  ['py python ruby rb r julia jl nim', PYTHON, '#[^\\n]*'],
  ['sh bash shell zsh console dockerfile make makefile powershell ps1', SHELL, '(?<![\\w$"\'])#[^\\n]*'],
  ['yaml yml toml ini conf', NOTHING, '(?<!\\S)[#;][^\\n]*'],
  ['sql', SQL, '--[^\\n]*|\\/\\*[\\s\\S]*?(?:\\*\\/|$)'],
  ['html xml svg vue', words(''), '<!--[\\s\\S]*?(?:-->|$)'],
  ['lua haskell hs', words('and break do else elseif end false for function if in local nil not or repeat return then '
    + 'true until while where let data type module import case of'), '--[^\\n]*'],
];

const STRINGS = '"""[\\s\\S]*?(?:"""|$)|"(?:\\\\.|[^"\\\\\\n])*"?|\'(?:\\\\.|[^\'\\\\\\n])*\'?|`(?:\\\\.|[^`\\\\])*`?';
const NUMBERS = '\\b(?:0[xXbBoO][\\da-fA-F_]+|\\d[\\d_]*(?:\\.\\d+)?(?:[eE][-+]?\\d+)?)\\b';
const MAX_LENGTH = 60000;       // longer code stays plain: colours aren't worth a pause

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

// `code` as nodes and strings.
export function highlight(code, language) {
  const found = code.length > MAX_LENGTH ? null : scanner(language);
  if (!found) return [code];
  const out = [];
  let from = 0;
  for (const match of code.matchAll(found.pattern)) {
    const kind = kindOf(match, found, code);
    if (!kind) continue;
    if (match.index > from) out.push(code.slice(from, match.index));
    out.push(h('span', { class: kind }, match[0]));
    from = match.index + match[0].length;
  }
  out.push(code.slice(from));
  return out;
}

function kindOf([whole, comment, string, digits], { keywords, isMarkup, isSql }, code) {
  if (comment) return 'hl-comment';
  if (string) return 'hl-string';
  if (digits) return 'hl-number';
  if (isMarkup || keywords.has(isSql ? whole.toLowerCase() : whole)) return 'hl-keyword';
  return code[arguments[0].index + whole.length] === '(' ? 'hl-call' : '';
}

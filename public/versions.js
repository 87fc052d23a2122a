// All versions of a conversation as a tree that one can see and walk: where texts part, and what each of them says there.

import { ask, h } from './dom.js';
import { t } from './i18n.js';
import { roleName } from './message.js';

const [BEFORE, AFTER] = [24, 90];       // characters around the place where a version leaves the others
const SLICE = 100;              // rows that are drawn in one go

// How many characters two texts have in common at their beginning.
function common(a, b) {
  let n = 0;
  while (n < a.length && a[n] === b[n]) n += 1;
  return n;
}

const textOf = ({ content, reasoning = '', calls = [] }) => content || calls.map((call) => call.name).join(', ') || reasoning;

// One message of `versions`: what it shares with another one is dim, and what is its own stands out.
function label(message, versions) {
  const text = textOf(message);
  const shared = Math.max(0, ...versions.filter((one) => one !== message).map((one) => common(text, textOf(one))));
  const from = Math.max(0, shared - BEFORE);
  return [from > 0 && '\u2026', h('span', { class: 'dim' }, text.slice(from, shared)), text.slice(shared, shared + AFTER) || '\u2026'];
}

// Fills the list `list` with all messages, versions with what follows each of them as lists in it, a row with each step.
// A part that nobody has left is one level, however many messages it has.
function* branches(list, tree, leaf) {
  const shown = new Set(tree.path(leaf).map((message) => message.id));
  const todo = [[null, list, list]];      // whose versions are next, the list they go on in, and the row above
  while (todo.length) {
    const [id, level, above] = todo.shift();
    const versions = tree.children.get(id) ?? [];
    const isBranching = versions.length > 1 && id !== null;
    const box = isBranching ? h('ul', {}) : level;
    if (isBranching) above.append(box);
    const after = [];
    for (const message of versions) {
      const row = h('li', {}, h('button', { type: 'submit', value: message.id, formnovalidate: true,
        class: `quiet ${shown.has(message.id) ? 'chosen' : ''}`, 'aria-current': shown.has(message.id) && 'true' },
      h('span', { class: 'dim' }, `${roleName(message)}: `), h('bdi', {}, label(message, versions))));
      box.append(row);
      yield row;
      if (!tree.children.get(message.id)?.length) continue;
      const below = versions.length > 1 ? h('ul', {}) : box;
      if (versions.length > 1) row.append(below);
      after.push([message.id, below, row]);
    }
    todo.unshift(...after);
  }
}

// Draws rows, SLICE at a time: the page gives way in between.
function draw(rows) {
  for (let n = 0; n < SLICE; n++) if (rows.next().done) return;
  setTimeout(() => draw(rows));
}

// A dialog with the tree; resolves to the id of the message that the user has chosen, or ''.
export function askVersion(tree, leaf) {
  const list = h('ul', { class: 'tree' });
  draw(branches(list, tree, leaf));
  return ask(t('versions'), list, [['', t('close')]]);
}

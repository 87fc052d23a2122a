// All versions of a conversation as a tree: where texts begin to differ, and their texts there.

import { ask, h } from './dom.js';
import { t } from './i18n.js';
import { roleName } from './message.js';

const [BEFORE, AFTER] = [24, 90];       // characters around the first difference
const SLICE = 100;              // rows drawn between pauses

// The length of two texts' common beginning.
function common(a, b) {
  let n = 0;
  while (n < a.length && a[n] === b[n]) n += 1;
  return n;
}

const textOf = ({ content, reasoning = '', calls = [] }) => content || calls.map((call) => call.name).join(', ') || reasoning;

// One message of `versions`: text shared with another one is dim.
function label(message, versions) {
  const text = textOf(message);
  const shared = Math.max(0, ...versions.filter((one) => one !== message).map((one) => common(text, textOf(one))));
  const from = Math.max(0, shared - BEFORE);
  return [from > 0 && '\u2026', h('span', { class: 'dim' }, text.slice(from, shared)), text.slice(shared, shared + AFTER) || '\u2026'];
}

// Fills `list` with all messages; a version and the messages after it are a nested list. Yields for each row.
// Messages without versions add no level.
function* branches(list, tree, leaf) {
  const shown = new Set(tree.path(leaf).map((message) => message.id));
  const todo = [[null, list, list]];      // a parent, the list for its versions, and the row above
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

// Draws rows, SLICE at a time, with pauses for the page.
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

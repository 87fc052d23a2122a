// The command palette: one field that finds conversations, prompts, settings and actions by parts of their names.
// It has no state; the items contain the functions that do the work.

import { h } from './dom.js';
import { t } from './i18n.js';

const MAX_ROWS = 12;
const MAX_LATEST = 5;

// The items that have all words of `query`: first those whose label begins with it, then the others in order. Without
// words: the latest conversations and all actions.
function matching(items, query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) {
    const isChat = (item) => item.kind === t('chat');
    return [...items.filter(isChat).slice(0, MAX_LATEST), ...items.filter((item) => !isChat(item))].slice(0, MAX_ROWS);
  }
  const found = [];
  for (const item of items) {
    const text = `${item.label} ${item.kind} ${item.more ?? ''}`.toLowerCase();
    if (!words.every((word) => text.includes(word))) continue;
    const label = item.label.toLowerCase();
    found.push([label.startsWith(words.join(' ')) ? 0 : words.every((word) => label.includes(word)) ? 1 : 2, item]);
  }
  return found.sort((a, b) => a[0] - b[0]).slice(0, MAX_ROWS).map(([, item]) => item);
}

// Show `items`, { label, kind, more?, run }: `more` is searched but not shown. `rest(query)` returns an item for the
// end of the list.
export function openPalette(items, rest) {
  let rows = [];
  let at = 0;
  const list = h('ul', { id: 'palette-list', role: 'listbox', 'aria-label': t('palette') });
  const input = h('input', { type: 'text', role: 'combobox', autocomplete: 'off', spellcheck: 'false', 'aria-expanded': 'true',
    'aria-controls': 'palette-list', 'aria-label': t('palette'), placeholder: t('palette-hint'), oninput: () => fill() });
  const dialog = h('dialog', { class: 'palette', 'aria-label': t('palette') }, input, list);
  const mark = () => {
    [...list.children].forEach((row, i) => row.setAttribute('aria-selected', String(i === at)));
    list.children[at]?.scrollIntoView({ block: 'nearest' });
    input.setAttribute('aria-activedescendant', rows.length ? `palette-${at}` : '');
  };
  const fill = () => {
    const query = input.value.trim();
    rows = [...matching(items, query), ...(query ? [rest(query)] : [])];
    at = 0;
    list.replaceChildren(...rows.map((item, i) => h('li', { id: `palette-${i}`, role: 'option', onclick: () => choose(i) },
      h('bdi', { class: 'label' }, item.label), h('span', { class: 'dim' }, item.kind))));
    mark();
  };
  const choose = (i) => {
    const item = rows[i];
    dialog.close();
    item?.run();
  };
  dialog.addEventListener('keydown', (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.isComposing || !(step || event.key === 'Enter')) return;
    event.preventDefault();
    if (event.key === 'Enter') return choose(at);
    at = (at + step + rows.length) % Math.max(1, rows.length);
    return mark();
  });
  dialog.addEventListener('click', (event) => event.target === dialog && dialog.close());
  const before = document.activeElement;
  dialog.addEventListener('close', () => {
    dialog.remove();
    if (before?.isConnected) before.focus();
  });
  document.body.append(dialog);
  dialog.showModal();
  fill();
}

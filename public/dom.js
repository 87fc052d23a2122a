// Builds elements by calls, never from HTML text, so texts of a model or file can only become text nodes and checked
// attributes.

const SVG = 'http://www.w3.org/2000/svg';

// Outlines on a 24x24 grid, drawn with the current text colour.
const ICONS = {
  menu: 'M4 6h16M4 12h16M4 18h16',
  search: 'M4 11a7 7 0 1 0 14 0a7 7 0 1 0-14 0M16 16l5 5',
  send: 'M12 19V5M6 11l6-6 6 6',
  stop: 'M7 7h10v10H7z',
  copy: 'M9 9h10v11H9zM5 15V4h10',
  edit: 'M4 20l1-4L16 5l3 3L8 19zM14 7l3 3',
  retry: 'M20 11a8 8 0 1 0-2 6M20 4v7h-7',
  go: 'M5 12h14M13 6l6 6-6 6',
  trash: 'M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13',
  heat: 'M5 19h3V9H5zM11 19h3V5h-3zM17 19h3v-6h-3z',
  left: 'M15 6l-6 6 6 6',
  right: 'M9 6l6 6-6 6',
  close: 'M6 6l12 12M18 6L6 18',
  clip: 'M20 11l-8 8a5 5 0 0 1-7-7l8-8a3.3 3.3 0 0 1 5 5l-8 8a1.6 1.6 0 0 1-2.500-2.500l7-7',
  gear: 'M4 7h9M19 7h1M4 17h1M11 17h9M16 4v6M8 14v6',
  more: 'M5 12h.01M12 12h.01M19 12h.01',
  down: 'M6 9l6 6 6-6',
  check: 'M5 12l5 5 9-11',
  tool: 'M14 6a4 4 0 0 1 5-1l-3 3 1 2 2 1 3-3a4 4 0 0 1-6 5l-7 7-3-3 7-7a4 4 0 0 1 1-4z',
  save: 'M12 4v11M7 11l5 5 5-5M5 20h14',
  load: 'M12 16V5M7 9l5-5 5 5M5 20h14',
};

export function icon(name) {
  const svg = document.createElementNS(SVG, 'svg');
  svg.setAttribute('viewBox', '0 0 24 24');
  svg.setAttribute('aria-hidden', 'true');
  svg.setAttribute('class', 'icon');
  const path = document.createElementNS(SVG, 'path');
  path.setAttribute('d', ICONS[name]);
  svg.append(path);
  return svg;
}

// An element: `on...` functions become listeners, `value` and `checked` properties, true an empty attribute; false,
// null and undefined are ignored. Children are nodes or text; null and false are ignored.
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === false || value === null || value === undefined) continue;
    if (typeof value === 'function') element.addEventListener(name.slice(2), value);
    else if (name === 'class') element.className = value;
    else if (name === 'value' || name === 'checked') continue;
    else element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== false && child !== undefined));
  // After the children: a select needs its options first.
  if (props.value !== undefined && props.value !== null) element.value = props.value;
  if (props.checked !== undefined) element.checked = Boolean(props.checked);
  return element;
}

// A button with an icon; its name is the tooltip, and for screen readers.
export function iconButton(name, label, onclick, props = {}) {
  return h('button', { type: 'button', class: 'quiet', 'aria-label': label, title: label, onclick, ...props }, icon(name));
}

// A button that copies `text()`.
export function copyButton(label, text) {
  const button = iconButton('copy', label, async () => {
    await copy(text());
    button.classList.add('done');
    setTimeout(() => button.classList.remove('done'), 1200);
  });
  return button;
}

// An input with its label.
export function field(label, input, help = '') {
  return h('label', { class: 'field', title: help }, h('span', {}, label), input);
}

const TOAST_MS = { note: 3500, error: 9000, undo: 12000 };

// A notice that disappears by itself; screen readers read it. `undo`: [label, work] of a button in it.
export function toast(text, kind = 'note', undo = null) {
  const note = h('p', { class: `toast ${kind}`, dir: 'auto' }, text, undo && h('button', { type: 'button', onclick: () => {
    note.remove();
    undo[1]();
  } }, undo[0]));
  document.getElementById('toasts').append(note);
  setTimeout(() => note.remove(), TOAST_MS[undo ? 'undo' : kind]);
}

// Show an element with `popover` beside `anchor`, within the window, and focus its first button.
export function popUp(menu, anchor) {
  const box = anchor.getBoundingClientRect();
  menu.showPopover();
  menu.style.left = `${Math.max(8, Math.min(box.left, innerWidth - menu.offsetWidth - 8))}px`;
  const isBelow = box.bottom + menu.offsetHeight + 8 < innerHeight;
  menu.style.top = `${isBelow ? box.bottom + 4 : Math.max(8, box.top - menu.offsetHeight - 4)}px`;
  menu.querySelector('button:enabled')?.focus();
}

// A button that opens a menu of [label, work].
export function menuButton(name, label, items) {
  const button = iconButton(name, label, () => {
    const menu = h('div', { popover: 'auto', class: 'menu', role: 'menu' }, items.map(([text, work]) =>
      h('button', { type: 'button', role: 'menuitem', onclick: () => {
        menu.hidePopover();
        work();
      } }, text)));
    menu.addEventListener('toggle', (event) => event.newState === 'closed' && menu.remove());
    button.after(menu);
    popUp(menu, button);
  }, { 'aria-haspopup': 'menu' });
  return button;
}

// A modal dialog; resolves to the pressed button's value ('' when dismissed). `fill`: the content; `buttons`: rows of
// [value, label, class]. The caller reads its inputs afterwards. The first field gets the focus.
export function ask(title, fill, buttons) {
  return new Promise((resolve) => {
    const dialog = h('dialog', { 'aria-label': title },
      h('form', { method: 'dialog' },
        h('h2', {}, title), fill,
        h('div', { class: 'row end' }, buttons.map(([value, label, kind]) =>
          h('button', { type: 'submit', value, class: kind ?? '', formnovalidate: value === '' }, label)))));
    const before = document.activeElement;
    dialog.addEventListener('close', () => {
      dialog.remove();
      if (before?.isConnected) before.focus();
      resolve(dialog.returnValue);
    });
    // Enter presses the form's first submit button, which must be the main one, shown last.
    dialog.addEventListener('keydown', (event) => {
      if (event.key !== 'Enter' || event.target.tagName !== 'INPUT' || event.isComposing) return;
      event.preventDefault();
      dialog.querySelector('form').requestSubmit(dialog.querySelector('.row.end > :last-child'));
    });
    // Show an invalid field: browsers report none in a closed box.
    dialog.addEventListener('invalid', ({ target }) => {
      for (let box = target.closest('details'); box; box = box.parentElement.closest('details')) box.open = true;
    }, true);
    document.body.append(dialog);
    dialog.showModal();
    const first = dialog.querySelector('input, textarea, select');
    first?.focus();
    if (first?.type === 'text') first.select();
  });
}

// Download `text` as a file.
export function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = h('a', { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// Make a text box as tall as its text, within the limits of the style sheet.
export function grow(area) {
  area.style.height = 'auto';
  // it has no height while it is hidden
  if (area.scrollHeight) area.style.height = `${area.scrollHeight + 2}px`;
}

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // Pages by plain HTTP from another machine have no clipboard object.
  const area = h('textarea', { class: 'offscreen', value: text });
  document.body.append(area);
  area.select();
  document.execCommand('copy');
  area.remove();
  return undefined;
}

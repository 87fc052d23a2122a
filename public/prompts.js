// The user's saved prompts, by name. {{words}} in double braces are variables: using the prompt asks for their values.

import { ask, field, h, iconButton, toast } from './dom.js';
import { t } from './i18n.js';
import { prefs, savePrefs } from './prefs.js';

const VARIABLE = /\{\{\s*([\p{L}\p{N}][\p{L}\p{N} _-]{0,39}?)\s*\}\}/gu;
const MAX_TEXT = 100000;

// The names of the variables in `text`, each once.
export const variablesOf = (text) => [...new Set([...text.matchAll(VARIABLE)].map(([, name]) => name))];

// The text of the prompt `name` with the user's values; null if the dialog is dismissed.
export async function fillPrompt(name) {
  const text = prefs.prompts[name];
  const names = variablesOf(text);
  if (!names.length) return text;
  const inputs = names.map(() => h('textarea', { rows: 1, dir: 'auto' }));
  const answer = await ask(name, h('div', { class: 'settings' }, names.map((one, i) => field(one, inputs[i]))),
    [['', t('cancel')], ['ok', t('insert'), 'main']]);
  if (answer !== 'ok') return null;
  return text.replace(VARIABLE, (_, one) => inputs[names.indexOf(one)].value);
}

// Edit a prompt: a new one with the text `draft`, or the one called `old`.
export async function editPrompt(old = '', draft = '') {
  const name = h('input', { type: 'text', maxlength: 60, required: true, value: old, dir: 'auto' });
  const area = h('textarea', { rows: 8, dir: 'auto', required: true, maxlength: MAX_TEXT, value: prefs.prompts[old] ?? draft });
  const answer = await ask(t(old ? 'prompt-edit' : 'prompt-new'),
    h('div', { class: 'settings' }, field(t('name'), name), field(t('prompt'), area), h('p', { class: 'dim' }, t('prompt-help'))),
    [['', t('cancel')], ['ok', t('save'), 'main']]);
  if (answer !== 'ok' || !name.value.trim()) return;
  const { [old]: gone, ...rest } = prefs.prompts;
  savePrefs({ prompts: { ...rest, [name.value.trim()]: area.value } });
}

function remove(name) {
  const { [name]: gone, ...rest } = prefs.prompts;
  savePrefs({ prompts: rest });
  toast(t('chat-removed', { name }), 'note', [t('undo'), () => savePrefs({ prompts: { ...prefs.prompts, [name]: gone } })]);
}

// The list of prompts; use(name) inserts one into the message, `draft()` is the message's text.
export async function openPrompts(use, draft) {
  const list = h('ul', { class: 'prompts' });
  const choice = (value, label) => h('button', { type: 'submit', value, class: 'wide', formnovalidate: true }, label);
  const show = () => list.replaceChildren(...Object.keys(prefs.prompts).sort().map((name) => h('li', { class: 'row' },
    h('button', { type: 'submit', value: `use:${name}`, formnovalidate: true }, h('bdi', {}, name)),
    h('button', { type: 'submit', value: `edit:${name}`, class: 'quiet', formnovalidate: true }, t('edit')),
    iconButton('trash', t('prompt-delete', { name }), () => {
      remove(name);
      show();
    }))));
  show();
  if (!list.children.length) list.append(h('li', { class: 'dim' }, t('prompts-none')));
  const answer = await ask(t('prompts'), h('div', { class: 'settings' }, list,
    draft() ? choice('keep', t('prompt-keep')) : choice('new', t('prompt-new'))), [['', t('close')]]);
  const [what, name] = [answer.split(':', 1)[0], answer.slice(answer.indexOf(':') + 1)];
  if (what === 'use') await use(name);
  else if (what) await editPrompt(what === 'edit' ? name : '', draft());
}

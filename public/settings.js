// The settings dialog: API key, look, language, and fields of all chat requests.

import { ask, field, h } from './dom.js';
import { LANGUAGES, language, t } from './i18n.js';
import { OPTIONS, OptionsForm } from './options.js';
import { prefs, savePrefs } from './prefs.js';
import * as store from './store.js';

// Settings for the command palette: [name, label, more text].
export const settingNames = () => [
  ...[['apiKey', 'api-key'], ['theme', 'theme'], ['language', 'language'], ['system', 'system-default'], ['enterSends', 'enter-sends'],
    ['showSpeed', 'show-speed'], ['keepsTokens', 'keep-tokens']].map(([name, key]) => [name, t(key), '']),
  ...OPTIONS.map(({ name }) => [name, name, t(`help-${name}`)]),
];

const SHORTCUTS = ['Enter', 'Esc', 'Ctrl K', 'Alt N', 'Alt 1 2 3', 'Ctrl Enter'];

// `defaults`: the server's, null if unknown. Saving fires
// a "prefs" event. `wanted`: the field to begin with, one of the settings or of the options.
export async function openSettings(defaults, wanted = '') {
  const check = (name, key) => h('label', { class: 'check' }, inputs[name] = h('input', { type: 'checkbox', checked: prefs[name] }), t(key));
  const choice = (value, options) => h('select', { value }, Object.entries(options).map(([code, label]) => h('option', { value: code }, label)));
  const inputs = {
    apiKey: h('input', { type: 'password', autocomplete: 'off', value: prefs.apiKey, id: 'api-key' }),
    theme: choice(prefs.theme, { system: t('theme-system'), light: t('theme-light'), dark: t('theme-dark') }),
    language: choice(language, LANGUAGES),
    system: h('textarea', { rows: 3, dir: 'auto', value: prefs.system, placeholder: t('system-hint') }),
  };
  const sampling = new OptionsForm(prefs.sampling, () => {});
  if (defaults) sampling.setDefaults(defaults);
  const clear = h('button', { type: 'button', class: 'danger', onclick: async () => {
    const sure = await ask(t('delete-all-sure'), '', [['', t('cancel')], ['ok', t('delete'), 'danger']]);
    if (sure !== 'ok') return;
    await store.deleteEverything();
    location.hash = '#chat';
    location.reload();
  } }, t('delete-all'));
  const content = h('div', { class: 'settings' },
    h('div', { class: 'grid' }, field(t('optional', { name: t('api-key') }), inputs.apiKey, t('api-key-help')),
      field(t('theme'), inputs.theme), field(t('language'), inputs.language)),
    check('enterSends', 'enter-sends'), check('showSpeed', 'show-speed'), check('keepsTokens', 'keep-tokens'),
    field(t('system-default'), inputs.system),
    h('details', {}, h('summary', {}, t('sampling-defaults')), sampling.element),
    h('details', {}, h('summary', {}, t('shortcuts')), h('dl', { class: 'facts' },
      SHORTCUTS.flatMap((keys, i) => [h('dt', {}, h('kbd', {}, keys)), h('dd', {}, t(`shortcut-${i}`))]))),
    h('details', {}, h('summary', {}, t('data')), h('p', { class: 'dim' }, t('data-help')), clear));
  const values = () => ({
    apiKey: inputs.apiKey.value.trim(), theme: inputs.theme.value, language: inputs.language.value,
    system: inputs.system.value, enterSends: inputs.enterSends.checked, showSpeed: inputs.showSpeed.checked, keepsTokens: inputs.keepsTokens.checked,
    sampling: sampling.values,
  });
  const before = values();
  const asked = ask(t('settings'), content, [['', t('cancel')], ['ok', t('save'), 'main']]);
  const input = inputs[wanted] ?? content.querySelector(`[data-option="${wanted}"]`);
  for (let box = input?.closest('details'); box; box = box.parentElement.closest('details')) box.open = true;
  input?.focus();
  const answer = await asked;
  if (answer !== 'ok') return;
  const after = values();
  // Only changes: another tab may have changed the rest.
  const changes = Object.fromEntries(Object.entries(after)
    .filter(([name, value]) => JSON.stringify(value) !== JSON.stringify(before[name])));
  savePrefs(changes);
  if ('language' in changes) location.reload();
}

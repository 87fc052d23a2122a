// All sampling fields of a request as rows, and the form for them. The server's defaults (/props) are shown as
// placeholders; only changed fields are sent.

import { ask, field, h, iconButton, toast } from './dom.js';
import { t } from './i18n.js';
import { prefs, savePrefs } from './prefs.js';
import { allPresets } from './presets.js';

// Kinds: number (with min, max, step), flag, lines (a list, one item per line), names (a list, separated by commas),
// json, text.
const row = (group, name, kind, min, max, step) => ({ group, name, kind, min, max, step });
export const OPTIONS = [
  row('basic', 'n_predict', 'number', -1, 1e6, 1),
  row('basic', 'temperature', 'number', 0, 5, 0.05),
  row('basic', 'top_k', 'number', -1, 1e5, 1),
  row('basic', 'top_p', 'number', 0, 1, 0.01),
  row('basic', 'min_p', 'number', 0, 1, 0.01),
  row('basic', 'seed', 'number', -1, 4294967295, 1),
  row('basic', 'stop', 'lines'),
  row('penalties', 'repeat_penalty', 'number', 0.01, 10, 0.01),
  row('penalties', 'repeat_last_n', 'number', -1, 1e6, 1),
  row('penalties', 'presence_penalty', 'number', -10, 10, 0.05),
  row('penalties', 'frequency_penalty', 'number', -10, 10, 0.05),
  row('penalties', 'penalize_nl', 'flag'),
  row('penalties', 'dry_multiplier', 'number', 0, 100, 0.05),
  row('penalties', 'dry_base', 'number', 0, 100, 0.05),
  row('penalties', 'dry_allowed_length', 'number', 0, 1e6, 1),
  row('penalties', 'dry_penalty_last_n', 'number', -1, 1e6, 1),
  row('penalties', 'dry_sequence_breakers', 'json'),
  row('shape', 'typical_p', 'number', 0, 1, 0.01),
  row('shape', 'tfs_z', 'number', 0, 1, 0.01),
  row('shape', 'top_n_sigma', 'number', -1, 100, 0.1),
  row('shape', 'xtc_probability', 'number', 0, 1, 0.01),
  row('shape', 'xtc_threshold', 'number', 0, 1, 0.01),
  row('shape', 'dynatemp_range', 'number', 0, 5, 0.05),
  row('shape', 'dynatemp_exponent', 'number', 0, 10, 0.05),
  row('shape', 'mirostat', 'number', 0, 2, 1),
  row('shape', 'mirostat_tau', 'number', 0, 100, 0.1),
  row('shape', 'mirostat_eta', 'number', 0, 10, 0.01),
  row('shape', 'adaptive_target', 'number', -1, 1, 0.01),
  row('shape', 'adaptive_decay', 'number', 0, 0.99, 0.01),
  row('shape', 'min_keep', 'number', 0, 1e6, 1),
  row('shape', 'samplers', 'names'),
  row('more', 'n_keep', 'number', -1, 1e6, 1),
  row('more', 'n_indent', 'number', 0, 1000, 1),
  row('more', 't_max_predict_ms', 'number', 0, 1e9, 1),
  row('more', 'ignore_eos', 'flag'),
  row('more', 'cache_prompt', 'flag'),
  row('more', 'logit_bias', 'json'),
];
const GROUPS = ['basic', 'penalties', 'shape', 'more'];

// The value of an input's text; throws with a message for the user.
function parse({ kind, name, min, max, step }, text) {
  if (kind === 'flag') return text === 'true';
  if (kind === 'lines') return text.split('\n').map((line) => line.replace(/\\n/g, '\n').replace(/\\t/g, '\t'));
  if (kind === 'names') return text.split(',').map((item) => item.trim()).filter(Boolean);
  if (kind === 'json') return JSON.parse(text);
  const value = Number(text);
  if (!Number.isFinite(value) || value < min || value > max || (step === 1 && !Number.isInteger(value))) {
    throw new Error(t('bad-number', { name, min, max }));
  }
  return value;
}

function show({ kind }, value) {
  if (value === undefined || value === null) return '';
  if (kind === 'lines') return value.map((line) => line.replace(/\n/g, '\\n').replace(/\t/g, '\\t')).join('\n');
  if (kind === 'names') return value.join(', ');
  if (kind === 'json') return JSON.stringify(value);
  return String(typeof value === 'number' ? Number(value.toPrecision(7)) : value);
}

let nextId = 0;                 // of a form

// A form with all options. `values`: the changed fields; `onchange(values)` is called after each change.
export class OptionsForm {
  #values;
  #inputs = new Map();
  #onchange;

  constructor(values, onchange) {
    this.id = `options-${nextId++}`;
    this.#values = { ...values };
    this.#onchange = onchange;
    this.presets = h('select', { 'aria-label': t('preset'), onchange: () => this.#usePreset() });
    this.element = h('div', { class: 'options' },
      h('div', { class: 'row presets' }, this.presets,
        iconButton('save', t('preset-save'), () => this.#savePreset()),
        iconButton('trash', t('preset-delete'), () => this.#deletePreset()),
        h('span', { class: 'space' }),
        h('button', { type: 'button', class: 'quiet reset', onclick: () => this.set({}) }, t('reset'))),
      GROUPS.map((group) => h('details', { open: group === 'basic' },
        h('summary', {}, t(`group-${group}`)),
        h('div', { class: 'grid' }, OPTIONS.filter((one) => one.group === group).map((one) => this.#field(one))))));
    this.#listPresets();
    this.set(this.#values, true);
  }

  get values() {
    return { ...this.#values };
  }

  // Show `defaults` (from /props) in the empty fields.
  setDefaults(defaults) {
    for (const option of OPTIONS) {
      const text = show(option, defaults[option.name]);
      const input = this.#inputs.get(option.name);
      if (option.kind === 'flag') input.options[0].textContent = t('default-is', { value: text });
      else input.placeholder = text;
    }
  }

  set(values, isQuiet = false) {
    this.#values = { ...values };
    for (const option of OPTIONS) {
      const input = this.#inputs.get(option.name);
      input.value = show(option, values[option.name]);
      this.#mark(option, input, '');
    }
    if (!isQuiet) this.#onchange(this.values);
  }

  #field(option) {
    const { name, kind, min, max, step } = option;
    const id = { name, oninput: (event) => this.#read(option, event.target), onchange: (event) => this.#read(option, event.target),
      'data-option': name, 'aria-describedby': `${this.id}-${name}` };
    let input;
    if (kind === 'flag') {
      input = h('select', id, h('option', { value: '' }, t('default')), h('option', { value: 'true' }, t('on')),
        h('option', { value: 'false' }, t('off')));
    } else if (kind === 'number') {
      input = h('input', { ...id, type: 'number', min, max, step: step === 1 ? 1 : 'any', inputmode: 'decimal' });
    } else if (kind === 'lines') input = h('textarea', { ...id, rows: 2, spellcheck: 'false' });
    else input = h('input', { ...id, type: 'text', spellcheck: 'false' });
    this.#inputs.set(name, input);
    const label = field(name, input, t(`help-${name}`));
    label.prepend(h('span', { class: 'error', id: `${this.id}-${name}`, hidden: true }));
    if (['lines', 'names', 'json'].includes(kind)) label.classList.add('wide');
    return label;
  }

  #read(option, input) {
    let problem = '';
    delete this.#values[option.name];
    if (input.value !== '' || input.validity.badInput) {
      try {
        this.#values[option.name] = parse(option, input.validity.badInput ? 'x' : input.value);
      } catch (error) {
        problem = error.message;
      }
    }
    this.#mark(option, input, problem);
    this.#onchange(this.values);
  }

  // Mark a field as changed or invalid.
  #mark({ name }, input, problem) {
    input.setCustomValidity(problem && `${name}: ${problem}`);
    input.classList.toggle('changed', name in this.#values);
    input.setAttribute('aria-invalid', String(Boolean(problem)));
    const note = input.parentElement.querySelector('.error');
    note.textContent = problem;
    note.hidden = !problem;
  }

  // Are all fields valid? Shows the first that isn't.
  isGood() {
    const bad = [...this.#inputs.values()].find((input) => !input.validity.valid);
    if (!bad) return true;
    for (let box = bad.closest('details'); box; box = box.parentElement.closest('details')) box.open = true;
    bad.focus();
    return false;
  }

  #listPresets() {
    this.presets.replaceChildren(h('option', { value: '' }, t('preset')),
      ...allPresets().map(([id, label]) => h('option', { value: id }, label)));
  }

  #usePreset() {
    const preset = allPresets().find(([id]) => id === this.presets.value);
    if (preset) this.set(preset[2]);
  }

  async #savePreset() {
    const input = h('input', { type: 'text', maxlength: 60, required: true });
    const answer = await ask(t('preset-save'), field(t('name'), input), [['', t('cancel')], ['ok', t('save'), 'main']]);
    const name = input.value.trim();
    if (answer !== 'ok' || !name) return;
    savePrefs({ presets: { ...prefs.presets, [name]: this.values } });
    this.#listPresets();
    this.presets.value = `o:${name}`;
  }

  #deletePreset() {
    const name = this.presets.value.slice(2);
    if (!this.presets.value.startsWith('o:')) return toast(t('preset-fixed'));
    const { [name]: gone, ...rest } = prefs.presets;
    savePrefs({ presets: rest });
    this.#listPresets();
    return undefined;
  }
}

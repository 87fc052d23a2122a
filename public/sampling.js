// The sampling of one conversation: a box with all fields, and a quick choice of presets beside the composer. The
// fields override those of the settings. The form is loaded when the box is opened.

import { h } from './dom.js';
import { t } from './i18n.js';
import { allPresets, presetOf } from './presets.js';

const OWN = 'own';              // the quick choice's value if the fields are no preset

export class SamplingBox {
  #values = {};
  #form = null;

  // onchange(values) after each change; `defaults()`: the server's known ones.
  constructor(onchange, defaults) {
    this.onchange = onchange;
    this.defaults = defaults;
    this.count = h('span', { class: 'badge', hidden: true });
    this.content = h('div');
    this.element = h('details', { class: 'system-box', ontoggle: () => this.element.open && this.#load() },
      h('summary', {}, t('sampling'), ' ', this.count), h('p', { class: 'dim' }, t('sampling-help')), this.content);
    this.quick = h('select', { class: 'quiet', 'aria-label': t('sampling'), title: t('sampling'), onchange: () => this.#choose() });
    window.addEventListener('prefs', () => this.#show());
    this.values = {};
  }

  set values(values) {
    this.#values = { ...values };
    this.#form?.set(this.#values, true);
    this.#show();
  }

  // Are all fields valid? Shows the first that isn't.
  isGood() {
    return this.#form?.isGood() ?? true;
  }

  async #load() {
    if (this.#form) return;
    const { OptionsForm } = await import('./options.js');
    this.#form ??= new OptionsForm(this.#values, (values) => {
      this.#values = values;
      this.#show();
      this.onchange(values);
    });
    if (this.defaults()) this.#form.setDefaults(this.defaults());
    this.content.replaceChildren(this.#form.element);
  }

  #choose() {
    if (this.quick.value === OWN) return;
    const [, , values] = allPresets().find(([id]) => id === this.quick.value) ?? ['', '', {}];
    this.values = values;
    this.onchange({ ...values });
  }

  #show() {
    const n = Object.keys(this.#values).length;
    this.count.textContent = n;
    this.count.hidden = !n;
    this.quick.replaceChildren(h('option', { value: '' }, t('sampling-standard')),
      ...allPresets().map(([id, label]) => h('option', { value: id }, label)),
      h('option', { value: OWN, hidden: true }, t('sampling-own')));
    this.quick.value = n ? presetOf(this.#values) || OWN : '';
  }
}

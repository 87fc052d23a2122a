// The choice of a model, if the server has several: a button with the model in use, and a list with states and sizes,
// to load, unload and choose. Polls while the list is open or a model loads. Way not taken: the server's stream of such
// events, which would use one of the few connections that a browser has for all tabs.

import { errorText, get, post } from './api.js';
import { h, popUp, toast } from './dom.js';
import { bytes, number, t } from './i18n.js';

const PERIOD_MS = 1000;

export class ModelPicker {
  #models = [];
  #current = '';
  #timer = 0;

  // onchoose(id): the user has chosen a model; onloaded(id): the one in use is ready.
  constructor({ onchoose, onloaded }) {
    Object.assign(this, { onchoose, onloaded });
    this.label = h('bdi', { class: 'label' });
    this.state = h('span', { class: 'badge' });
    this.element = h('button', { type: 'button', id: 'model', 'aria-haspopup': 'dialog', onclick: () => this.#open() }, this.label, this.state);
    this.list = h('ul', { class: 'models' });
    this.menu = h('div', { popover: 'auto', class: 'menu', role: 'dialog', 'aria-label': t('models') }, this.list);
    this.menu.addEventListener('toggle', () => this.refresh());
  }

  get current() {
    return this.#current;
  }

  // Is the one in use loaded, or asleep?
  get isUp() {
    return ['loaded', 'sleeping'].includes(this.#stateOf(this.#current));
  }

  // Show the model `id`; if there is none, one that is loaded.
  use(id) {
    const known = this.#models.find((one) => one.id === id || one.aliases?.includes(id));
    this.#current = (known ?? this.#models.find((one) => one.status?.value === 'loaded') ?? this.#models[0])?.id ?? '';
    this.#draw();
  }

  // Ask for the states, and again while they change or are shown.
  async refresh() {
    clearTimeout(this.#timer);
    const before = this.#stateOf(this.#current);
    try {
      this.#models = (await get('models')).data;
    } catch (error) {
      if (this.#isOpen()) toast(errorText(error), 'error');
    }
    this.#draw();
    const now = this.#stateOf(this.#current);
    if (now === 'loaded' && before !== now) this.onloaded(this.#current);
    const isMoving = this.#models.some((one) => one.status?.value === 'loading');
    if (isMoving || this.#isOpen()) this.#timer = setTimeout(() => this.refresh(), PERIOD_MS);
  }

  #isOpen() {
    return this.menu.matches(':popover-open');
  }

  #stateOf(id) {
    return this.#models.find((one) => one.id === id)?.status?.value ?? '';
  }

  #open() {
    if (!this.menu.isConnected) this.element.after(this.menu);
    popUp(this.menu, this.element);
  }

  #draw() {
    const { value = '', progress } = this.#models.find((one) => one.id === this.#current)?.status ?? {};
    this.label.textContent = this.#current;
    this.state.textContent = value ? stateText(value, progress) : '';
    this.state.className = `badge ${value}`;
    const rows = this.#models.map((one) => this.#row(one));
    const focused = document.activeElement?.closest('.models') && document.activeElement.dataset.key;
    this.list.replaceChildren(...rows);
    if (focused) this.list.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  }

  #row({ id, size, status = {} }) {
    const { value, progress, reason } = status;
    const isUp = ['loaded', 'loading', 'sleeping'].includes(value);
    const name = isUp ? 'unload' : 'load';
    return h('li', { class: 'row', 'data-model': id },
      h('button', { type: 'button', class: 'choose', 'data-key': `choose ${id}`, 'aria-current': id === this.#current && 'true', onclick: () => {
        this.menu.hidePopover();
        this.use(id);
        this.onchoose(id);
      } }, h('bdi', { class: 'label' }, id), h('span', { class: 'dim' }, [stateText(value, progress), size ? bytes(size) : ''].filter(Boolean).join(', ')),
      reason && h('span', { class: 'error' }, reason)),
      h('button', { type: 'button', class: 'quiet', 'data-key': `${name} ${id}`, 'aria-label': t(`model-${name}`, { name: id }), onclick: () => this.#act(name, id) },
        t(name)));
  }

  async #act(name, id) {
    try {
      await post(`models/${name}`, { model: id });
    } catch (error) {
      toast(errorText(error), 'error');
    }
    await this.refresh();
  }
}

const stateText = (value, progress) =>
  (value === 'loading' && progress ? t('state-loading-at', { percent: number(100 * progress) }) : value ? t(`state-${value}`) : '');

// The server view: slots, a timeline of the last minute, charts of the last minutes, the model's facts,
// LoRA scales. Polls once a second while it is visible.

import { errorText, get, getText, health, post } from './api.js';
import { Chart, N_SAMPLES, parseMetrics } from './charts.js';
import { ask, field, h, toast } from './dom.js';
import { bytes, number, t } from './i18n.js';
import { Timeline } from './timeline.js';

const [PERIOD_MS, N_CACHE] = [1000, 10];    // between rounds; rounds between requests for the cache

const count = (n) => (n > 1e9 ? `${number(n / 1e9, 2)} ${t('billion')}` : n > 1e6 ? `${number(n / 1e6, 1)} ${t('million')}` : number(n));
const digits = (value) => (value > 0 && value < 10 ? 1 : 0);
const perSecond = (value) => `${number(value, digits(value))}/s`;
const milliseconds = (value) => `${number(value, digits(value))} ms`;

export class ServerView {
  #timer = 0;
  #round = 0;
  #last = null;                 // { time, metrics } of the last sample
  #cards = new Map();

  constructor() {
    this.facts = h('dl', { class: 'facts' });
    this.slots = h('div', { class: 'slots' });
    this.noMetrics = h('p', { class: 'dim', hidden: true }, t('no-metrics'));
    this.noSlots = h('p', { class: 'dim', hidden: true }, t('no-slots'));
    this.charts = {
      generated: new Chart(t('throughput'), [t('generated')], perSecond),
      read: new Chart(t('reading-speed'), [t('read')], perSecond),
      load: new Chart(t('requests'), [t('working'), t('waiting')], (value) => number(value)),
      cache: new Chart(t('cache'), [t('cache-used')], (value) => `${number(value, 0)} %`, 100),
      first: new Chart(t('latency-first'), [t('first-token')], milliseconds),
      between: new Chart(t('latency-between'), [t('between-tokens')], milliseconds),
    };
    this.timeline = new Timeline();
    this.lost = h('section');
    this.lora = h('div', { class: 'lora' });
    this.loraSection = h('section', { hidden: true }, h('h2', {}, 'LoRA'), this.lora);
    this.state = h('p', { class: 'dim', role: 'status' });
    this.element = h('section', { class: 'view server', 'aria-label': t('server') },
      h('div', { class: 'column' },
        h('h2', {}, t('slots')), this.state, this.slots, this.noSlots, this.timeline.element, this.lost,
        h('h2', {}, t('activity')), this.noMetrics,
        h('div', { class: 'charts' }, Object.values(this.charts).map((chart) => chart.element)),
        this.loraSection,
        h('h2', {}, t('model')), this.facts));
  }

  async ready(props) {
    this.props = props;
    this.noMetrics.hidden = props.endpoint_metrics;
    this.noSlots.hidden = props.endpoint_slots;
    this.timeline.element.hidden = !props.endpoint_slots;
    for (const chart of Object.values(this.charts)) chart.element.hidden = !props.endpoint_metrics;
    const [models, adapters] = await Promise.all([get('v1/models'), get(this.#path('lora-adapters')).catch(() => [])]);
    this.#showFacts(models.data.find((one) => one.id === props.model) ?? models.data[0]);
    this.#showLora(adapters);
  }

  // A path for the model in use, if there are several.
  #path(name) {
    return this.props.model ? `${name}?model=${encodeURIComponent(this.props.model)}` : name;
  }

  show() {
    this.hide();
    const round = async () => {
      await this.#poll().catch((error) => { this.state.textContent = errorText(error); });
      this.#timer = this.#timer && setTimeout(round, PERIOD_MS);
    };
    this.#timer = setTimeout(round, 0);
  }

  hide() {
    clearTimeout(this.#timer);
    this.#timer = 0;
  }

  async #poll() {
    if (!this.props || document.hidden) return;
    const state = await health();
    this.state.textContent = state === null ? t('offline')
      : t('slots-state', { idle: state.slots_idle ?? 0, working: state.slots_processing ?? 0 });
    if (this.props.endpoint_slots) {
      this.#showSlots(await get(this.#path('slots')));
      this.timeline.show(await get(this.#path('slots/timeline')));
      if (this.#round++ % N_CACHE === 0) await this.#showLost();
    }
    if (this.props.endpoint_metrics) this.#sample(parseMetrics(await getText('metrics')));
  }

  async #showLost() {
    const [{ linesOf }, report] = await Promise.all([import('./cache.js'), get(this.#path('debug/cache'))]);
    this.lost.replaceChildren(...linesOf(report));
  }

  #sample(metrics) {
    const time = performance.now() / 1000;
    // There is no data from before, nor from while the view was hidden.
    const missed = this.#last ? Math.min(N_SAMPLES, Math.round((time - this.#last.time) * 1000 / PERIOD_MS) - 1) : 0;
    for (let i = 0; i < missed; i++) for (const chart of Object.values(this.charts)) chart.add(chart.series.map(() => null));
    const last = missed > 1 ? null : this.#last;
    this.#last = { time, metrics };
    const since = (name) => metrics.get(name) - last.metrics.get(name);
    const rate = (name) => (last ? Math.max(0, since(name)) / (time - last.time) : null);
    const average = (name) => (last && since(`${name}_count`) > 0 ? 1000 * since(`${name}_sum`) / since(`${name}_count`) : null);
    this.charts.generated.add([rate('tokens_predicted_total')]);
    this.charts.read.add([rate('prompt_tokens_total')]);
    this.charts.load.add([metrics.get('requests_processing'), metrics.get('requests_deferred')]);
    this.charts.cache.add([100 * metrics.get('kv_cache_usage_ratio')]);
    this.charts.first.add([average('time_to_first_token_seconds')]);
    this.charts.between.add([average('time_between_tokens_seconds')]);
  }

  #showSlots(slots) {
    for (const slot of slots) {
      if (!this.#cards.has(slot.id)) {
        this.#cards.set(slot.id, new SlotCard(slot.id, this.props.endpoint_slot_actions));
        this.slots.append(this.#cards.get(slot.id).element);
      }
      this.#cards.get(slot.id).show(slot);
    }
  }

  #showFacts({ id, meta }) {
    const { props } = this;
    const rows = [
      [t('name'), id], [t('kind'), meta?.desc], [t('parameters'), meta && count(meta.n_params)],
      [t('size'), meta && bytes(meta.size)], [t('trained-context'), meta && number(meta.n_ctx_train)],
      [t('slot-context'), number(props.default_generation_settings.n_ctx)], [t('vocabulary'), meta && number(meta.n_vocab)],
      [t('file'), props.model_path], [t('build'), props.build_info],
      [t('template'), props.chat_template && h('details', {}, h('summary', {}, t('show')), h('pre', { tabindex: 0 }, props.chat_template))],
    ];
    this.facts.replaceChildren(...rows.filter(([, value]) => value)
      .flatMap(([name, value]) => [h('dt', {}, name), h('dd', {}, value)]));
  }

  #showLora(adapters) {
    this.loraSection.hidden = !adapters.length;
    this.lora.replaceChildren(...adapters.map((adapter) => {
      const value = h('output', {}, number(adapter.scale, 2));
      const slider = h('input', { type: 'range', min: 0, max: 2, step: 0.05, value: adapter.scale, 'data-adapter': adapter.id,
        oninput: () => { value.textContent = number(Number(slider.value), 2); },
        onchange: () => this.#setLora() });
      return h('div', { class: 'row' }, field(adapter.path.split(/[\\/]/).pop(), slider), value);
    }));
  }

  async #setLora() {
    const scales = [...this.lora.querySelectorAll('input')]
      .map((slider) => ({ id: Number(slider.dataset.adapter), scale: Number(slider.value) }));
    try {
      await post('lora-adapters', scales);
      toast(t('saved'));
    } catch (error) {
      toast(errorText(error), 'error');
    }
  }
}

class SlotCard {
  // `hasActions`: this server saves slots.
  constructor(id, hasActions) {
    this.id = id;
    this.state = h('span', { class: 'badge' });
    this.prompt = h('pre', { class: 'excerpt', tabindex: 0, 'aria-label': t('slot-text', { id }) },
      this.before = h('span'), this.after = h('span', { class: 'made' }));
    this.fill = h('meter', { min: 0, max: 1, low: 0.75, high: 0.9, optimum: 0, 'aria-label': t('context') });
    this.numbers = h('p', { class: 'dim' });
    const action = (name) => h('button', { type: 'button', class: 'quiet', onclick: () => this.#act(name) }, t(`slot-${name}`));
    this.element = h('article', { class: 'card', 'aria-label': t('slot', { id }) },
      h('div', { class: 'row' }, h('strong', {}, t('slot', { id })), this.state, h('span', { class: 'space' }), this.fill),
      this.numbers, this.prompt,
      h('div', { class: 'row', hidden: !hasActions }, action('save'), action('restore'), action('erase')));
  }

  show(slot) {
    const { n_decoded: made } = [slot.next_token].flat()[0];
    const isReading = slot.is_processing && made === 0;
    this.state.textContent = t(isReading ? 'timeline-reading' : slot.is_processing ? 'timeline-writing' : 'slot-idle');
    this.element.classList.toggle('working', slot.is_processing);
    const used = (slot.is_processing ? slot.n_prompt_tokens_processed : slot.n_prompt_tokens) + made;
    this.fill.value = used / slot.n_ctx;
    this.numbers.textContent = t('slot-numbers', { used: number(used), size: number(slot.n_ctx), made: number(made) });
    // Setting the same text would remove the user's selection.
    const text = slot.prompt.slice(-400);
    if (this.before.textContent !== text) this.before.textContent = text;
    if (this.after.textContent === (slot.generated ?? '')) return;
    this.after.textContent = slot.generated ?? '';
    if (slot.is_processing) this.prompt.scrollTop = this.prompt.scrollHeight;
  }

  async #act(action) {
    const name = h('input', { type: 'text', required: true, maxlength: 200, value: `slot${this.id}.bin` });
    const fill = action === 'erase' ? t('slot-erase-sure') : field(t('file'), name);
    const answer = await ask(`${t('slot', { id: this.id })}: ${t(`slot-${action}`)}`, fill,
      [['', t('cancel')], ['ok', t(`slot-${action}`), action === 'erase' ? 'danger' : 'main']]);
    if (answer !== 'ok') return;
    try {
      const done = await post(`slots/${this.id}?action=${action}`, action === 'erase' ? {} : { filename: name.value.trim() });
      toast(t('slot-done', { n: done.n_saved ?? done.n_restored ?? done.n_erased ?? 0 }));
    } catch (error) {
      toast(errorText(error), 'error');
    }
  }
}

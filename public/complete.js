// The completion view: raw text in, text out, with every option, a grammar or JSON schema, a gap to fill, and the
// probabilities of tokens.

import { errorText, isReady, health, post, stream } from './api.js';
import { field, h } from './dom.js';
import * as drafts from './drafts.js';
import { number, t } from './i18n.js';
import { schemaToGrammar } from './json-schema-to-grammar.mjs';
import { OptionsForm } from './options.js';
import { prefs, savePrefs } from './prefs.js';
import { TokenView } from './tokens.js';

const GAP = '<FILL>';           // marks the gap that the model fills
const N_PREDICT = 256;          // default, as texts need not end
const N_PROBS = 8;
const KEPT = 'completion';      // key of the draft
const MAX_KEPT = 500000;        // characters; larger drafts lose the alternatives of tokens


export class CompleteView {
  #running = null;
  model = {};                   // the request's field, if there are several models
  #canFill = true;              // has the model tokens for gaps?

  constructor() {
    this.prompt = h('textarea', { id: 'prompt', rows: 8, dir: 'auto', value: prefs.prompt, oninput: () => this.#keep(),
      onkeydown: (event) => {
        if (event.key !== 'Enter' || !(event.ctrlKey || event.metaKey)) return;
        event.preventDefault();
        this.form.requestSubmit();
      } });
    this.send = h('button', { type: 'submit', id: 'send', class: 'main', title: t('ctrl-enter') }, t('complete-it'));
    this.stopButton = h('button', { type: 'button', id: 'stop', disabled: true, onclick: () => this.stop() }, t('stop'));
    this.gap = h('button', { type: 'button', id: 'gap', onclick: () => this.#insertGap(), title: t('gap-help', { gap: GAP }) }, t('gap'));
    this.take = h('button', { type: 'button', id: 'take', disabled: true, onclick: () => this.#take() }, t('take'));
    this.probs = h('input', { type: 'checkbox', id: 'probs', onchange: () => this.#keep() });
    this.before = h('span', { class: 'given' });
    this.tokens = h('span', { class: 'tokens' });
    this.after = h('span', { class: 'given' });
    this.output = h('output', { id: 'output', dir: 'auto', for: 'prompt', 'aria-live': 'off' }, this.before, this.tokens, this.after);
    this.problem = h('p', { class: 'note error', role: 'alert', hidden: true });
    this.timings = h('p', { id: 'timings', class: 'dim', role: 'status' });
    this.form = h('form', { onsubmit: (event) => {
      event.preventDefault();
      this.#complete(this.prompt.value);
    } },
    h('label', { for: 'prompt', class: 'label' }, t('text-to-continue')), this.prompt,
    h('div', { class: 'row' }, this.gap, h('label', { class: 'check' }, this.probs, t('show-probs')),
      h('div', { class: 'row whole' }, this.stopButton, this.send)));
    this.options = new OptionsForm(prefs.completion, (values) => savePrefs({ completion: values }));
    this.view = new TokenView(this.tokens, (text) => this.#complete(this.#base + text));
    this.element = h('section', { class: 'view complete', 'aria-label': t('completion') },
      h('div', { class: 'column' }, this.form, this.output, this.problem, this.view.legend,
        h('div', { class: 'row' }, this.timings, h('span', { class: 'space' }), this.take), this.view.menu),
      h('section', { class: 'panel', 'aria-label': t('options') }, this.#constraint(), this.options.element));
    this.#restore();
    window.addEventListener('pagehide', () => this.#keep());
    // Changes by another tab, unless the user is typing here.
    window.addEventListener('prefs', () => {
      const isSame = JSON.stringify(prefs.completion) === JSON.stringify(this.options.values);
      if (!isSame && !this.options.element.contains(document.activeElement)) this.options.set(prefs.completion, true);
    });
  }

  // Save everything that is typed and shown.
  #keep() {
    const state = { prompt: this.prompt.value, kind: this.kind.value, rule: this.rule.value, probs: this.probs.checked,
      before: this.before.textContent, after: this.after.textContent, timings: this.timings.textContent, parts: this.view.parts };
    let text = JSON.stringify(state);
    if (text.length > MAX_KEPT) text = JSON.stringify({ ...state, parts: [{ text: this.view.text }] });
    drafts.set(KEPT, text);
  }

  #restore() {
    const text = drafts.get(KEPT);
    if (!text) return;
    const { prompt, kind, rule, probs, before, after, timings, parts } = JSON.parse(text);
    Object.assign(this.prompt, { value: prompt });
    Object.assign(this.kind, { value: kind });
    Object.assign(this.rule, { value: rule });
    this.#showRule();
    this.probs.checked = probs;
    this.before.textContent = before;
    this.after.textContent = after;
    this.timings.textContent = timings;
    this.view.parts = parts;
    this.take.disabled = !parts.length;
  }

  get #text() {
    return this.before.textContent + this.view.text + this.after.textContent;
  }

  // `props` is the object of /props.
  ready(props) {
    this.model = props.model ? { model: props.model } : {};
    this.options.setDefaults({ ...props.default_generation_settings, n_predict: N_PREDICT });
    this.#canFill = props.endpoint_infill !== false;
    this.gap.hidden = !this.#canFill;
  }

  stop() {
    this.#running?.abort();
  }

  get #base() {
    return this.before.textContent;
  }

  #constraint() {
    this.kind = h('select', { id: 'constraint', onchange: () => {
      this.#showRule();
      this.#keep();
    } },
    h('option', { value: '' }, t('constraint-none')), h('option', { value: 'grammar' }, t('grammar')),
    h('option', { value: 'json_schema' }, t('json-schema')));
    this.rule = h('textarea', { id: 'rule', rows: 6, hidden: true, oninput: () => this.#keep(), spellcheck: 'false', 'aria-label': t('constraint'), class: 'mono' });
    this.check = h('button', { type: 'button', id: 'check', hidden: true, onclick: () => this.#check() }, t('check'));
    this.verdict = h('p', { id: 'verdict', role: 'status' });
    return h('div', { class: 'constraint' }, field(t('constraint'), this.kind), this.rule, this.check, this.verdict);
  }

  #showRule() {
    this.rule.hidden = this.check.hidden = !this.kind.value;
    this.verdict.textContent = '';
  }

  // The request's field; throws with a message for the user.
  #rule() {
    if (!this.kind.value || !this.rule.value.trim()) return {};
    if (this.kind.value === 'grammar') return { grammar: this.rule.value };
    try {
      return { json_schema: JSON.parse(this.rule.value) };
    } catch (error) {
      throw new Error(t('not-json', { why: error.message }));
    }
  }

  // Check by the page's own converter, which needs no server; then by the server.
  async #check() {
    let verdict = t('check-good');
    try {
      const rule = this.#rule();
      if (rule.json_schema) schemaToGrammar(rule.json_schema);
      await post('completion', { prompt: ' ', n_predict: 0, ...rule });
    } catch (error) {
      verdict = errorText(error);
    }
    this.verdict.textContent = verdict;
    this.verdict.classList.toggle('error', verdict !== t('check-good'));
  }

  #insertGap() {
    const { selectionStart: start, selectionEnd: end } = this.prompt;
    this.prompt.setRangeText(GAP, start, end, 'end');
    this.prompt.focus();
    this.#keep();
  }

  #take() {
    this.prompt.value = this.#text;
    this.prompt.focus();
    this.#keep();
  }

  #request(text) {
    const body = { ...this.model, n_predict: N_PREDICT, ...this.options.values, ...this.#rule(), return_progress: true };
    if (this.probs.checked) body.n_probs = N_PROBS;
    const gap = this.#canFill ? text.indexOf(GAP) : -1;
    if (gap < 0) return ['completion', { ...body, prompt: text }, text, ''];
    const [before, after] = [text.slice(0, gap), text.slice(gap + GAP.length)];
    return ['infill', { ...body, input_prefix: before, input_suffix: after }, before, after];
  }

  async #complete(text) {
    if (this.#running || !this.options.isGood()) return;
    this.#running = new AbortController();
    this.send.disabled = this.take.disabled = true;
    this.stopButton.disabled = false;
    this.problem.hidden = true;
    this.view.clear();
    this.timings.textContent = '';
    try {
      const [path, body, before, after] = this.#request(text);
      this.before.textContent = before;
      this.after.textContent = after;
      for await (const chunk of stream(path, body, this.#running.signal)) this.#show(chunk);
      if (!this.timings.textContent) this.timings.textContent = t('done');
    } catch (error) {
      if (error.name !== 'AbortError') await this.#fail(error);
    }
    this.#running = null;
    this.send.disabled = this.take.disabled = false;
    this.stopButton.disabled = true;
    this.#keep();
  }

  #show(chunk) {
    if (chunk.load_progress) {
      this.timings.textContent = t('loading', { percent: Math.round(100 * chunk.load_progress.progress) });
      return;
    }
    if (chunk.prompt_progress) {
      const { processed, total } = chunk.prompt_progress;
      this.timings.textContent = t('reading', { percent: Math.round(100 * processed / total), n: total });
      return;
    }
    this.view.add(chunk);
    if (!chunk.timings) return;
    const { predicted_n: n, predicted_per_second: rate, prompt_n: read, cache_n: reused, prompt_ms: ms } = chunk.timings;
    this.timings.textContent = t('timings', { n, rate: number(rate, 1), read, reused, ms: number(ms) });
  }

  async #fail(error) {
    this.problem.textContent = isReady(await health()) ? errorText(error) : t('offline');
    this.problem.hidden = false;
  }
}

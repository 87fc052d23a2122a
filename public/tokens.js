// Generated text as tokens, coloured by probability. A click shows a token's alternatives; choosing one continues the
// text from there. All tokens are one tab stop; arrow keys move between them.

import { h, popUp } from './dom.js';
import { number, t } from './i18n.js';

const LEVELS = [0.9, 0.7, 0.5, 0.3, 0.15];      // class p0 above the first, ... p5 below the last

const percent = (prob) => `${number(prob * 100, prob < 0.1 ? 1 : 0)} %`;
const visible = (text) => text.replace(/ /g, '\u00b7').replace(/\n/g, '\u23ce').replace(/\t/g, '\u21e5');

export class TokenView {
  #parts = [];                  // { text, prob?, top? } in order

  // onbranch(text, parts): continue `text`, which ends with the chosen alternative; `parts`: its parts. The caller
  // places `menu` and `legend` outside of the text.
  constructor(element, onbranch) {
    this.element = element;
    this.onbranch = onbranch;
    this.menu = h('div', { popover: 'auto', class: 'alternatives' });
    this.legend = h('p', { class: 'legend', hidden: true }, t('legend'), ' ', [...LEVELS, 0].map((least, i) =>
      h('span', { class: `swatch p${i}` }, i < LEVELS.length ? `≥ ${percent(least)}` : `< ${percent(LEVELS.at(-1))}`)));
    element.addEventListener('click', (event) => this.#open(event.target));
    element.addEventListener('keydown', (event) => this.#key(event));
  }

  get text() {
    return this.#parts.map((part) => part.text).join('');
  }

  clear() {
    this.parts = [];
  }

  // The parts, to be stored and shown again.
  get parts() {
    return this.#parts;
  }

  set parts(parts) {
    this.#parts = [];
    this.element.replaceChildren();
    this.legend.hidden = true;
    for (const part of parts) this.#append(part);
  }

  // Add a chunk of the stream. If its tokens aren't its text (a character may have several), it becomes one part with
  // the probability of its least likely token.
  add({ content, completion_probabilities: probs = [] }) {
    const tokens = probs.map((one) => ({
      text: one.token, prob: one.prob ?? Math.exp(one.logprob),
      top: (one.top_probs ?? one.top_logprobs).map((other) => ({ text: other.token, prob: other.prob ?? Math.exp(other.logprob) })),
    }));
    if (tokens.map((token) => token.text).join('') === content) tokens.forEach((token) => this.#append(token));
    else if (content) this.#append({ text: content, prob: tokens.length ? Math.min(...tokens.map((token) => token.prob)) : undefined });
  }

  #append(part) {
    this.#parts.push(part);
    if (part.prob === undefined) {
      this.element.append(part.text);
      return;
    }
    const level = LEVELS.findIndex((least) => part.prob >= least);
    const isFirst = !this.element.querySelector('.token');
    this.legend.hidden = false;
    // A line break or empty text has no width to click on.
    const odd = part.text.includes('\n') ? 'line' : part.text ? '' : 'blank';
    this.element.append(h('span', {
      class: `token p${level < 0 ? LEVELS.length : level} ${odd}`, title: percent(part.prob), role: 'button',
      tabindex: isFirst ? 0 : -1, 'data-i': this.#parts.length - 1,
    }, part.text));
  }

  #open(target) {
    const span = target.closest?.('.token');
    const part = this.#parts[span?.dataset.i];
    if (!part?.top) return;
    const before = this.#parts.slice(0, span.dataset.i).map((one) => one.text).join('');
    this.menu.replaceChildren(h('p', {}, t('alternatives')), ...part.top.map((other) => h('button', {
      type: 'button', disabled: other.text.includes('\uFFFD'), class: other.text === part.text ? 'chosen' : '',
      onclick: () => {
        this.menu.hidePopover();
        this.onbranch(before + other.text, [...this.#parts.slice(0, span.dataset.i), { ...part, ...other }]);
      },
    }, h('span', {}, visible(other.text)), h('meter', { value: other.prob, 'aria-hidden': 'true' }), h('span', { class: 'dim' }, percent(other.prob)))));
    popUp(this.menu, span);
  }

  #key(event) {
    const span = event.target.closest?.('.token');
    if (!span) return;
    if (event.key === 'Enter' || event.key === ' ') {
      event.preventDefault();
      this.#open(span);
    }
    const step = { ArrowRight: 'nextElementSibling', ArrowLeft: 'previousElementSibling' }[event.key];
    const next = step && span[step];
    if (!next?.classList.contains('token')) return;
    event.preventDefault();
    span.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
}

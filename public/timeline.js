// A picture of the last minute, to see why the server is slow: what each slot read and wrote, how many requests waited,
// and their owners. Draws GET /slots/timeline.

import { h } from './dom.js';
import { number, t } from './i18n.js';

const SVG = 'http://www.w3.org/2000/svg';
const [WIDTH, ROW] = [600, 16];

function svg(tag, props, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(props)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const inSeconds = (value) => `${number(value, 1)} s`;

export class Timeline {
  constructor() {
    this.rows = h('div', { class: 'lanes' });
    this.owners = h('table', {});
    this.calm = h('p', { class: 'dim' }, t('timeline-calm'));
    this.element = h('section', { class: 'timeline' }, h('h2', {}, t('timeline')),
      h('p', { class: 'legend' }, ['reading', 'writing', 'waiting'].map((name) => h('span', { class: `series ${name}` }, t(`timeline-${name}`)))),
      this.rows, this.calm, h('div', { class: 'table' }, this.owners));
  }

  show({ seconds, slots, spans, waiting, owners }) {
    const x = (ago) => WIDTH * (1 - ago / seconds);
    const lanes = Array.from({ length: slots }, (_, id) => this.#lane(t('slot', { id }), spans.filter((span) => span.id_slot === id)
      .map((span) => this.#bar(span.state, x(span.from), x(span.to), ROW, t('timeline-span', {
        what: t(`timeline-${span.state}`), n: span.id_task, owner: span.owner, time: inSeconds(span.from - span.to) }))), this.#sum(spans, id)));
    const longest = Math.max(0, ...waiting.map(({ n }) => n));
    const waits = waiting.filter(({ n }) => n > 0).map(({ from, n }) => {
      const after = waiting[waiting.findIndex((one) => one.from === from && one.n === n) + 1];
      return this.#bar('waiting', x(from), x(after?.from ?? 0), ROW * n / longest, `${n} ${t('timeline-waiting')}`);
    });
    this.rows.replaceChildren(...lanes, this.#lane(t('timeline-queue'), waits, longest ? t('timeline-most', { n: number(longest) }) : '\u2013'),
    h('div', { class: 'lane axis' }, h('span'), h('div', { class: 'row' }, t('minutes-ago', { n: 1 }), h('span', { class: 'space' }), t('now')), h('span')));
    this.calm.hidden = spans.length > 0;
    this.#showOwners(owners, seconds);
  }

  // A slot's time of reading and writing, as text.
  #sum(spans, id) {
    const of = (state) => inSeconds(spans.filter((span) => span.id_slot === id && span.state === state).reduce((sum, span) => sum + span.from - span.to, 0));
    return t('timeline-sum', { read: of('reading'), written: of('writing') });
  }

  #lane(name, bars, words) {
    return h('div', { class: 'lane' }, h('span', { class: 'dim' }, name),
      svg('svg', { viewBox: `0 0 ${WIDTH} ${ROW}`, preserveAspectRatio: 'none', role: 'img', 'aria-label': `${name}: ${words}` }, ...bars),
      h('span', { class: 'dim' }, words));
  }

  #bar(kind, from, to, height, words) {
    return svg('rect', { class: kind, x: Math.round(from), width: Math.max(1, Math.round(to - from)), y: ROW - height, height }, svg('title', {}, words));
  }

  #showOwners(owners, seconds) {
    this.owners.hidden = owners.length === 0;
    const total = owners.reduce((sum, one) => sum + one.seconds, 0) || 1;
    this.owners.replaceChildren(
      h('thead', {}, h('tr', {}, ['owner-owner', 'owner-share', 'working', 'waiting'].map((key) => h('th', { scope: 'col' }, t(key, { n: seconds }))))),
      h('tbody', {}, owners.map((one) => h('tr', {}, h('th', { scope: 'row' }, one.owner, one.is_you && ` (${t('owner-you')})`),
        h('td', {}, h('meter', { min: 0, max: 1, value: one.seconds / total, 'aria-hidden': 'true' }), ` ${number(100 * one.seconds / total)} %`),
        h('td', {}, number(one.working)), h('td', {}, number(one.waiting))))));
  }
}

// The sentences of the prompt that an answer depends on: coloured by how much less likely it, or a part of it, is
// without them.

import { errorText, post } from './api.js';
import { ask, h } from './dom.js';
import { language, t } from './i18n.js';
import { roleName } from './message.js';

const LEAST = [2, 10, 100].map(Math.log);               // times less likely: classes w1, w2, w3

const times = (nats) => Math.exp(nats).toLocaleString(language, { notation: 'compact', maximumSignificantDigits: 2 });
const textOf = ({ content }) => (Array.isArray(content) ? content : [{ text: content }]).map((part) => part.text ?? '').join('\n');

export async function showWhy({ messages, tools, model }, answer) {
  const page = h('div', { class: 'why' }, t('thinking'));
  const leaving = new AbortController();
  const closed = ask(t('why'), page, [['', t('close')]]).then(() => leaving.abort());
  try {
    draw(page, messages, answer, (await post('v1/attribute', { messages, tools, model, answer }, leaving.signal)).attribution);
  } catch (error) {
    page.replaceChildren(h('p', { class: 'error' }, errorText(error)));
  }
  await closed;
}

function draw(page, messages, answer, { spans, pairs: [pair], parts }) {
  const marks = spans.map((span) => h('mark', {}, span.text));
  const show = (nats, both, button) => {
    marks.forEach((mark, i) => color(mark, nats[i], both?.spans.includes(i) && both.nats));
    for (const one of choice.children) one.setAttribute('aria-pressed', one === button);
  };
  const button = (text, nats, both) =>
    h('button', { type: 'button', dir: 'auto', onclick: (event) => show(nats, both, event.currentTarget) }, text);
  const whole = spans.map((span) => span.nats);
  const choice = h('p', {}, parts.length > 1 ? [button(t('why-whole'), whole, pair), ...parts.map((part) => button(part.text, part.nats))] : answer);
  show(whole, pair, choice.firstElementChild);
  const head = (text) => h('p', { class: 'dim' }, text);
  const swatch = (kind, text) => h('mark', { class: kind }, text);
  page.replaceChildren(
    h('p', {}, t('why-help')),
    h('p', { class: 'legend' }, ['2–10', '10–100', '>100'].map((n, i) => swatch(`w${i + 1}`, t('why-times', { n }))), swatch('against', t('why-against')),
      pair && swatch('both', t('why-both'))),
    head(t('model')), choice,
    ...messages.flatMap((message, i) => [head(roleName(message)),
      h('p', { dir: 'auto' }, marked(textOf(message), marks.filter((mark, j) => spans[j].message === i)))]),
  );
}

// A text with its sentences as `marks`, which are in order.
function marked(text, marks) {
  let at = 0;
  return [...marks.flatMap((mark) => {
    const before = text.slice(at, text.indexOf(mark.textContent, at));
    at += before.length + mark.textContent.length;
    return [before, mark];
  }), text.slice(at)];
}

// `both`: nats of the pair that it belongs to.
function color(mark, own, both) {
  const nats = both || own;
  const level = LEAST.filter((least) => nats >= least).length;
  mark.className = `${level ? `w${level}` : nats <= -LEAST[0] ? 'against' : ''} ${both ? 'both' : ''}`;
  mark.dataset.times = level ? ` ×${times(nats)}` : '';
}

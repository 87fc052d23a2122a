// On which sentences of its prompt an answer rests: each is coloured by how much less likely the answer, or a sentence of
// it, becomes without it.

import { errorText, post } from './api.js';
import { ask, h } from './dom.js';
import { language, t } from './i18n.js';
import { roleName } from './message.js';

const LEAST = [2, 10, 100].map(Math.log);               // times less likely: classes w1, w2, w3

const times = (nats) => Math.exp(nats).toLocaleString(language, { notation: 'compact', maximumSignificantDigits: 2 });
const textOf = ({ content }) => (Array.isArray(content) ? content : [{ text: content }]).map((part) => part.text ?? '').join('\n');

// Show what `answer` to the request rests on, once the server has found out.
export async function showWhy({ messages, tools, model }, answer) {
  const page = h('div', { class: 'why' }, t('thinking'));
  const leaving = new AbortController();
  const closed = ask(t('why'), page, [['', t('close')]]).then(() => leaving.abort());
  const find = async (method) => (await post('v1/attribute', { messages, tools, model, answer, method }, leaving.signal)).attribution;
  try {
    const found = await find('fast').catch((error) => {
      if (error.status === 501) return find('exact');   // nothing can be taken out of this model's memory
      throw error;
    });
    page.replaceChildren(...draw(messages, answer, found));
  } catch (error) {
    page.replaceChildren(h('p', { class: 'error' }, errorText(error)));
  }
  await closed;
}

function draw(messages, answer, { spans, pairs: [pair], parts, ...found }) {
  const marks = spans.map((span) => h('mark', {}, span.text));
  const show = (nats, both = null, button = null) => {
    marks.forEach((mark, i) => {
      const isBoth = both?.spans.includes(i);
      color(mark, isBoth ? both.nats : nats[i], isBoth);
    });
    for (const one of choice.children) one.setAttribute('aria-pressed', one === button);
  };
  const button = (text, nats, both) =>
    h('button', { type: 'button', dir: 'auto', onclick: (event) => show(nats, both, event.currentTarget) }, text);
  const whole = spans.map((span) => span.nats);
  const choice = h('p', {}, parts.length > 1
    ? [button(t('why-whole'), whole, pair), ...parts.map((part) => button(part.text, part.nats))] : answer);
  show(whole, pair, choice.firstElementChild);
  const swatch = (kind, text) => h('mark', { class: kind }, text);
  return [
    h('p', {}, t('why-help')),
    h('p', { class: 'legend' }, ['2–10', '10–100', '>100'].map((n, i) => swatch(`w${i + 1}`, t('why-times', { n }))), swatch('against', t('why-against')),
      pair && swatch('both', t('why-both'))),
    found.answer_logprob - found.without_spans_logprob < LEAST[0] && h('p', { class: 'error' }, t('why-knows')),
    h('h3', {}, t('model')), choice,
    ...messages.flatMap((message, i) => [h('h3', {}, roleName(message)),
      h('p', { dir: 'auto' }, marked(textOf(message), marks.filter((mark, j) => spans[j].message === i)))]),
  ].filter(Boolean);
}

// A text with its sentences as `marks`, which stand in it in this order.
function marked(text, marks) {
  let at = 0;
  const nodes = marks.flatMap((mark) => {
    const start = text.indexOf(mark.textContent, at);
    const before = text.slice(at, start);
    at = start + mark.textContent.length;
    return [before, mark];
  });
  return [...nodes, text.slice(at)];
}

function color(mark, nats, isBoth) {
  const level = LEAST.filter((least) => nats >= least).length;
  mark.className = `${level ? `w${level}` : nats <= -LEAST[0] ? 'against' : ''} ${isBoth ? 'both' : ''}`;
  mark.dataset.times = level ? ` ×${times(nats)}` : '';
}

// Prompts that differ from a cached one: where, and the tokens and time that reading them again took. Draws
// GET /debug/cache.

import { h } from './dom.js';
import { number, seconds, t } from './i18n.js';

const MOST = 5;                 // requests shown

// `isHint`: most requests differ there.
function line(lost, isHint) {
  return h('p', { class: isHint ? 'note error' : 'small' },
    h('b', {}, lost.field ?? '?'), ' ', t('cache-cost', { n: number(lost.rows_lost), time: seconds(lost.cost_ms / 1000) }), ' ',
    h('code', {}, `…${lost.before}`, h('del', {}, lost.cached.join('')), h('ins', {}, lost.prompt.join(''))), ' ',
    isHint && t('cache-hint', { n: lost.requests, of: lost.of }));
}

export function linesOf({ hints, requests }) {
  const lost = requests.map(({ cache }) => cache.first_difference).filter((one) => one?.rows_lost).slice(0, MOST);
  return lost.length ? [h('h2', {}, t('cache-lost')), ...hints.map((one) => line(one, true)), ...lost.map((one) => line(one))] : [];
}

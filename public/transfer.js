// Conversations as files: JSON (everything, can be imported again; also that of llama-server's page) and Markdown (the
// shown branch, to read).
// Imports aren't trusted: every field is checked and copied by name, ids are new.

import { fullText, isFile } from './attach.js';
import { callsText, pretty } from './calls.js';
import { date, t } from './i18n.js';
import { roleName } from './message.js';
import { OPTIONS } from './options.js';
import { fromTheirs, isTheirs } from './peers.js';
import { newId } from './store.js';

const FORMAT = 'llama_srv chats';
const ROLES = ['user', 'assistant', 'system', 'tool'];
const MAX_CALLS = 1000;
const MAX_MESSAGES = 200000;

export const toJson = (chats, messages) => JSON.stringify({
  format: FORMAT, version: 1,
  chats: chats.map((chat) => ({ ...chat, messages: messages.filter((message) => message.chat === chat.id).map(({ parts, ...row }) => row) })),
}, null, 1);

export function toMarkdown(chat, path) {
  const parts = [`# ${chat.title}`, date(chat.created)];
  if (chat.system) parts.push(`## ${t('system')}`, chat.system);
  for (const message of path) {
    parts.push(`## ${roleName(message)}`);
    if (message.reasoning) parts.push(message.reasoning.trim().split('\n').map((line) => `> ${line}`).join('\n'));
    const text = message.role === 'tool' ? `\`\`\`\n${pretty(message.content)}\n\`\`\`` : fullText(message);
    parts.push(...[text, callsText(message.calls)].filter(Boolean));
  }
  return `${parts.join('\n\n')}\n`;
}

export const fileName = (title, ending) =>
  `${title.replace(/[^\p{L}\p{N} _-]+/gu, ' ').trim().slice(0, 60) || 'chat'}.${ending}`;

const text = (value, most) => (typeof value === 'string' ? value.slice(0, most) : '');
const time = (value) => (Number.isFinite(value) && value > 0 ? value : Date.now());

// The rows of an exported file: { chats, messages }. Throws with a message for the user.
export function fromJson(source) {
  let file;
  try {
    file = JSON.parse(source);
    if (isTheirs(file)) file = { format: FORMAT, ...fromTheirs(file) };
  } catch {
    throw new Error(t('import-not-json'));
  }
  if (file?.format !== FORMAT || !Array.isArray(file.chats)) throw new Error(t('import-not-ours'));
  const chats = [];
  const messages = [];
  for (const given of file.chats) {
    if (given === null || typeof given !== 'object') continue;
    const { chat, rows } = readChat(given);
    chats.push(chat);
    messages.push(...rows);
    if (messages.length > MAX_MESSAGES) throw new Error(t('import-too-large'));
  }
  return { chats, messages };
}

// A message's calls, or the call that it answers.
function readCalls({ role, calls, call, name, thought }) {
  if (role === 'tool') return { call: text(call, 200), name: text(name, 200) };
  const good = (Array.isArray(calls) ? calls.slice(0, MAX_CALLS) : []).filter((one) => one && typeof one === 'object')
    .map((one) => ({ id: text(one.id, 200), name: text(one.name, 200), arguments: text(one.arguments, 1e7) }));
  return { ...(good.length ? { calls: good } : {}), ...(Number.isFinite(thought) && thought > 0 ? { thought } : {}) };
}

const areTexts = (value) => Array.isArray(value) && value.every((one) => typeof one === 'string');
const FITS = { number: Number.isFinite, flag: (value) => typeof value === 'boolean', lines: areTexts, names: areTexts, json: () => true };

// The fields of requests that the form has.
function readSampling(given) {
  if (given === null || typeof given !== 'object' || Array.isArray(given)) return {};
  return Object.fromEntries(OPTIONS.filter(({ name, kind }) => name in given && FITS[kind](given[name])).map(({ name }) => [name, given[name]]));
}

function readChat(given) {
  const ids = new Map();
  const list = (Array.isArray(given.messages) ? given.messages : [])
    .filter((one) => one && typeof one === 'object' && ROLES.includes(one.role) && typeof one.content === 'string');
  for (const one of list) ids.set(one.id, newId());
  const chat = {
    id: newId(), title: text(given.title, 200) || t('new-chat'), created: time(given.created), changed: time(given.changed),
    system: text(given.system, 1e6), tools: text(given.tools, 1e6), model: text(given.model, 300),
    sampling: readSampling(given.sampling), leaf: ids.get(given.leaf) ?? null,
  };
  const rows = list.map((one) => ({
    id: ids.get(one.id), chat: chat.id, parent: ids.get(one.parent) ?? null, role: one.role, content: one.content,
    time: time(one.time), reasoning: text(one.reasoning, 1e7), files: (Array.isArray(one.files) ? one.files : [])
      .filter(isFile).map(({ name, kind, data }) => ({ name, kind, data })),
    finish: text(one.finish, 20), ...readCalls(one),
  }));
  chat.leaf ??= rows.at(-1)?.id ?? null;
  return { chat, rows };
}

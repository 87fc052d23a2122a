// Conversations as files: JSON (everything, can be imported again) and Markdown (the shown branch, to read).
// Imports are strangers' data: every field is checked and copied by name, ids are made anew.

import { fullText, isFile } from './attach.js';
import { date, t } from './i18n.js';
import { newId } from './store.js';

const FORMAT = 'llama_srv chats';
const ROLES = ['user', 'assistant', 'system'];
const MAX_MESSAGES = 200000;

export const toJson = (chats, messages) => JSON.stringify({
  format: FORMAT, version: 1,
  chats: chats.map((chat) => ({ ...chat, messages: messages.filter((message) => message.chat === chat.id) })),
}, null, 1);

export function toMarkdown(chat, path) {
  const parts = [`# ${chat.title}`, date(chat.created)];
  if (chat.system) parts.push(`## ${t('system')}`, chat.system);
  for (const message of path) {
    parts.push(`## ${t(message.role === 'user' ? 'you' : message.role === 'assistant' ? 'model' : 'system')}`, fullText(message));
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

function readChat(given) {
  const ids = new Map();
  const list = (Array.isArray(given.messages) ? given.messages : [])
    .filter((one) => one && typeof one === 'object' && ROLES.includes(one.role) && typeof one.content === 'string');
  for (const one of list) ids.set(one.id, newId());
  const chat = {
    id: newId(), title: text(given.title, 200) || t('new-chat'), created: time(given.created), changed: time(given.changed),
    system: text(given.system, 1e6), leaf: ids.get(given.leaf) ?? null,
  };
  const rows = list.map((one) => ({
    id: ids.get(one.id), chat: chat.id, parent: ids.get(one.parent) ?? null, role: one.role, content: one.content,
    time: time(one.time), reasoning: text(one.reasoning, 1e7), files: (Array.isArray(one.files) ? one.files : [])
      .filter(isFile).map(({ name, kind, data }) => ({ name, kind, data })),
    finish: text(one.finish, 20),
  }));
  chat.leaf ??= rows.at(-1)?.id ?? null;
  return { chat, rows };
}

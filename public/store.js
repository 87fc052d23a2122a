// Conversations in IndexedDB. Each message is a row, so that saving one while it streams is cheap in long
// conversations, too. All tabs of the page share the database: a write changes only the fields that it names, doesn't
// restore a conversation that another tab has deleted, and is reported to the other tabs.
//
// chat:    { id, title, created, changed, system, tools, leaf, model?, writing? }
//          leaf: id of the last message shown; tools: JSON; writing: id of the answer that is being written
// message: { id, chat, parent, role, content, time, reasoning?, thought?, calls?, call?, name?, files?, finish?, speed?, parts?,
//            asked? }
//          parts: the content as tokens with their probabilities, see tokens.js
//          thought: ms of thinking; calls: [{ id, name, arguments }]; call, name: the call that a tool's message is for
//          asked: while it is written, the id of its stream and the message before it, see generate.js
//          parent: id or null; messages with the same parent are versions of one another
// draft:   { id, files }         unsent attachments; id: of the conversation, or 'new'

import { t } from './i18n.js';

const OPEN_MS = 10000;
const SLICE = 200;              // rows written between pauses

let opened = null;              // promise of the database

function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open('llama_srv', 2);
    request.onupgradeneeded = ({ oldVersion }) => {
      const { result: db } = request;
      if (oldVersion < 1) {
        db.createObjectStore('chats', { keyPath: 'id' });
        db.createObjectStore('messages', { keyPath: 'id' }).createIndex('chat', 'chat');
      }
      db.createObjectStore('drafts', { keyPath: 'id' });
    };
    request.onsuccess = () => {
      // A newer page in another tab may change the database.
      request.result.onversionchange = () => {
        request.result.close();
        opened = null;
      };
      resolve(request.result);
    };
    request.onerror = () => reject(request.error);
    // Chromium never answers if an earlier page was left while making the database.
    setTimeout(() => reject(new Error(t('storage-silent'))), OPEN_MS);
  });
  opened.catch(() => { opened = null; });
  return opened;
}

const result = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

async function stores(mode, work) {
  const transaction = (await database()).transaction(['chats', 'messages', 'drafts'], mode);
  const done = new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
  const value = await work(...['chats', 'messages', 'drafts'].map((name) => transaction.objectStore(name)));
  await done;
  return value;
}

// -- tabs

const channel = new BroadcastChannel('llama_srv');

// Messages between tabs: { changed: id }, { deleted: id }, { deleted: 'all' }, and those of `runs.js`.
export const tell = (note) => channel.postMessage(note);

// Listen to other tabs; returns a function that ends it.
export function listen(listener) {
  const hear = ({ data }) => listener(data);
  channel.addEventListener('message', hear);
  return () => channel.removeEventListener('message', hear);
}

// -- rows

export const newId = () => [...crypto.getRandomValues(new Uint8Array(12))].map((b) => b.toString(16).padStart(2, '0')).join('');

export const allChats = () => stores('readonly', (chats) => result(chats.getAll()));
export const allMessages = () => stores('readonly', (_, messages) => result(messages.getAll()));
export const getChat = (id) => stores('readonly', (chats) => result(chats.get(id)));
export const messagesOf = (id) => stores('readonly', (_, messages) => result(messages.index('chat').getAll(id)));

// Change fields of the conversation `id` and write `rows` of its messages. `fresh`: the whole conversation, if it may
// not be stored yet. False if it was deleted.
export async function update(id, fields, rows = [], fresh = null) {
  const isThere = await stores('readwrite', async (chats, messages) => {
    const stored = (await result(chats.get(id))) ?? fresh;
    if (!stored) return false;
    chats.put({ ...stored, ...fields });
    for (const row of rows) messages.put(row);
    return true;
  });
  if (isThere) tell({ changed: id });
  return isThere;
}

export async function putAll(chatRows, messageRows) {
  await stores('readwrite', async (chats, messages) => {
    for (const row of chatRows) chats.put(row);
    // A pause for the page after some of them.
    for (const [i, row] of messageRows.entries()) {
      const put = messages.put(row);
      if (i % SLICE === SLICE - 1) await result(put);
    }
  });
  for (const { id } of chatRows) tell({ changed: id });
}

// Delete messages of the conversation `id`, and change fields of it.
export async function deleteMessages(id, ids, fields) {
  await stores('readwrite', async (chats, messages) => {
    const stored = await result(chats.get(id));
    if (stored) chats.put({ ...stored, ...fields });
    for (const one of ids) messages.delete(one);
  });
  tell({ changed: id });
}

export async function deleteChat(id) {
  await stores('readwrite', async (chats, messages, drafts) => {
    chats.delete(id);
    drafts.delete(id);
    for (const key of await result(messages.index('chat').getAllKeys(id))) messages.delete(key);
  });
  tell({ deleted: id });
}

export async function deleteEverything() {
  await stores('readwrite', (...all) => {
    for (const one of all) one.clear();
  });
  tell({ deleted: 'all' });
}

export const draftFiles = async (id) => (await stores('readonly', (chats, messages, drafts) => result(drafts.get(id))))?.files ?? [];
export const putDraftFiles = (id, files) => stores('readwrite', (chats, messages, drafts) => {
  if (files.length) drafts.put({ id, files });
  else drafts.delete(id);
});

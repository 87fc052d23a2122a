// Conversations in IndexedDB. Messages are rows of their own, so that saving one while it streams stays cheap however
// long the conversation is.
//
// chat:    { id, title, created, changed, system, tools, leaf }   leaf: id of the last message shown; tools: their JSON
// message: { id, chat, parent, role, content, time, reasoning?, thought?, calls?, call?, name?, files?, finish?, speed? }
//          thought: ms of thinking; calls: [{ id, name, arguments }]; call, name: which one a tool's message answers
//          parent: id or null; messages with the same parent are versions of one another

const OPEN_MS = 10000;

let opened = null;              // promise of the database

function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open('llama_srv', 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore('chats', { keyPath: 'id' });
      request.result.createObjectStore('messages', { keyPath: 'id' }).createIndex('chat', 'chat');
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    // Chromium never answers when an earlier page was left while it made the database.
    setTimeout(() => reject(new Error('the storage of this browser does not answer: close its tabs of this page and open it again')), OPEN_MS);
  });
  opened.catch(() => { opened = null; });
  return opened;
}

const result = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

async function stores(mode, work) {
  const transaction = (await database()).transaction(['chats', 'messages'], mode);
  const done = new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
  const value = await work(transaction.objectStore('chats'), transaction.objectStore('messages'));
  await done;
  return value;
}

export const newId = () => [...crypto.getRandomValues(new Uint8Array(12))].map((b) => b.toString(16).padStart(2, '0')).join('');

export const allChats = () => stores('readonly', (chats) => result(chats.getAll()));
export const allMessages = () => stores('readonly', (_, messages) => result(messages.getAll()));
export const getChat = (id) => stores('readonly', (chats) => result(chats.get(id)));
export const messagesOf = (id) => stores('readonly', (_, messages) => result(messages.index('chat').getAll(id)));
export const putChat = (chat) => stores('readwrite', (chats) => result(chats.put(chat)));
export const putMessage = (message) => stores('readwrite', (_, messages) => result(messages.put(message)));

export const putAll = (chatRows, messageRows) => stores('readwrite', (chats, messages) => {
  for (const row of chatRows) chats.put(row);
  for (const row of messageRows) messages.put(row);
});

export const deleteMessages = (ids) => stores('readwrite', (_, messages) => {
  for (const id of ids) messages.delete(id);
});

export const deleteChat = (id) => stores('readwrite', async (chats, messages) => {
  chats.delete(id);
  for (const key of await result(messages.index('chat').getAllKeys(id))) messages.delete(key);
});

export const deleteEverything = () => stores('readwrite', (chats, messages) => {
  chats.clear();
  messages.clear();
});

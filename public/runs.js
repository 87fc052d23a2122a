// The answers that this tab is writing, at most one for each conversation. Their text is stored every second while it
// streams. A closing page can't wait for the database, so it leaves the latest text in localStorage. After a reload the
// answer is there at once, and continues with its stream.

import { errorText } from './api.js';
import { generate } from './generate.js';
import * as store from './store.js';

const SAVE_MS = 1000;
const ANSWER_MS = 300;          // wait for other tabs to report that they write an answer
const TAIL = 'llama_srv.tail.';

export class Runs {
  #running = new Map();         // chat id -> { controller, message, tree }

  // changed(id): an answer of this conversation has begun or ended.
  constructor(changed) {
    this.changed = changed;
    window.addEventListener('pagehide', () => this.#leave());
    store.listen(({ writes }) => {
      if (writes && this.#writes(writes)) store.tell({ isWriting: writes });
    });
  }

  get(id) {
    return this.#running.get(id);
  }

  stop(id) {
    this.#running.get(id)?.controller.abort();
  }

  #writes(messageId) {
    return [...this.#running.values()].some(({ message }) => message.id === messageId);
  }

  // Generate into `message` of `chat`, after its text. `request`: see `generate`. A failure is stored in the message.
  // Resolves when it is stored.
  async run({ chat, tree, message, request }) {
    const controller = new AbortController();
    this.#running.set(chat.id, { controller, message, tree });
    this.changed(chat.id);
    delete message.error;
    delete message.finish;
    const save = (fields) => store.update(chat.id, { leaf: chat.leaf, changed: Date.now(), ...fields }, [message]);
    const saver = setInterval(() => save({ writing: message.id }), SAVE_MS);
    const asked = (fields) => {
      message.asked = fields;
      return save({ writing: message.id });
    };
    try {
      message.finish = await generate({ ...request, on: { ...request.on, asked }, start: message, signal: controller.signal });
    } catch (error) {
      message.error = errorText(error);
    }
    clearInterval(saver);
    delete message.asked;
    this.#running.delete(chat.id);
    await save({ writing: null });                      // no effect if the user has deleted it
    this.changed(chat.id);
  }

  // Store the texts in localStorage, which is synchronous.
  #leave() {
    for (const { message } of this.#running.values()) {
      const { content, reasoning, thought } = message;
      try {
        localStorage.setItem(TAIL + message.id, JSON.stringify({ content, reasoning, thought }));
      } catch {
        // Storage is full or forbidden: the text of a second ago is kept.
      }
      store.tell({ left: message.id });
    }
  }
}

// Add the text that the closed page left to its message.
export function addTail(message) {
  const tail = localStorage.getItem(TAIL + message.id);
  if (!tail) return;
  localStorage.removeItem(TAIL + message.id);
  const { content, reasoning, thought } = JSON.parse(tail);
  if (content.length < message.content.length) return;
  Object.assign(message, { content }, reasoning ? { reasoning, thought } : {});
}

// Is another tab writing this answer?
export async function isWrittenElsewhere(messageId) {
  let leave;
  const answer = new Promise((resolve) => {
    leave = store.listen(({ isWriting }) => isWriting === messageId && resolve(true));
    setTimeout(() => resolve(false), ANSWER_MS);
  });
  store.tell({ writes: messageId });
  try {
    return await answer;
  } finally {
    leave();
  }
}

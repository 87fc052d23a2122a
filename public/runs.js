// The answers that are being written in this tab, one for each conversation at most, whichever is shown. Their text is
// stored every second while it streams, and what came since is left in localStorage when the page goes, since a database
// can't be waited for then. So an answer that a reload has cut off is there at once, and goes on with its stream.

import { errorText } from './api.js';
import { generate } from './generate.js';
import * as store from './store.js';

const SAVE_MS = 1000;
const ANSWER_MS = 300;          // how long other tabs have to say that they write an answer
const TAIL = 'llama_srv.tail.';

export class Runs {
  #running = new Map();         // chat id -> { controller, message, tree }

  // changed(id): an answer of this conversation begins or ends.
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

  // Generate into `message` of `chat`, from the end of what it says already. `request` is what `generate` takes. Why it
  // failed stays with the message. Resolves when it is stored.
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
    await save({ writing: null });                      // nothing where the user has deleted it meanwhile
    this.changed(chat.id);
  }

  // What is being written goes where it can be put at once.
  #leave() {
    for (const { message } of this.#running.values()) {
      const { content, reasoning, thought } = message;
      try {
        localStorage.setItem(TAIL + message.id, JSON.stringify({ content, reasoning, thought }));
      } catch {
        // Storage is full or forbidden: what was stored a second ago is kept.
      }
      store.tell({ left: message.id });
    }
  }
}

// Add to a message what the page that wrote it left behind.
export function addTail(message) {
  const tail = localStorage.getItem(TAIL + message.id);
  if (!tail) return;
  localStorage.removeItem(TAIL + message.id);
  const { content, reasoning, thought } = JSON.parse(tail);
  if (content.length < message.content.length) return;
  Object.assign(message, { content }, reasoning ? { reasoning, thought } : {});
}

// Does another tab write this answer?
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

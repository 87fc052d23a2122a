// Texts that are being typed and not sent yet, kept in this browser under a key each (a conversation's id, `new`,
// `completion`...), so that they are where they were written, also after a reload. What isn't about a stored
// conversation belongs to its tab; a new tab begins with the latest of the others.

const PREFIX = 'llama_srv.draft.';
const isOwn = (key) => key.startsWith('new') || key.startsWith('completion');

export const get = (key) => {
  try {
    return (isOwn(key) ? sessionStorage.getItem(PREFIX + key) : null) ?? localStorage.getItem(PREFIX + key) ?? '';
  } catch {
    return '';
  }
};

// Keep `text` under `key`; an empty one is forgotten.
export function set(key, text) {
  try {
    if (isOwn(key)) sessionStorage.setItem(PREFIX + key, text);
    if (text) localStorage.setItem(PREFIX + key, text);
    else localStorage.removeItem(PREFIX + key);
  } catch {
    // Storage may be full or forbidden; the text then lasts as long as the page.
  }
}

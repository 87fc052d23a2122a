// Texts that are being typed and not sent yet, kept in this browser under a key each (a conversation's id, or '' for a
// new one), so that they are where they were written, also after a reload.

const PREFIX = 'llama_srv.draft.';

export const get = (key) => {
  try {
    return localStorage.getItem(PREFIX + key) ?? '';
  } catch {
    return '';
  }
};

// Keep `text` under `key`; an empty one is forgotten.
export function set(key, text) {
  try {
    if (text) localStorage.setItem(PREFIX + key, text);
    else localStorage.removeItem(PREFIX + key);
  } catch {
    // Storage may be full or forbidden; the text then lasts as long as the page.
  }
}

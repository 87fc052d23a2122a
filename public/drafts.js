// Unsent texts, kept in this browser by key (a conversation's id, `new`, `completion`...), so that they are still there
// after a reload. Drafts without a stored conversation belong to their tab; a new tab begins with the latest of
// the others.

const PREFIX = 'llama_srv.draft.';
const isOwn = (key) => key.startsWith('new') || key.startsWith('completion');

export const get = (key) => {
  try {
    return (isOwn(key) ? sessionStorage.getItem(PREFIX + key) : null) ?? localStorage.getItem(PREFIX + key) ?? '';
  } catch {
    return '';
  }
};

// Keep `text` under `key`; '' deletes it.
export function set(key, text) {
  try {
    if (isOwn(key)) sessionStorage.setItem(PREFIX + key, text);
    if (text) localStorage.setItem(PREFIX + key, text);
    else localStorage.removeItem(PREFIX + key);
  } catch {
    // Storage may be full or forbidden; then the text lasts as long as the page.
  }
}

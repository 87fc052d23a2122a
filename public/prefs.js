// What the user has set, kept in this browser's localStorage: API key, theme, language, chat defaults, presets.
// `prefs` is a plain object; `savePrefs` writes changes and tells listeners by a "prefs" event on window.
// All tabs share them: what another tab saves holds here at once.

const KEY = 'llama_srv.prefs';

const DEFAULTS = {
  apiKey: '',
  theme: 'system',
  language: '',
  system: '',
  enterSends: true,
  showSpeed: true,
  keepsTokens: false,     // with their probabilities
  sidebar: true,
  sampling: {},           // fields sent with every chat request
  completion: {},         // fields of the completion view
  presets: {},            // name -> fields
  model: '',              // the one chosen last, where the server has several
  prompts: {},            // name -> text
  prompt: 'Once upon a time',
};

function read() {
  try {
    return JSON.parse(localStorage.getItem(KEY) ?? '{}');
  } catch {
    return {};
  }
}

export const prefs = { ...DEFAULTS, ...read() };

// Only what is named is changed: the rest may have been set in another tab meanwhile.
export function savePrefs(changes) {
  Object.assign(prefs, read(), changes);
  try {
    localStorage.setItem(KEY, JSON.stringify({ ...read(), ...changes }));
  } catch {
    // Storage may be full or forbidden; the settings then last as long as the page.
  }
  window.dispatchEvent(new Event('prefs'));
}

// Another tab has saved.
window.addEventListener('storage', (event) => {
  if (event.key !== KEY && event.key !== null) return;
  Object.assign(prefs, DEFAULTS, read());
  window.dispatchEvent(new Event('prefs'));
});

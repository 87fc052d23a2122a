// The user's settings, kept in this browser's localStorage: API key, theme, language, chat defaults, presets.
// `prefs` is a plain object; `savePrefs` writes changes and fires a "prefs" event on window.
// All tabs share them: changes in another tab apply here at once.

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
  model: '',              // the last choice, if the server has several
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

// Changes only the named settings: others may have been changed in another tab.
export function savePrefs(changes) {
  Object.assign(prefs, read(), changes);
  try {
    localStorage.setItem(KEY, JSON.stringify({ ...read(), ...changes }));
  } catch {
    // Storage may be full or forbidden; then the settings last as long as the page.
  }
  window.dispatchEvent(new Event('prefs'));
}

// Another tab has saved settings.
window.addEventListener('storage', (event) => {
  if (event.key !== KEY && event.key !== null) return;
  Object.assign(prefs, DEFAULTS, read());
  window.dispatchEvent(new Event('prefs'));
});

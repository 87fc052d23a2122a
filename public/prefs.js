// What the user has set, kept in this browser's localStorage: API key, theme, language, chat defaults, presets.
// `prefs` is a plain object; `savePrefs` writes changes and tells listeners by a "prefs" event on window.

const KEY = 'llama_srv.prefs';

const DEFAULTS = {
  apiKey: '',
  theme: 'system',
  language: '',
  system: '',
  enterSends: true,
  showSpeed: true,
  sidebar: true,
  sampling: {},           // fields sent with every chat request
  completion: {},         // fields of the completion view
  presets: {},            // name -> fields
  prompt: 'Once upon a time',
};

function read() {
  try {
    const stored = JSON.parse(localStorage.getItem(KEY) ?? '{}');
    return { ...DEFAULTS, ...stored };
  } catch {
    return { ...DEFAULTS };
  }
}

export const prefs = read();

export function savePrefs(changes) {
  Object.assign(prefs, changes);
  try {
    localStorage.setItem(KEY, JSON.stringify(prefs));
  } catch {
    // Storage may be full or forbidden; the settings then last as long as the page.
  }
  window.dispatchEvent(new Event('prefs'));
}

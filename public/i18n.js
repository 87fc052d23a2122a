// The language of the interface: `t('key', { n: 3 })` is the text with its {placeholders} filled.
// Chosen at page load (settings, else the browser's language); a change reloads the page.

import { prefs } from './prefs.js';
import { EN } from './text-en.js';

export const LANGUAGES = { en: 'English', de: 'Deutsch', es: 'Español', fr: 'Français', zh: '中文' };
const OTHERS = {
  de: async () => (await import('./text-de.js')).DE,
  es: async () => (await import('./text-es.js')).ES,
  fr: async () => (await import('./text-fr.js')).FR,
  zh: async () => (await import('./text-zh.js')).ZH,
};

function choose() {
  for (const wanted of [prefs.language, ...navigator.languages]) {
    const code = (wanted ?? '').slice(0, 2);
    if (code in LANGUAGES) return code;
  }
  return 'en';
}

export const language = choose();
document.documentElement.lang = language;
const TABLE = language === 'en' ? EN : await OTHERS[language]();

export function t(key, values = {}) {
  const text = TABLE[key] ?? EN[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? values[name] : whole));
}

export function number(value, digits = 0) {
  return value.toLocaleString(language, { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

// A duration: "12 s", "3 min 5 s".
export function seconds(value) {
  const unit = (n, name, digits) =>
    n.toLocaleString(language, { style: 'unit', unit: name, unitDisplay: 'short', maximumFractionDigits: digits });
  if (value < 60) return unit(value, 'second', value < 9.95 ? 1 : 0);
  return `${unit(Math.floor(value / 60), 'minute', 0)} ${unit(Math.floor(value % 60), 'second', 0)}`;
}

export const bytes = (n) => (n > 1e9 ? `${number(n / 1e9, 2)} GB` : `${number(n / 1e6, 1)} MB`);

export function date(milliseconds) {
  return new Date(milliseconds).toLocaleString(language, { dateStyle: 'medium', timeStyle: 'short' });
}

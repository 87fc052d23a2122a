// Presets: named sets of sampling fields, built in or the user's own.

import { t } from './i18n.js';
import { prefs } from './prefs.js';

const BUILT_IN = {
  'preset-greedy': { temperature: 0 },
  'preset-precise': { temperature: 0.2, top_p: 0.9 },
  'preset-creative': { temperature: 1.1, top_p: 0.98, min_p: 0.02 },
  'preset-fresh': { temperature: 1, dry_multiplier: 0.8, xtc_probability: 0.5 },
};

// All presets as [id, label, fields]; ids of the user's own begin with "o:".
export const allPresets = () => [
  ...Object.entries(BUILT_IN).map(([key, values]) => [`b:${key}`, t(key), values]),
  ...Object.entries(prefs.presets).map(([name, values]) => [`o:${name}`, name, values]),
];

// The id of the preset with exactly these fields; '' if there is none.
export function presetOf(values) {
  const text = (one) => JSON.stringify(Object.entries(one).sort());
  return allPresets().find(([, , fields]) => text(fields) === text(values))?.[0] ?? '';
}

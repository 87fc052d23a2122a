// Small line charts on canvas, and the reader for the text of /metrics.

import { h } from './dom.js';
import { t } from './i18n.js';

export const N_SAMPLES = 120;

// Prometheus text -> Map of name (with its labels) to number.
export function parseMetrics(text) {
  const values = new Map();
  for (const line of text.split('\n')) {
    const match = /^([A-Za-z_:][\w:]*(?:\{[^}]*\})?)\s+(\S+)/.exec(line);
    if (match) values.set(match[1].replace(/^llamacpp:/, ''), Number(match[2]));
  }
  return values;
}

// The least of 1, 2, 5, 10, 20... that isn't below `value`.
function roundUp(value) {
  const unit = 10 ** Math.floor(Math.log10(value));
  return unit * [1, 2, 5, 10].find((n) => n * unit >= value * 0.999);
}

export class Chart {
  #samples = [];

  // `series`: names of values that share a scale; `format(value)` writes a number; the scale ends at `least` or above.
  constructor(title, series, format, least = 1) {
    Object.assign(this, { title, series, format, least });
    this.canvas = h('canvas', { role: 'img', 'aria-label': title });
    this.legend = h('div', { class: 'legend' });
    this.top = h('span', { class: 'axis' });
    const bottom = h('div', { class: 'axis row' }, h('span', {}, format(0)), h('span', { class: 'space' }), h('span', {}, t('minutes-ago', { n: 2 })),
      h('span', {}, '\u2192'), h('span', {}, t('now')));
    this.element = h('figure', { class: 'chart' }, h('figcaption', {}, title), this.legend, this.top, this.canvas, bottom);
  }

  // Add a value for each series; null: not measured.
  add(values) {
    this.#samples.push(values);
    if (this.#samples.length > N_SAMPLES) this.#samples.shift();
    this.legend.replaceChildren(...this.series.map((name, i) =>
      h('span', { class: `series s${i}` }, `${name} ${values[i] === null ? '\u2013' : this.format(values[i])}`)));
    this.canvas.setAttribute('aria-label', `${this.title}: ${this.legend.textContent}`);
    this.draw();
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width) return;
    const scale = devicePixelRatio;
    this.canvas.width = width * scale;
    this.canvas.height = height * scale;
    const pen = this.canvas.getContext('2d');
    const style = getComputedStyle(this.canvas);
    pen.scale(scale, scale);
    const top = roundUp(Math.max(this.least, ...this.#samples.flat()));
    this.top.textContent = this.format(top);
    pen.strokeStyle = style.getPropertyValue('--line');
    pen.beginPath();
    for (const part of [0, 0.5, 1]) {
      const y = Math.round((height - 2) * part) + 0.5;
      pen.moveTo(0, y);
      pen.lineTo(width, y);
    }
    pen.stroke();
    this.series.forEach((_, i) => {
      pen.strokeStyle = pen.fillStyle = style.getPropertyValue(`--series-${i}`);
      pen.lineWidth = 1.8;
      this.#drawSeries(pen, this.#samples.map((values) => values[i]), (at) => width * (at + N_SAMPLES - this.#samples.length) / (N_SAMPLES - 1),
        (value) => height - 1.5 - (height - 3) * value / top);
    });
  }

  // Draw each run of values as a line, a single value as a dot.
  #drawSeries(pen, values, x, y) {
    pen.beginPath();
    values.forEach((value, at) => {
      if (value === null) return;
      const [before, after] = [values[at - 1] ?? null, values[at + 1] ?? null];
      if (before === null) pen.moveTo(x(at), y(value));
      else pen.lineTo(x(at), y(value));
      if (before === null && after === null) pen.fillRect(x(at) - 1.5, y(value) - 1.5, 3, 3);
    });
    pen.stroke();
  }
}

// Small line charts on canvas, and the reader for the text of /metrics.

import { h } from './dom.js';

const N_SAMPLES = 120;

// Prometheus text -> Map of name (with its labels) to number.
export function parseMetrics(text) {
  const values = new Map();
  for (const line of text.split('\n')) {
    const match = /^([A-Za-z_:][\w:]*(?:\{[^}]*\})?)\s+(\S+)/.exec(line);
    if (match) values.set(match[1].replace(/^llamacpp:/, ''), Number(match[2]));
  }
  return values;
}

export class Chart {
  #samples = [];

  // `series` are names; `format(value)` writes a number; `top` is the least upper end of the scale.
  constructor(title, series, format, top = 1) {
    Object.assign(this, { title, series, format, top });
    this.canvas = h('canvas', { role: 'img', 'aria-label': title });
    this.legend = h('div', { class: 'legend' });
    this.element = h('figure', { class: 'chart' }, h('figcaption', {}, title), this.legend, this.canvas);
  }

  // One value for each series.
  add(values) {
    this.#samples.push(values);
    if (this.#samples.length > N_SAMPLES) this.#samples.shift();
    this.legend.replaceChildren(...this.series.map((name, i) =>
      h('span', { class: `series s${i}` }, `${name} ${this.format(values[i])}`)));
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
    const top = Math.max(this.top, ...this.#samples.flat()) * 1.05;
    pen.strokeStyle = style.getPropertyValue('--line');
    pen.beginPath();
    for (const part of [0, 0.5, 1]) {
      const y = Math.round((height - 2) * part) + 1.5;
      pen.moveTo(0, Math.min(y, height - 0.5));
      pen.lineTo(width, Math.min(y, height - 0.5));
    }
    pen.stroke();
    this.series.forEach((_, i) => {
      pen.strokeStyle = style.getPropertyValue(`--series-${i}`);
      pen.lineWidth = 1.8;
      pen.beginPath();
      this.#samples.forEach((values, at) => {
        const x = width * (at + N_SAMPLES - this.#samples.length) / (N_SAMPLES - 1);
        pen.lineTo(x, height - 1 - (height - 3) * values[i] / top);
      });
      pen.stroke();
    });
  }
}

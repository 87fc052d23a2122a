// Draws a message's tool calls: name and arguments of each, and a field for the result if it has none. The chat view
// makes messages of the results.

import { grow, h, icon } from './dom.js';
import * as drafts from './drafts.js';
import { t } from './i18n.js';
import { codeBlock } from './markdown.js';

// JSON indented; other text unchanged.
export function pretty(text) {
  try {
    const value = JSON.parse(text);
    return value !== null && typeof value === 'object' ? JSON.stringify(value, null, 2) : text;
  } catch {
    return text;
  }
}

// Calls as Markdown, to copy and to export.
export const callsText = (calls = []) =>
  calls.map((call) => `${t('call-of', { name: call.name })}\n\n\`\`\`json\n${pretty(call.arguments)}\n\`\`\``).join('\n\n');

export class CallsView {
  #boxes = [];                  // { element, details, state } of each call
  #areas = null;                // the fields for results, while shown

  // `answer(message, results)` continues with one text for each call.
  constructor(message, answer) {
    this.message = message;
    this.answer = answer;
    this.list = h('div');
    this.send = h('div', { class: 'row end', hidden: true }, h('button', { type: 'submit', class: 'main', title: t('ctrl-enter') }));
    this.element = h('form', {
      class: 'calls', hidden: true,
      onsubmit: (event) => {
        event.preventDefault();
        this.#submit();
      },
      onkeydown: (event) => {
        if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) this.element.requestSubmit();
      },
    }, this.list, this.send);
  }

  // Draw the calls, those that have changed again; `isFinal` when they are complete.
  draw(isFinal) {
    const { calls = [] } = this.message;
    this.element.hidden = !calls.length;
    for (const gone of this.#boxes.splice(calls.length)) gone.element.remove();
    calls.forEach((call, i) => {
      const box = this.#boxes[i] ?? this.#newBox();
      const state = `${isFinal}${call.name}\n${call.arguments}`;
      if (box.state === state) return;
      box.state = state;
      box.details.replaceChildren(h('summary', {}, icon('tool'), h('bdi', {}, call.name)),
        codeBlock(isFinal ? pretty(call.arguments) : call.arguments, isFinal ? 'json' : ''));
    });
  }

  #newBox() {
    const details = h('details', { class: 'call', open: true });
    const box = { details, element: h('div', { class: 'call-box' }, details), state: '' };
    this.#boxes.push(box);
    this.list.append(box.element);
    return box;
  }

  // Show or remove a field for the result under each call.
  ask(isWanted) {
    if (isWanted === Boolean(this.#areas)) return;
    this.#areas?.forEach((area) => area.remove());
    this.#areas = isWanted ? this.message.calls.map((call, i) => this.#area(call, i)) : null;
    this.#areas?.forEach((area, i) => this.#boxes[i].element.append(area));
    this.send.hidden = !isWanted;
    this.send.firstChild.textContent = t(this.#areas?.length > 1 ? 'send-results' : 'send-result');
  }

  #area({ name }, i) {
    const key = `${this.message.id}.${i}`;
    const label = t('result-of', { name });
    const area = h('textarea', { rows: 2, class: 'mono', dir: 'auto', value: drafts.get(key), 'aria-label': label, placeholder: label,
      oninput: () => {
        grow(area);
        drafts.set(key, area.value);
      } });
    return area;
  }

  #submit() {
    if (!this.#areas) return;
    const results = this.#areas.map((area) => area.value);
    this.#areas.forEach((_, i) => drafts.set(`${this.message.id}.${i}`, ''));
    this.answer(this.message, results);
  }
}

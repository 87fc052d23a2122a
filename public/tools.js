// A conversation's tools: a box for their definitions as JSON, and the reader for it.
// The text is kept even if it is invalid; only valid tools are sent.

import { grow, h } from './dom.js';
import { t } from './i18n.js';

const NAME = /^[A-Za-z0-9_.:/-]{1,64}$/;
const MAX_TOOLS = 128;

const EXAMPLE = [{
  type: 'function',
  function: {
    name: 'get_weather',
    description: 'The weather of a place, now',
    parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
  },
}];

// The list of tools in `source`, [] if it is empty; throws with a reason for the user. Accepts single tools and bare
// functions ({ name, parameters }), too.
export function readTools(source) {
  if (!source.trim()) return [];
  let value;
  try {
    value = JSON.parse(source);
  } catch (error) {
    throw new Error(t('not-json', { why: error.message }));
  }
  const list = Array.isArray(value) ? value : Array.isArray(value?.tools) ? value.tools : [value];
  if (list.length > MAX_TOOLS) throw new Error(t('tools-many', { n: MAX_TOOLS }));
  const names = new Set();
  return list.map((one, i) => {
    const tool = isObject(one) && !('function' in one) && 'name' in one ? { type: 'function', function: one } : one;
    const problem = problemOf(tool, names);
    if (problem) throw new Error(t('tool-bad', { n: i + 1, why: problem }));
    names.add(tool.function.name);
    return { type: 'function', ...tool };
  });
}

const isObject = (value) => value !== null && typeof value === 'object' && !Array.isArray(value);

function problemOf(tool, names) {
  if (!isObject(tool) || !isObject(tool.function)) return t('tool-no-function');
  const { name, description, parameters } = tool.function;
  if (typeof name !== 'string' || !NAME.test(name)) return t('tool-no-name');
  if (names.has(name)) return t('tool-twice', { name });
  if (description !== undefined && typeof description !== 'string') return `${name}: description: ${t('no-text')}`;
  if (parameters !== undefined && !isObject(parameters)) return `${name}: parameters: ${t('no-object')}`;
  if (parameters?.type !== undefined && parameters.type !== 'object') return `${name}: parameters.type: ${t('no-object-type')}`;
  return '';
}

// The error of a schema in `tools`; '' if none is found.
async function schemaProblem(tools) {
  const { schemaToGrammar } = await import('./json-schema-to-grammar.mjs');
  for (const { function: { name, parameters } } of tools) {
    try {
      if (parameters) schemaToGrammar(parameters);
    } catch (error) {
      return `${name}: ${error.message}`;
    }
  }
  return '';
}

export class ToolsBox {
  // onchange(source) after each change.
  constructor(onchange) {
    this.area = h('textarea', { id: 'tools', rows: 6, class: 'mono', spellcheck: 'false', 'aria-label': t('tools'),
      'aria-describedby': 'tools-problem', placeholder: '[{"type": "function", "function": {…}}]',
      oninput: () => this.#check(), onchange: () => onchange(this.area.value) });
    this.count = h('span', { class: 'badge', hidden: true });
    this.problem = h('p', { id: 'tools-problem', class: 'note', role: 'status' });
    this.example = h('button', { type: 'button', onclick: () => {
      this.source = JSON.stringify(EXAMPLE, null, 2);
      onchange(this.area.value);
      grow(this.area);
      this.area.focus();
    } }, t('tools-example'));
    this.element = h('details', { class: 'system-box tools-box', ontoggle: () => grow(this.area) },
      h('summary', {}, t('tools'), ' ', this.count),
      h('p', { class: 'dim' }, t('tools-help')), this.area, this.problem, this.example);
    this.source = '';
  }

  set source(text) {
    this.area.value = text;
    this.#check();
  }

  // Is the text valid? If not, show it with the reason.
  isGood() {
    try {
      readTools(this.area.value);
      return true;
    } catch {
      this.element.open = true;
      this.area.focus();
      return false;
    }
  }

  async #check() {
    const text = this.area.value;
    grow(this.area);
    this.example.hidden = Boolean(text.trim());
    try {
      const tools = readTools(text);
      this.#show(tools.length, '');
      const problem = tools.length ? await schemaProblem(tools) : '';
      if (this.area.value === text) this.#show(tools.length, problem);
    } catch (error) {
      this.#show(0, error.message);
    }
  }

  #show(n, problem) {
    this.count.textContent = problem ? '!' : n;
    this.count.hidden = !(n || problem);
    this.count.classList.toggle('error', Boolean(problem));
    this.problem.textContent = problem;
    this.problem.hidden = !problem;
    this.problem.classList.toggle('error', Boolean(problem));
    this.area.setAttribute('aria-invalid', String(Boolean(problem)));
  }
}

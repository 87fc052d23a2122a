// A message's request as curl, Python and JavaScript, and the prompt that the model reads. Without the API key.

import { errorText, post } from './api.js';
import { ask, h } from './dom.js';
import { t } from './i18n.js';
import { codeBlock } from './markdown.js';

const KEY = 'LLAMA_API_KEY';    // the snippets' variable

const curl = (url, body) => [
  `curl ${url} \\`, '  -H "Content-Type: application/json" \\', `  -H "Authorization: Bearer $${KEY}" \\`,
  `  -d '${JSON.stringify(body, null, 2).replace(/'/g, "'\\''")}'`].join('\n');

// A JSON value in Python.
function python(value, indent = '') {
  const inner = `${indent}    `;
  const list = (items, open, close) =>
    (items.length ? `${open}\n${items.map((item) => `${inner}${item},\n`).join('')}${indent}${close}` : open + close);
  if (value === null || value === undefined) return 'None';
  if (typeof value === 'boolean') return value ? 'True' : 'False';
  if (Array.isArray(value)) return list(value.map((item) => python(item, inner)), '[', ']');
  if (typeof value === 'object') return list(Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${python(item, inner)}`), '{', '}');
  return JSON.stringify(value);
}

const inPython = (url, body) => `import json
import os
import urllib.request

body = ${python(body)}
request = urllib.request.Request(
    ${JSON.stringify(url)},
    json.dumps(body).encode(),
    {"Content-Type": "application/json", "Authorization": "Bearer " + os.environ.get("${KEY}", "")},
)
with urllib.request.urlopen(request) as response:
    print(json.load(response)["choices"][0]["message"])`;

const inJavaScript = (url, body) => `const response = await fetch(${JSON.stringify(url)}, {
  method: 'POST',
  headers: { 'Content-Type': 'application/json', Authorization: \`Bearer \${process.env.${KEY} ?? ''}\` },
  body: JSON.stringify(${JSON.stringify(body, null, 2).replace(/\n/g, '\n  ')}),
});
const { choices } = await response.json();
console.log(choices[0].message);`;

// Show the request `body`, and its stored `answer`.
export async function showRequest(body, answer) {
  const url = new URL('v1/chat/completions', location.href).href;
  const pages = {
    curl: () => codeBlock(curl(url, body), 'bash'),
    Python: () => codeBlock(inPython(url, body), 'python'),
    JavaScript: () => codeBlock(inJavaScript(url, body), 'js'),
    [t('raw-prompt')]: () => rawPrompt(body),
    [t('raw-answer')]: () => codeBlock(JSON.stringify(answer, null, 2), 'json'),
  };
  const page = h('div', { class: 'md' });
  const choice = h('select', { 'aria-label': t('form'), onchange: async () => {
    const name = choice.value;
    const node = await pages[name]();
    if (choice.value === name) page.replaceChildren(node);
  } }, Object.keys(pages).map((name) => h('option', { value: name }, name)));
  page.append(pages.curl());
  await ask(t('show-request'), h('div', { class: 'settings' }, choice, page), [['', t('close')]]);
}

async function rawPrompt(body) {
  try {
    return codeBlock((await post('apply-template', body)).prompt, '');
  } catch (error) {
    return h('p', { class: 'note error' }, errorText(error));
  }
}

// Text completion for web pages and Node: import this module, give it a prompt, read text as it is generated.
//
//   import { llama } from '/completion.js';
//   for await (const chunk of llama('Once upon a time', { n_predict: 64 })) write(chunk.data.content);
//
// `params` are the fields of POST /completion. `config` may have
//   controller  an AbortController; aborting it ends the generation
//   api_url     where the server is (default: where this module came from; from a file: http://127.0.0.1:8080)
//   api_key     sent as `Authorization: Bearer`; `params.api_key` means the same
// It has no imports. Errors are thrown as LlamaError with the server's message.

const DEFAULTS = { stream: true, n_predict: 500, temperature: 0.2, stop: ['</s>'] };

// Server -> settings of the latest completion, or of /props, for llamaModelInfo.
const known = new Map();

export class LlamaError extends Error {
  // `status` is the HTTP status, `type` the server's name for the kind of error, `details` its other fields.
  constructor(message, status = 0, type = '', details = {}) {
    super(message);
    this.name = 'LlamaError';
    this.status = status;
    this.type = type;
    this.details = details;
  }
}

const baseUrl = (config) => {
  if (config.api_url) return config.api_url.replace(/\/+$/, '');
  const own = new URL('.', import.meta.url).href.slice(0, -1);
  return own.startsWith('http') ? own : 'http://127.0.0.1:8080';
};

const headersFor = (key) => (key ? { Authorization: `Bearer ${key}` } : {});

// The error of an answer that isn't 2xx. This server's body is JSON; that of a proxy may be anything.
export async function errorOf(response) {
  const text = await response.text().catch(() => '');
  try {
    const { error } = JSON.parse(text);
    return new LlamaError(error.message ?? String(error), response.status, error.type, error);
  } catch {
    return new LlamaError(text.slice(0, 200) || `HTTP ${response.status}`, response.status);
  }
}

// The events of a server-sent stream as objects of their fields ({ data, event, error... }), as they arrive.
// Chunks may end anywhere; an incomplete event at the end is dropped.
export async function* events(response) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = '';
  let fields = {};
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + decoder.decode(value, { stream: true })).split('\n');
      rest = lines.pop();
      for (const raw of lines) {
        const line = raw.endsWith('\r') ? raw.slice(0, -1) : raw;
        if (line === '') {
          if (Object.keys(fields).length) yield fields;
          fields = {};
          continue;
        }
        const colon = line.indexOf(':');
        if (colon <= 0) continue;
        const name = line.slice(0, colon);
        const content = line.slice(line[colon + 1] === ' ' ? colon + 2 : colon + 1);
        fields[name] = name in fields ? `${fields[name]}\n${content}` : content;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Complete `prompt` as an async generator. Each chunk has `data`, the server's object: `content` is the
// next text; the last one has `stop: true`, `timings` and `generation_settings`. Returns the whole text.
export async function* llama(prompt, params = {}, config = {}) {
  const { api_key: keyInParams, ...given } = params;
  const base = baseUrl(config);
  const controller = config.controller ?? new AbortController();
  const response = await fetch(`${base}/completion`, {
    method: 'POST',
    body: JSON.stringify({ ...DEFAULTS, ...given, prompt }),
    headers: {
      'Content-Type': 'application/json',
      Accept: 'text/event-stream',
      ...headersFor(config.api_key ?? keyInParams),
    },
    signal: controller.signal,
  });
  if (!response.ok) throw await errorOf(response);
  let content = '';
  try {
    for await (const chunk of chunksOf(response)) {
      if (chunk.data.error) {
        const { message, code, type } = chunk.data.error;
        throw new LlamaError(message, code, type);
      }
      content += chunk.data.content ?? '';
      if (chunk.data.generation_settings) known.set(base, chunk.data.generation_settings);
      yield chunk;
      if (chunk.data.stop) return content;
    }
    throw new LlamaError('the connection ended before the text was complete');
  } finally {
    controller.abort();
  }
}

// With `stream: false` there is one chunk with everything.
async function* chunksOf(response) {
  if ((response.headers.get('Content-Type') ?? '').startsWith('application/json')) {
    yield { data: await response.json() };
    return;
  }
  for await (const event of events(response)) {
    if (event.data !== undefined) yield { ...event, data: JSON.parse(event.data) };
  }
}

// Complete `prompt` and dispatch events, each with its `detail`: "message" (a chunk's data), "generation_settings",
// "timings", "done" ({ content }), and "error" ({ error }).
export function llamaEventTarget(prompt, params = {}, config = {}) {
  const target = new EventTarget();
  const tell = (type, detail) => target.dispatchEvent(Object.assign(new Event(type), { detail }));
  (async () => {
    let content = '';
    for await (const { data } of llama(prompt, params, config)) {
      content += data.content ?? '';
      tell('message', data);
      if (data.generation_settings) tell('generation_settings', data.generation_settings);
      if (data.timings) tell('timings', data.timings);
    }
    tell('done', { content });
  })().catch((error) => tell('error', { error }));
  return target;
}

// Complete `prompt`; resolves to the whole text.
export async function llamaPromise(prompt, params = {}, config = {}) {
  let content = '';
  for await (const { data } of llama(prompt, params, config)) content += data.content ?? '';
  return content;
}

// Complete `params.prompt` and call `callback` with each chunk. The oldest interface, for pages that use it.
export async function llamaComplete(params, controller, callback) {
  const { prompt, api_url, ...rest } = params;
  for await (const chunk of llama(prompt, rest, { controller, api_url })) callback(chunk);
}

// The default settings from /props (`n_ctx`, `model`, samplers...), or those of the latest completion on this page.
export async function llamaModelInfo(config = {}) {
  const base = baseUrl(config);
  if (!known.has(base)) {
    const response = await fetch(`${base}/props`, { headers: headersFor(config.api_key) });
    if (!response.ok) throw await errorOf(response);
    known.set(base, (await response.json()).default_generation_settings);
  }
  return known.get(base);
}

// Requests to this page's server, with the API key of the settings. Relative paths, so the page works under a prefix.
// Errors are LlamaError with the server's message; a missing or wrong key also fires "need-key" on window.

import { errorOf, events, LlamaError } from './completion.js';
import { number, t } from './i18n.js';
import { prefs } from './prefs.js';

export { LlamaError };

// An error's `reason` or else type -> key of its text.
const KINDS = {
  invalid_request_error: 'invalid', too_large: 'invalid', too_many: 'invalid', slow: 'invalid', authentication_error: 'auth', permission_error: 'forbidden',
  not_found_error: 'not-found', not_found: 'not-found', exceed_context_size_error: 'context', rate_limit_error: 'rate', not_supported_error: 'unsupported',
  queue_full: 'busy', memory: 'busy', connections: 'busy', unavailable_error: 'unavailable', timeout_error: 'time', server_error: 'server', connection_lost: 'lost',
};

// An error in the user's language, with the server's message where that says more.
export function errorText({ type, message, name, details = {} }) {
  if (name === 'TypeError') return t('offline');
  const kind = KINDS[details.reason ?? type];
  const { n_prompt_tokens: n = 0, n_ctx: size = 0 } = details;
  return kind ? t(`error-${kind}`, { message, n: number(n), size: number(size) }) : message;
}

async function request(path, options = {}) {
  const headers = { ...options.headers, ...(options.body ? { 'Content-Type': 'application/json' } : {}) };
  if (prefs.apiKey) headers.Authorization = `Bearer ${prefs.apiKey}`;
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  if (response.status === 401) window.dispatchEvent(new Event('need-key'));
  throw await errorOf(response);
}

export const get = async (path) => (await request(path)).json();
export const getText = async (path) => (await request(path)).text();
export const post = async (path, body, signal) =>
  (await request(path, { method: 'POST', body: JSON.stringify(body), signal })).json();

// POST with a streamed answer: yields the parsed `data` objects. Throws errors in the stream, and if it ends without a
// last object (the connection broke). With an `id` the server finishes the stream even if the connection ends, and
// `takeUp` reads it again.
export async function* stream(path, body, signal, id = '') {
  yield* objects(await request(path, { method: 'POST', body: JSON.stringify({ ...body, stream: true }), signal, headers: id ? { 'X-Conversation-Id': id } : {} }));
}

// The objects of the stream `id` from its beginning; null if the server doesn't have it.
export async function takeUp(id, signal) {
  const found = await post('v1/streams/lookup', { conversation_ids: [id] }, signal);
  return found.length ? objects(await request(`v1/stream?conv_id=${id}`, { signal })) : null;
}

// Stop the stream `id`.
export const endStream = (id) => request(`v1/stream?conv_id=${id}`, { method: 'DELETE' }).catch(() => {});

async function* objects(response) {
  let isComplete = false;
  for await (const { data, event } of events(response)) {
    if (data === undefined) continue;
    if (data === '[DONE]') return;
    const value = JSON.parse(data);
    if (event === 'error' || value.error) {
      const { message, code, type, ...details } = value.error ?? value;
      throw new LlamaError(message, code, type, details);
    }
    yield value;
    isComplete = value.stop === true || Boolean(value.choices?.[0]?.finish_reason) || isComplete;
  }
  if (!isComplete) throw new LlamaError('connection lost', 0, 'connection_lost');
}

// Did the connection fail?
export const isConnectionError = (error) =>
  error instanceof TypeError || error.type === 'connection_lost' || [502, 503, 504].includes(error.status);

// The health object, of any status; null if the server doesn't answer.
export async function health() {
  try {
    return await (await fetch('health', { cache: 'no-store' })).json();
  } catch {
    return null;
  }
}

export const isReady = (state) => state?.status === 'ok' || state?.status === 'no slot available';

export const sleep = (ms, signal) => new Promise((resolve, reject) => {
  const timer = setTimeout(resolve, ms);
  signal?.addEventListener('abort', () => {
    clearTimeout(timer);
    reject(signal.reason);
  }, { once: true });
});

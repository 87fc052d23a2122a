// One answer of the model, from request to last token: streaming, waiting for a free slot, and continuing after a lost
// connection or a reload, by the same stream if the server still has it, else after the text so far. Doesn't use the
// page; reports everything through `on`.

import { endStream, health, isConnectionError, isReady, sleep, stream, takeUp } from './api.js';
import { requestContent } from './attach.js';
import { newId } from './store.js';

// Messages of a path in the API's form. Reasoning is sent only within a loop of calls: models are trained without that
// of earlier answers.
export function toMessages(system, path) {
  const question = path.findLastIndex((message) => message.role === 'user');
  const hasSomething = (message) => message.role === 'tool' || message.content || message.files?.length || message.calls?.length;
  const messages = path.map((message, i) => hasSomething(message) && toMessage(message, i > question)).filter(Boolean);
  return system.trim() ? [{ role: 'system', content: system }, ...messages] : messages;
}

function toMessage(message, isInLoop) {
  const { role, reasoning } = message;
  const calls = message.calls?.filter(isWhole);
  if (role === 'tool') return { role, tool_call_id: message.call, name: message.name, content: message.content };
  if (!calls?.length) return { role, content: requestContent(message) };
  return {
    role, content: message.content || null,
    ...(reasoning && isInLoop ? { reasoning_content: reasoning } : {}),
    tool_calls: calls.map((call) => ({ id: call.id, type: 'function', function: { name: call.name, arguments: call.arguments } })),
  };
}

const N_TOP = 5;
const MAX_PARTS = 3000;         // tokens with probabilities in a message
const NO_SPEED = { n: 0, rate: 0 };

// The speed of a message with several parts.
function sum(earlier, { predicted_n: n, predicted_ms: ms }) {
  const before = earlier.n ? 1000 * earlier.n / earlier.rate : 0;
  return { n: earlier.n + n, rate: ms + before ? 1000 * (earlier.n + n) / (ms + before) : 0 };
}

// The API's tokens and probabilities in the form of tokens.js; one part without a probability if they aren't the whole
// text.
function partsOf(content, logprobs) {
  const parts = (logprobs?.content ?? []).map(({ token, logprob, top_logprobs: top }) => ({
    text: token, prob: Math.exp(logprob), top: top.map((other) => ({ text: other.token, prob: Math.exp(other.logprob) })),
  }));
  return parts.map((part) => part.text).join('') === content ? parts : [{ text: content }];
}

// The body of a request, without fields for this page only. `sampling`: fields; `tools`: a list.
export const requestBody = ({ messages, tools, sampling }) => ({ messages, ...(tools?.length ? { tools } : {}), ...sampling });

// Generate the message after `messages`, with `tools` and `sampling` fields; `keepsTokens`: with the probabilities of
// tokens. `start`: the message so far, whose text is continued, by its stream if it has `start.asked`.
// on.text({ content, reasoning, thought, calls, parts }) (thought: ms of thinking; parts: see tokens.js),
// on.progress({ total, cache, processed }), on.speed({ n, rate }) of the whole message,
// on.used(tokens in the context), on.busy(place in the queue), on.loading(fraction of the model),
// on.asked({ id, ...the message before the request }): to be stored for resuming the stream; awaited;
// on.lost(error), null when it is over. Resolves to the finish reason: stop, tool_calls, length, stopped (by `signal`).
export async function generate({ start, signal, on, ...request }) {
  const { content = '', reasoning = '', thought = 0, speed = NO_SPEED, asked = null } = start;
  const parts = [...start.parts ?? (content ? [{ text: content }] : [])];
  const answer = { content, reasoning, thought, speed, calls: [], parts, asked };
  for (;;) {
    try {
      const chunks = answer.asked && await takeUp(answer.asked.id, signal);
      return await read(chunks ?? await askFor(request, answer, signal, on), request, answer, on);
    } catch (error) {
      if (signal.aborted) {
        if (answer.asked) endStream(answer.asked.id);
        return 'stopped';
      }
      if (!isConnectionError(error)) throw error;
      on.lost(error);
    }
    try {
      do await sleep(1000, signal); while (!isReady(await health()));
    } catch {
      if (answer.asked) endStream(answer.asked.id);
      return 'stopped';
    } finally {
      on.lost(null);
    }
  }
}

// The chunks of a new request, which continues a text; reasoning and calls that were cut off are generated again.
async function askFor(request, answer, signal, on) {
  const isContinued = answer.content !== '';
  if (!isContinued) Object.assign(answer, { reasoning: '', thought: 0 });
  const { content, reasoning, thought, speed, parts } = answer;
  answer.asked = { id: newId(), ...(isContinued ? { content, reasoning, thought, speed, parts: [...parts] } : {}) };
  await on.asked(answer.asked);
  const { messages } = request;
  return stream('v1/chat/completions', {
    ...requestBody(request),
    messages: isContinued ? [...messages, { role: 'assistant', content }] : messages,
    return_progress: true,
    timings_per_token: true,
    ...(request.keepsTokens ? { logprobs: true, top_logprobs: N_TOP } : {}),
    ...(isContinued ? { continue_final_message: true } : {}),
  }, signal, answer.asked.id);
}

// Read a stream from its beginning into `answer`, after the text before its request. Text that is already shown stays.
async function read(chunks, request, answer, on) {
  const shown = answer.content.length + answer.reasoning.length;
  const { content: before = '', reasoning: thoughts = '', speed: earlier = NO_SPEED, parts = [] } = answer.asked;
  Object.assign(answer, { content: before, reasoning: thoughts, parts: [...parts], calls: [] });
  const thinking = new ThinkSplitter(before !== '');
  const clock = new Clock(answer);
  let finish = '';
  for await (const chunk of chunks) {
    if (chunk.load_progress) on.loading(chunk.load_progress.progress);
    const progress = chunk.prompt_progress;
    if (progress?.queue_position) on.busy(progress.queue_position);
    else if (progress) on.progress(progress);
    if (chunk.timings) {
      answer.speed = sum(earlier, chunk.timings);
      on.speed(answer.speed);
      on.used(chunk.timings.cache_n + chunk.timings.prompt_n + chunk.timings.predicted_n);
    }
    const choice = chunk.choices?.[0];
    if (!choice) continue;
    const { content, reasoning_content: reasoning, tool_calls: calls } = choice.delta ?? {};
    if (reasoning) answer.reasoning += reasoning;
    if (content) {
      thinking.feed(content);
      answer.content = before + thinking.content;
      if (request.keepsTokens && answer.parts.length < MAX_PARTS) answer.parts.push(...partsOf(content, choice.logprobs));
      if (thinking.reasoning) answer.reasoning = thinking.reasoning;
    }
    if (calls) addCalls(answer, calls);
    clock.look();
    finish = choice.finish_reason ?? finish;
    const isNew = answer.content.length + answer.reasoning.length >= shown || calls || finish;
    if (isNew && (content || reasoning || calls || finish)) on.text({ ...answer });
  }
  return finish || 'stop';
}

// Are the arguments complete? Those of a cut-off call aren't JSON.
function isWhole(call) {
  try {
    JSON.parse(call.arguments || '{}');
    return true;
  } catch {
    return false;
  }
}

// Parts of calls from a stream: first a call's head, then parts of its arguments.
function addCalls(answer, pieces) {
  const calls = [...answer.calls];
  for (const { index = 0, id, function: { name = '', arguments: text = '' } = {} } of pieces) {
    const call = calls[index] ?? { id: id ?? `call_${index}`, name: '', arguments: '' };
    calls[index] = { ...call, name: call.name + name, arguments: call.arguments + text };
  }
  answer.calls = calls.filter(Boolean);
}

// Measures the time from the first reasoning to the latest in `answer.thought`.
class Clock {
  #since = 0;

  constructor(answer) {
    this.answer = answer;
    this.length = answer.reasoning.length;
    this.before = answer.thought;
  }

  look() {
    if (this.answer.reasoning.length === this.length) return;
    this.length = this.answer.reasoning.length;
    this.#since ||= performance.now();
    this.answer.thought = Math.round(this.before + performance.now() - this.#since);
  }
}

// Some models begin their text with reasoning, <think>...</think>.
export class ThinkSplitter {
  #raw = '';
  #isPlain;

  constructor(isPlain = false) {
    this.#isPlain = isPlain;
    this.content = '';
    this.reasoning = '';
  }

  feed(text) {
    this.#raw += text;
    const trimmed = this.#raw.trimStart();
    if (this.#isPlain || (!trimmed.startsWith('<think>') && !'<think>'.startsWith(trimmed))) {
      this.#isPlain = true;
      this.content = this.#raw;
      return;
    }
    const inner = trimmed.slice(7);
    const end = inner.indexOf('</think>');
    this.reasoning = (end < 0 ? inner : inner.slice(0, end)).trim();
    this.content = end < 0 ? '' : inner.slice(end + 8).trimStart();
  }
}

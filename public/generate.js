// One answer of the model, from request to last token: streaming, waiting for a free slot, and going on after a lost
// connection with what has arrived. No page; the caller hears of everything through `on`.

import { health, isConnectionError, isReady, post, sleep, stream } from './api.js';
import { prefs } from './prefs.js';
import { requestContent } from './attach.js';

// Messages of a path as the API wants them. Reasoning isn't sent back: models are trained without it.
export function toMessages(system, path) {
  const messages = path.filter((message) => message.content || message.files?.length)
    .map((message) => ({ role: message.role, content: requestContent(message) }));
  return system.trim() ? [{ role: 'system', content: system }, ...messages] : messages;
}

export const countTokens = async (messages) =>
  (await post('v1/chat/completions/input_tokens', { messages })).input_tokens;

// Generate the message that follows `messages`. `start` is its text so far ('' for a new one).
// on.text(content, reasoning), on.progress({ total, cache, processed }), on.timings(timings), on.busy(place in the queue),
// on.lost(boolean). Resolves to the finish reason: stop, length, or stopped (by `signal`).
export async function generate({ messages, start, signal, on }) {
  const answer = { content: start, reasoning: '', isOpen: false };
  for (;;) {
    try {
      return await attempt(messages, answer, signal, on);
    } catch (error) {
      if (signal.aborted) return 'stopped';
      if (!isConnectionError(error)) throw error;
    }
    on.lost(true);
    try {
      do await sleep(1000, signal); while (!isReady(await health()));
    } catch {
      return 'stopped';
    } finally {
      on.lost(false);
    }
  }
}

async function attempt(messages, answer, signal, on) {
  const isContinued = answer.content !== '';
  if (!isContinued) answer.reasoning = '';
  const body = {
    ...prefs.sampling,
    messages: isContinued ? [...messages, { role: 'assistant', content: answer.content }] : messages,
    return_progress: true,
    timings_per_token: true,
  };
  if (isContinued) body.continue_final_message = true;
  const before = answer.content;
  let thinking = new ThinkSplitter(isContinued);
  let finish = '';
  for await (const chunk of stream('v1/chat/completions', body, signal)) {
    const progress = chunk.prompt_progress;
    if (progress?.queue_position) on.busy(progress.queue_position);
    else if (progress) on.progress(progress);
    if (chunk.timings) on.timings(chunk.timings);
    const choice = chunk.choices?.[0];
    if (!choice) continue;
    const { content, reasoning_content: reasoning } = choice.delta ?? {};
    if (reasoning) answer.reasoning += reasoning;
    if (content) {
      thinking.feed(content);
      answer.content = before + thinking.content;
      if (thinking.reasoning) answer.reasoning = thinking.reasoning;
    }
    if (content || reasoning) on.text(answer.content, answer.reasoning);
    finish = choice.finish_reason ?? finish;
  }
  return finish || 'stop';
}

// Some models write their reasoning into the text, as <think>...</think> at its beginning.
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

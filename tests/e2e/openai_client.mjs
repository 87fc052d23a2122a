// What tests/e2e/test_openai_node.py has the `openai` package do: `node openai_client.mjs PACKAGE URL SCENARIO`.
// Prints one line of JSON. Runs in a process of its own, with nothing but that package.

import { createReadStream } from 'node:fs';
import { pathToFileURL } from 'node:url';

const [packageFile, baseURL, scenario] = process.argv.slice(2);
const { default: OpenAI } = await import(pathToFileURL(packageFile).href);
const client = new OpenAI({ baseURL, apiKey: 'sk-no-key-required', maxRetries: 0 });

const greedy = { model: 'gpt-3.5-turbo', temperature: 0 };
const capital = [{ role: 'user', content: 'What is the capital of France? Answer in one sentence.' }];
const count = [{ role: 'user', content: 'Count from 1 to 500, one number per line, without any other text.' }];
const city = {
  type: 'object',
  properties: { name: { type: 'string', maxLength: 20 }, population: { type: 'integer', maximum: 1e9 } },
  required: ['name', 'population'],
  additionalProperties: false,
};

const scenarios = {
  async plain() {
    return client.chat.completions.create({ messages: capital, max_tokens: 24, ...greedy });
  },

  async stream() {
    const stream = await client.chat.completions.create({
      messages: capital, max_tokens: 24, stream: true, stream_options: { include_usage: true }, ...greedy,
    });
    const chunks = [];
    for await (const chunk of stream) chunks.push(chunk);
    return chunks;
  },

  async helper() {
    const stream = client.chat.completions.stream({ messages: capital, max_tokens: 24, ...greedy });
    const deltas = [];
    stream.on('content', (delta) => deltas.push(delta));
    return { deltas, content: await stream.finalContent() };
  },

  async structured() {
    const answer = await client.chat.completions.parse({
      messages: [{ role: 'user', content: 'Give me the city Paris as JSON.' }],
      response_format: { type: 'json_schema', json_schema: { name: 'city', strict: true, schema: city } },
      max_tokens: 100, ...greedy,
    });
    return JSON.parse(answer.choices[0].message.content);
  },

  async text() {
    const fields = { model: 'x', prompt: 'The capital of France is', max_tokens: 8, temperature: 0 };
    const plain = await client.completions.create(fields);
    let streamed = '';
    for await (const chunk of await client.completions.create({ ...fields, stream: true })) {
      streamed += chunk.choices[0].text;
    }
    return { plain: plain.choices[0].text, streamed };
  },

  async models() {
    const found = [];
    for await (const model of client.models.list()) found.push(model.id);
    return found;
  },

  async errors() {
    const failures = [];
    for (const body of [{ messages: [] }, { messages: capital, response_format: { type: 'xml' }, stream: true }]) {
      try {
        await client.chat.completions.create({ model: 'x', ...body });
      } catch (error) {
        failures.push({ kind: error.constructor.name, status: error.status, type: error.type, message: error.message });
      }
    }
    return failures;
  },

  // SOUND is a file's path
  async transcribe() {
    const file = () => createReadStream(process.env.SOUND);
    const { text } = await client.audio.transcriptions.create({ model: 'x', file: file() });
    const stream = await client.audio.transcriptions.create({ model: 'x', file: file(), stream: true, language: 'en' });
    const events = [];
    for await (const event of stream) events.push(event);
    const { duration } = await client.audio.transcriptions.create({
      model: 'x', file: file(), response_format: 'verbose_json',
    });
    return { text, events, duration };
  },

  // leaving the loop closes the connection
  async leave() {
    const body = { model: 'x', messages: count, ignore_eos: true, stream: true };
    const stream = await client.chat.completions.create(body);
    let n = 0;
    for await (const chunk of stream) {
      n += 1;
      if (n === 3) break;
    }
    return n;
  },

  async abort() {
    const names = [];
    for (const stream of [true, false]) {
      const controller = new AbortController();
      const body = { model: 'x', messages: count, ignore_eos: true, stream };
      try {
        const answer = client.chat.completions.create(body, { signal: controller.signal });
        if (stream) {
          for await (const chunk of await answer) controller.abort();
        } else {
          setTimeout(() => controller.abort(), 300);
          await answer;
        }
        names.push('ended');
      } catch (error) {
        names.push(error.constructor.name);
      }
    }
    return names;
  },
};

console.log(JSON.stringify(await scenarios[scenario]()));

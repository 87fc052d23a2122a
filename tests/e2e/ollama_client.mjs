// What tests/e2e/test_ollama_clients.py does with the JavaScript package `ollama`: prints one JSON value.
// Usage: node ollama_client.mjs PATH_OF_THE_PACKAGE URL
import { pathToFileURL } from 'node:url';

const [path, host] = process.argv.slice(2);
const { Ollama } = await import(pathToFileURL(path).href);
const client = new Ollama({ host });
const model = 'small';
const messages = [{ role: 'user', content: 'What is the capital of France? Answer in one sentence.' }];
const options = { temperature: 0, num_predict: 24 };

const parts = [];
for await (const part of await client.chat({ model, messages, options, stream: true })) {
  parts.push(part);
}
const aborted = await client.generate({ model, prompt: 'Count to 500.', stream: true, options: { ignore_eos: true } });
let n = 0;
let reason = '';
try {
  for await (const part of aborted) {
    n += part.response ? 1 : 0;
    if (n === 3) {
      aborted.abort();
    }
  }
} catch (error) {
  reason = error.name;
}
let refusal;
try {
  await client.chat({ model, messages, options: { top_p: 5 } });
} catch (error) {
  refusal = { status: error.status_code, message: error.message };
}
const whole = await client.chat({ model, messages, options });
const format = { type: 'object', properties: { n: { const: 7 } }, required: ['n'] };
const bound = await client.generate({ model, prompt: 'A number?', format, options });
console.log(
  JSON.stringify({
    whole: whole.message.content,
    streamed: parts.map((part) => part.message.content).join(''),
    isDone: parts.map((part) => part.done).indexOf(true) === parts.length - 1,
    names: (await client.list()).models.map((one) => one.model),
    capabilities: (await client.show({ model })).capabilities,
    lengths: (await client.embed({ model, input: ['a', 'b'] })).embeddings.map((vector) => vector.length),
    bound: JSON.parse(bound.response),
    n,
    reason,
    refusal,
  }),
);

// Anthropic's package for JavaScript, for tests/e2e/test_anthropic.py: `node anthropic_client.mjs PACKAGES URL`.
// PACKAGES is a `node_modules` folder. Prints one line of JSON. Runs in a process of its own.

import { createRequire } from 'node:module';

const [packages, baseURL] = process.argv.slice(2);
const require = createRequire(packages + '/');
const { default: Anthropic } = require('@anthropic-ai/sdk');
const client = new Anthropic({ baseURL, apiKey: 'none', maxRetries: 0 });

const tools = [{
  name: 'weather',
  description: 'The weather of a city.',
  input_schema: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
}];
const messages = [{ role: 'user', content: 'How is the weather in Bern?' }];
const request = { model: 'local', max_tokens: 300, temperature: 0, tools, messages };

// a stream: what each listener heard, and the message that the package has put together
const heard = { text: '', thinking: '', signature: '', inputJson: '' };
const stream = client.messages.stream(request);
for (const name of Object.keys(heard)) stream.on(name, (delta) => { heard[name] += delta; });
const kinds = [];
stream.on('streamEvent', (event) => kinds.push(event.type));
const first = await stream.finalMessage();

// the answer to the call's result, as a whole
const call = first.content.find((block) => block.type === 'tool_use');
messages.push({ role: 'assistant', content: first.content });
messages.push({ role: 'user', content: [{ type: 'tool_result', tool_use_id: call.id, content: 'rain' }] });
const second = await client.messages.create(request);
const counted = await client.messages.countTokens({ model: 'local', tools, messages });

// a refusal, and the beta's route
let refused;
try {
  await client.messages.create({ ...request, messages: [] });
} catch (error) {
  refused = { name: error.constructor.name, status: error.status, type: error.error.error.type };
}
const beta = await client.beta.messages.create({ ...request, betas: ['context-management-2025-06-27'] });
console.log(JSON.stringify({ heard, kinds, first, second, counted, refused, beta, id: Boolean(second._request_id) }));

// OpenAI's package for JavaScript and /v1/responses, for tests/e2e/test_responses.py: `node responses_client.mjs PACKAGE
// URL`. Prints one line of JSON. Runs in a process of its own, with nothing but that package.

import { pathToFileURL } from 'node:url';

const [packageFile, baseURL] = process.argv.slice(2);
const { default: OpenAI } = await import(pathToFileURL(packageFile).href);
const client = new OpenAI({ baseURL, apiKey: 'none', maxRetries: 0 });

const tools = [{
  type: 'function', name: 'weather', description: 'The weather of a city.', strict: false,
  parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
}];
const request = { model: 'local', input: 'How is the weather in Bern?', tools };

// a stream: what each listener heard, and the response that the package has put together
const heard = { text: '', arguments: '' };
const stream = client.responses.stream(request);
stream.on('response.output_text.delta', (event) => { heard.text += event.delta; });
stream.on('response.function_call_arguments.delta', (event) => { heard.arguments += event.delta; });
const kinds = [];
stream.on('event', (event) => kinds.push(event.type));
const first = await stream.finalResponse();

// the answer to the call's result, and what it was made of
const call = first.output.find((item) => item.type === 'function_call');
const input = [{ type: 'function_call_output', call_id: call.call_id, output: 'rain' }];
const second = await client.responses.create({ ...request, input, previous_response_id: first.id });
const items = [];
for await (const item of client.responses.inputItems.list(second.id, { order: 'asc' })) items.push(item.type);

// the end of the stream once more, and a response that nobody waits for
const again = [];
for await (const event of await client.responses.retrieve(first.id, { stream: true })) again.push(event.type);
const begun = await client.responses.create({ ...request, background: true });
let ended = begun;
while (ended.status === 'queued' || ended.status === 'in_progress') ended = await client.responses.retrieve(begun.id);

// a refusal, and what is gone
let refused, gone;
try {
  await client.responses.create({ ...request, tools: [{ type: 'function' }] });
} catch (error) {
  refused = { name: error.constructor.name, status: error.status };
}
await client.responses.delete(first.id);
await client.responses.retrieve(first.id).catch((error) => { gone = error.status; });
console.log(JSON.stringify({
  heard, kinds, first, items, again: again.slice(-3), refused, gone,
  second: { text: second.output_text, status: second.status },
  background: { begun: begun.status, ended: ended.status, text: ended.output_text },
}));

// The tool runners of JavaScript packages, for tests/e2e/test_agents.py: `node agents.mjs PACKAGES URL SCENARIO FIELDS`.
// PACKAGES is a `node_modules` folder, FIELDS a JSON object for each request. Prints one line of JSON: the calls as
// [name, arguments] in order, and the last text. Runs in a process of its own.

import { createRequire } from 'node:module';

const [packages, baseURL, scenario, fields] = process.argv.slice(2);
const require = createRequire(packages + '/');
const extra = JSON.parse(fields);
const question = 'Add and note ten things.';
const calls = [];

const add = ({ a, b }) => {
  calls.push(['add', { a, b }]);
  return String(a + b);
};
const note = ({ text }) => {
  calls.push(['note', { text }]);
  return `noted: ${text}`;
};
const schemas = {
  add: {
    type: 'object',
    properties: { a: { type: 'integer', minimum: 0, maximum: 999 }, b: { type: 'integer', minimum: 0, maximum: 999 } },
    required: ['a', 'b'],
    additionalProperties: false,
  },
  note: {
    type: 'object',
    properties: { text: { type: 'string', maxLength: 40 } },
    required: ['text'],
    additionalProperties: false,
  },
};

// the `openai` package: `runTools` goes on until an answer has no call, or until `maxChatCompletions`
async function runTools(stream, maxChatCompletions) {
  const { default: OpenAI } = require('openai');
  const client = new OpenAI({ baseURL, apiKey: 'none', maxRetries: 0 });
  const tool = (run, name) => ({
    type: 'function',
    function: { function: run, name, parse: JSON.parse, description: `To ${name}.`, parameters: schemas[name] },
  });
  const runner = client.chat.completions.runTools(
    {
      model: 'local', stream, messages: [{ role: 'user', content: question }],
      tools: [tool(add, 'add'), tool(note, 'note')], ...extra,
    },
    { maxChatCompletions },
  );
  const deltas = [];
  if (stream) runner.on('content', (delta) => deltas.push(delta));
  await runner.done();
  const text = await runner.finalContent();
  if (stream && deltas.join('') !== (text ?? '')) throw new Error(`streamed ${JSON.stringify(deltas)}`);
  return { calls, text, ids: runner.messages.flatMap((message) => message.tool_calls ?? []).map((call) => call.id) };
}

// the AI SDK: steps until an answer has no call
async function aiSdk(stream, steps) {
  const { generateText, streamText, jsonSchema, stepCountIs, tool } = require('ai');
  const { createOpenAICompatible } = require('@ai-sdk/openai-compatible');
  const provider = createOpenAICompatible({ name: 'local', baseURL, transformRequestBody: (body) => ({ ...body, ...extra }) });
  const made = (execute, name) => tool({ description: `To ${name}.`, inputSchema: jsonSchema(schemas[name]), execute });
  const options = {
    model: provider('local'), prompt: question, tools: { add: made(add, 'add'), note: made(note, 'note') },
    stopWhen: stepCountIs(steps), maxRetries: 0,
  };
  if (!stream) {
    const found = await generateText(options);
    return { calls, text: found.text, ids: found.steps.flatMap((step) => step.toolCalls).map((call) => call.toolCallId) };
  }
  const found = streamText({ ...options, onError: ({ error }) => { throw error; } });
  let text = '';
  for await (const part of found.fullStream) {
    if (part.type === 'text-delta') text += part.text;
    if (part.type === 'error' || part.type === 'tool-error') throw part.error;
  }
  const ids = (await found.steps).flatMap((step) => step.toolCalls).map((call) => call.toolCallId);
  return { calls, text, ids };
}

const scenarios = {
  'openai': (steps) => runTools(false, steps),
  'openai streamed': (steps) => runTools(true, steps),
  'ai': (steps) => aiSdk(false, steps),
  'ai streamed': (steps) => aiSdk(true, steps),
};

console.log(JSON.stringify(await scenarios[scenario](Number(process.argv[6]))));

// A chat in the terminal over POST /completion. Node 16 or later, no packages.
//   node chat.mjs [--grammar FILE | --grammar-json-schema FILE [--grammar-json-schema-prop-order a,b,c]]
//                 [--no-cache-prompt] [--n-predict N]
// Environment: API_URL (http://127.0.0.1:8080), API_KEY (if the server wants a key).
//
// n_keep is the number of the instruction's tokens, so a full context drops the oldest turns first and keeps the
// instruction. All questions use the slot of the first answer, so the server computes only the new tokens. Node 16 has no
// fetch, hence `node:http`.

import http from 'node:http';
import https from 'node:https';
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { SchemaConverter } from '../public/json-schema-to-grammar.mjs';

const API_URL = (process.env.API_URL ?? 'http://127.0.0.1:8080').replace(/\/+$/, '');
const argument = (name) => {
  const at = process.argv.indexOf(name);
  return at < 0 ? undefined : process.argv[at + 1];
};

const INSTRUCTION =
  'The following is a talk between a human and a helpful assistant. The answers are short and correct.';
const talk = [
  { human: 'Good morning.', assistant: 'Good morning! What can I do for you?' },
  { human: 'Which planet is the largest one?', assistant: 'Jupiter is the largest planet of the solar system.' },
];

function grammar() {
  if (argument('--grammar')) return readFileSync(argument('--grammar'), 'utf-8');
  const file = argument('--grammar-json-schema');
  if (!file) return undefined;
  const order = (argument('--grammar-json-schema-prop-order') ?? '').split(',').filter(Boolean);
  const converter = new SchemaConverter(Object.fromEntries(order.map((name, i) => [name, i])));
  converter.visit(JSON.parse(readFileSync(file, 'utf-8')), '');
  return converter.formatGrammar();
}

// POST `body`; resolves to the response once its head has arrived.
function post(path, body) {
  const headers = { 'Content-Type': 'application/json' };
  if (process.env.API_KEY) headers.Authorization = `Bearer ${process.env.API_KEY}`;
  const client = API_URL.startsWith('https:') ? https : http;
  return new Promise((resolve, reject) => {
    client.request(API_URL + path, { method: 'POST', headers }, resolve)
      .on('error', reject).end(JSON.stringify(body));
  });
}

async function read(response) {
  let text = '';
  for await (const part of response.setEncoding('utf-8')) text += part;
  const answer = JSON.parse(text);
  if (response.statusCode !== 200) throw new Error(answer.error.message);
  return answer;
}

// Yields the objects of a stream's `data:` lines.
async function* chunks(response) {
  let rest = '';
  for await (const part of response.setEncoding('utf-8')) {
    const lines = (rest + part).split('\n');
    rest = lines.pop();
    for (const line of lines) if (line.startsWith('data: ')) yield JSON.parse(line.slice(6));
  }
}

const promptFor = (question) => [
  INSTRUCTION,
  ...talk.map((turn) => `### Human: ${turn.human}\n### Assistant: ${turn.assistant}`),
  `### Human: ${question}\n### Assistant:`,
].join('\n');

let slot = -1;

async function ask(question, fixed) {
  const response = await post('/completion', {
    prompt: promptFor(question), temperature: 0.2, top_k: 40, top_p: 0.9, stop: ['\n### Human:'],
    slot_id: slot, stream: true, ...fixed,
  });
  if (response.statusCode !== 200) await read(response);
  let answer = '';
  for await (const chunk of chunks(response)) {
    if (chunk.error) throw new Error(chunk.error.message);
    answer += chunk.content;
    process.stdout.write(chunk.content);
    if (chunk.stop) {
      slot = chunk.slot_id;
      if (chunk.truncated) talk.shift();
    }
  }
  process.stdout.write('\n');
  talk.push({ human: question, assistant: answer.trimStart() });
}

async function main() {
  const { tokens } = await read(await post('/tokenize', { content: INSTRUCTION }));
  const fixed = {
    n_keep: tokens.length, n_predict: Number(argument('--n-predict') ?? 256), grammar: grammar(),
    cache_prompt: !process.argv.includes('--no-cache-prompt'),
  };
  const lines = createInterface({ input: process.stdin, output: process.stdout, prompt: '> ' });
  lines.prompt();
  for await (const question of lines) {
    await ask(question, fixed);
    lines.prompt();
  }
}

main().catch((error) => {
  console.error(`error: ${error.message || error.code}`);
  process.exitCode = 1;
});

// Conversations in the form of llama-server's page: [{ conv, messages }]. They are converted to the form of
// transfer.js, whose reader checks them.

const isObject = (value) => value !== null && typeof value === 'object';

// Is `file` an export of llama-server's page?
export const isTheirs = (file) => [file].flat().some((one) => isObject(one) && isObject(one.conv) && Array.isArray(one.messages));

// Its file in this page's form. Messages of kind `root` only connect the tree, and the system prompt is a message.
export function fromTheirs(file) {
  const good = [file].flat().filter((one) => isObject(one?.conv) && Array.isArray(one.messages));
  return { chats: good.map(({ conv, messages }) => readConversation(conv, messages.filter(isObject))) };
}

function readConversation(conv, messages) {
  const parents = new Map(messages.map((one) => [one.id, one.parent]));
  const gone = new Set(messages.filter((one) => one.type === 'root' || one.role === 'system').map((one) => one.id));
  const parentOf = (id) => {
    const seen = new Set();
    let at = parents.get(id);
    for (; gone.has(at) && !seen.has(at); at = parents.get(at)) seen.add(at);
    return gone.has(at) ? null : at;
  };
  const { content: system = '' } = messages.find((one) => one.role === 'system' && one.content) ?? {};
  return {
    title: conv.name, created: messages[0]?.timestamp, changed: conv.lastModified, leaf: conv.currNode, system,
    messages: messages.filter((one) => !gone.has(one.id)).map((one) => readMessage(one, parentOf(one.id))),
  };
}

function readMessage(one, parent) {
  const { id, role, content, timestamp } = one;
  return {
    id, parent, role, content, time: timestamp, reasoning: one.reasoningContent ?? one.thinking, calls: readCalls(one.toolCalls),
    call: one.toolCallId, files: (Array.isArray(one.extra) ? one.extra : []).filter(isObject).map(readFile),
  };
}

function readCalls(text) {
  try {
    return JSON.parse(text).map((call) => ({ id: call.id, name: call.function?.name, arguments: call.function?.arguments }));
  } catch {
    return [];
  }
}

const KINDS = { IMAGE: 'image', imageFile: 'image', AUDIO: 'audio', audioFile: 'audio' };

function readFile({ type, name, content, base64Url, base64Data, mimeType }) {
  const kind = KINDS[type] ?? 'text';
  const data = { image: base64Url, audio: `data:${mimeType};base64,${base64Data}`, text: content }[kind];
  return { name, kind, data };
}

// Conversations as a file for llama-server's page.
export const toTheirs = (chats, messages) => JSON.stringify(chats.map((chat) => writeConversation(chat,
  messages.filter((message) => message.chat === chat.id))), null, 1);

function writeConversation(chat, messages) {
  const root = `${chat.id}-root`;
  const system = `${chat.id}-system`;
  const top = chat.system ? system : root;
  const rows = [
    { id: root, type: 'root', role: 'system', content: '', parent: null, time: chat.created },
    ...(chat.system ? [{ id: system, type: 'system', role: 'system', content: chat.system, parent: root, time: chat.created }] : []),
    ...messages.map((message) => ({ type: 'text', ...message, parent: message.parent ?? top })),
  ];
  return {
    conv: { id: chat.id, name: chat.title, lastModified: chat.changed, currNode: chat.leaf ?? top },
    messages: rows.map((row) => writeMessage(row, chat.id, rows)),
  };
}

function writeMessage(row, convId, rows) {
  const { id, type, role, content, parent, time, reasoning, calls, call, files } = row;
  return {
    id, convId, type, role, content, parent, timestamp: time,
    children: rows.filter((one) => one.parent === id).map((one) => one.id),
    ...(reasoning ? { thinking: reasoning, reasoningContent: reasoning } : {}),
    ...(calls?.length ? { toolCalls: JSON.stringify(calls.map((one) => ({ id: one.id, type: 'function', function: { name: one.name, arguments: one.arguments } }))) } : {}),
    ...(call ? { toolCallId: call } : {}),
    ...(files?.length ? { extra: files.map(writeFile) } : {}),
  };
}

function writeFile({ name, kind, data }) {
  if (kind === 'image') return { type: 'IMAGE', name, base64Url: data };
  if (kind === 'audio') return { type: 'AUDIO', name, mimeType: data.slice(5, data.indexOf(';')), base64Data: data.slice(data.indexOf(',') + 1) };
  return { type: 'TEXT', name, content: data };
}

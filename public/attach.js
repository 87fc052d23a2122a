// Files of a message: text files become part of its text; images and audio are sent unchanged if the model supports
// them. A file is { name, kind: text|image|audio, data }: data is the text, or a data: URL.

import { t } from './i18n.js';

const MAX_TEXT = 2 << 20;
const MAX_MEDIA = 20 << 20;
const AS_IT_IS = /^(image\/(png|jpeg|gif|bmp)|audio\/.*)$/;
const MEDIA_URL = /^data:(image\/(?:png|jpeg|gif|webp|bmp)|audio\/[\w.+-]+);base64,[A-Za-z0-9+/=]+$/;

// Read a File; throws with a message for the user. `modalities` is the object from /props.
export async function readFile(file, modalities) {
  const kind = file.type.startsWith('image/') && file.type !== 'image/svg+xml' ? 'image'
    : file.type.startsWith('audio/') ? 'audio' : 'text';
  const name = file.name || kind;
  if (file.size > (kind === 'text' ? MAX_TEXT : MAX_MEDIA)) throw new Error(t('file-too-large', { name }));
  if (kind === 'text') {
    const text = new TextDecoder().decode(await file.arrayBuffer());
    const odd = (text.match(/[\0\uFFFD]/g) ?? []).length;
    if (odd > text.length / 100) throw new Error(t('file-not-text', { name }));
    return { name, kind, data: text };
  }
  if (!modalities[kind === 'image' ? 'vision' : 'audio']) throw new Error(t(`no-${kind}`, { name }));
  try {
    return { name, kind, data: await (AS_IT_IS.test(file.type) ? dataUrl(file) : asPng(file)) };
  } catch {
    throw new Error(t('file-unreadable', { name }));
  }
}

const dataUrl = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = reject;
  reader.readAsDataURL(file);
});

// Convert images that the server can't decode (WebP, AVIF, ...).
async function asPng(file) {
  const picture = await createImageBitmap(file);
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [picture.width, picture.height];
  canvas.getContext('2d').drawImage(picture, 0, 0);
  picture.close();
  return canvas.toDataURL('image/png');
}

// Has this value of an import the form of `readFile`'s?
export const isFile = (file) => file !== null && typeof file === 'object' && typeof file.name === 'string'
  && typeof file.data === 'string' && (file.kind === 'text' || (['image', 'audio'].includes(file.kind) && MEDIA_URL.test(file.data)));

// A code fence longer than any in the text.
function fenced({ name, data }) {
  const longest = Math.max(2, ...(data.match(/`{3,}/g) ?? []).map((run) => run.length));
  const fence = '`'.repeat(longest + 1);
  return `${name}:\n${fence}\n${data}\n${fence}`;
}

// A message's text, after its text files.
export const fullText = (message) =>
  [...(message.files ?? []).filter((file) => file.kind === 'text').map(fenced), message.content].filter(Boolean).join('\n\n');

// `content` for the API: a string, or a list of parts when there are images or audio.
export function requestContent(message) {
  const text = fullText(message);
  const media = (message.files ?? []).filter((file) => file.kind !== 'text');
  if (!media.length) return text;
  const parts = media.map((file) => (file.kind === 'image'
    ? { type: 'image_url', image_url: { url: file.data } }
    : { type: 'input_audio', input_audio: { data: file.data.split(',')[1], format: /mp3|mpeg/.test(file.data.slice(0, 40)) ? 'mp3' : 'wav' } }));
  return [...parts, { type: 'text', text }];
}

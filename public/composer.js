// The box below the chat: text, files (button, drag and drop, paste), send and stop, the context bar.

import { grow, h, icon, iconButton, toast } from './dom.js';
import { readFile } from './attach.js';
import * as drafts from './drafts.js';
import { number, t } from './i18n.js';
import { withBidiShown } from './markdown.js';
import { prefs } from './prefs.js';
import * as store from './store.js';

const LONG_PASTE = 4000;        // characters; a longer paste becomes a file
const IS_TOUCH = matchMedia('(pointer: coarse)').matches;

export class Composer {
  #draft = 'new';                // the draft's key

  // on.send(text, files), on.stop(), on.prompts(). `dropZone` accepts dropped files; `quick` is a
  // control below, `modalities()` is from /props.
  constructor({ on, dropZone, quick, modalities }) {
    this.on = on;
    this.modalities = modalities;
    this.files = [];
    this.area = h('textarea', { id: 'chat-input', rows: 1, dir: 'auto', placeholder: t('ask'), 'aria-label': t('message'),
      oninput: () => this.#change(), onkeydown: (event) => this.#key(event), onpaste: (event) => this.#paste(event) });
    this.file = h('input', { type: 'file', id: 'attach-file', multiple: true, hidden: true, onchange: async () => {
      await this.add([...this.file.files]);
      this.file.value = '';
    } });
    this.chips = h('div', { class: 'files', hidden: true });
    this.send = h('button', { type: 'submit', id: 'chat-send', class: 'round main', 'aria-label': t('send'), title: t('send') }, icon('send'));
    this.stop = h('button', { type: 'button', id: 'chat-stop', class: 'round', 'aria-label': t('stop'), title: `${t('stop')} (Esc)`,
      hidden: true, onclick: () => on.stop() }, icon('stop'));
    this.meter = h('meter', { min: 0, max: 1, low: 0.75, high: 0.9, optimum: 0, 'aria-label': t('context') });
    this.meterText = h('span', { class: 'dim' });
    this.element = h('form', { id: 'composer', onsubmit: (event) => {
      event.preventDefault();
      this.#submit();
    } },
    this.chips,
    h('div', { class: 'row box' }, iconButton('clip', t('attach'), () => this.file.click()), this.file, this.area, this.stop, this.send),
    h('div', { class: 'row small' }, quick, h('button', { type: 'button', id: 'prompts', class: 'quiet', onclick: () => on.prompts() }, t('prompts')), h('span', { class: 'space' }), this.meter, this.meterText));
    this.#takeDrops(dropZone);
    this.#update();
    this.context(0, 0);
  }

  setRunning(isRunning) {
    this.stop.hidden = !isRunning;
    this.send.hidden = isRunning;
    this.isRunning = isRunning;
  }

  // Show how full the context is.
  context(used, size) {
    this.meter.hidden = !(used && size);
    this.meter.value = size ? used / size : 0;
    this.meterText.textContent = used && size ? t('context-used', { used: number(used), size: number(size) }) : '';
  }

  // Unless the user is typing elsewhere, or it would open a keyboard on the screen.
  focus() {
    if (!IS_TOUCH && !document.activeElement?.matches('input, textarea, dialog *')) this.area.focus();
  }

  // Restore a text that couldn't be sent.
  restore(text, files) {
    this.area.value = text;
    this.files = files;
    this.#change();
    this.#keepFiles();
  }

  // Insert a text at the cursor.
  insert(text) {
    const { selectionStart: start, selectionEnd: end } = this.area;
    this.area.setRangeText(text, start, end, 'end');
    this.#change();
    this.area.focus();
  }

  // Show the draft `key`.
  async use(key) {
    this.#draft = key;
    this.area.value = drafts.get(key);
    this.files = [];
    this.#update();
    const files = await store.draftFiles(key).catch(() => []);
    if (this.#draft !== key || !files.length) return;
    this.files.unshift(...files);
    this.#update();
  }

  // Keep the shown draft under `key` from now on.
  rename(key) {
    drafts.set(this.#draft, '');
    this.#draft = key;
    this.#change();
  }

  #change() {
    drafts.set(this.#draft, this.area.value);
    this.#update();
  }

  #keepFiles() {
    store.putDraftFiles(this.#draft, this.files).catch(() => {});
  }

  async add(files) {
    for (const file of files) {
      try {
        this.files.push(await readFile(file, this.modalities()));
      } catch (error) {
        toast(error.message, 'error');
      }
    }
    this.#update();
    this.#keepFiles();
  }

  #submit() {
    const text = this.area.value.trim();
    if (this.isRunning || (!text && !this.files.length)) return;
    const { files } = this;
    this.restore('', []);
    this.on.send(text, files);
  }

  #update() {
    grow(this.area);
    this.send.disabled = !this.area.value.trim() && !this.files.length;
    this.chips.hidden = !this.files.length;
    this.chips.replaceChildren(...this.files.map((file) => h('span', { class: 'chip' }, h('bdi', {}, withBidiShown(file.name)),
      iconButton('close', t('remove-file', { name: file.name }), () => {
        this.files = this.files.filter((one) => one !== file);
        this.#update();
        this.#keepFiles();
      }))));
  }

  // On touch screens, which have no Shift key, Enter makes a new line.
  #key(event) {
    if (event.key !== 'Enter' || event.isComposing) return;
    const wantsSend = event.ctrlKey || event.metaKey || (prefs.enterSends && !event.shiftKey && !IS_TOUCH);
    if (!wantsSend) return;
    event.preventDefault();
    this.#submit();
  }

  #paste(event) {
    const files = [...event.clipboardData.files];
    const text = event.clipboardData.getData('text/plain');
    // A long text would hide the message around it.
    if (!files.length && text.length > LONG_PASTE) files.push(new File([text], this.#pasteName(), { type: 'text/plain' }));
    if (!files.length) return;
    event.preventDefault();
    this.add(files);
  }

  #pasteName() {
    for (let n = 1; ; n++) {
      const name = `${t('pasted')}-${n}.txt`;
      if (!this.files.some((file) => file.name === name)) return name;
    }
  }

  #takeDrops(zone) {
    const hasFiles = (event) => event.dataTransfer?.types.includes('Files');
    zone.addEventListener('dragover', (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      zone.classList.add('drop');
    });
    for (const name of ['dragleave', 'drop']) zone.addEventListener(name, () => zone.classList.remove('drop'));
    zone.addEventListener('drop', (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      this.add([...event.dataTransfer.files]);
    });
  }
}

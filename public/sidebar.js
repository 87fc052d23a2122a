// The list of conversations: choose, search (titles and texts), rename, delete, import, export.

import { ask, download, field, h, iconButton, toast } from './dom.js';
import { date, t } from './i18n.js';
import { withBidiShown } from './markdown.js';
import * as store from './store.js';
import { Tree } from './tree.js';

const MAX_SNIPPETS = 3;         // for each conversation
const [BEFORE, AFTER] = [24, 80];       // characters around a match

// The searched text of a message.
const searchText = ({ content, reasoning = '', calls = [] }) =>
  [content, reasoning, ...calls.map((call) => `${call.name} ${call.arguments}`)].join('\n');

export class Sidebar {
  #query = '';
  #current = null;

  // on.choose(id), on.create(), on.removed(id) and on.renamed(chat); on.isRunning(id): is this tab writing an answer?
  constructor(on) {
    this.on = on;
    this.search = h('input', { type: 'search', placeholder: t('search'), 'aria-label': t('search-label'), oninput: () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.#search(), 150);
    }, onkeydown: (event) => {
      if (event.key !== 'Escape') return;
      this.search.value = '';
      this.#search();
    } });
    this.list = h('ul', { class: 'chats' });
    this.file = h('input', { type: 'file', id: 'import-file', accept: '.json,application/json', hidden: true,
      onchange: () => this.#import() });
    this.element = h('aside', { id: 'sidebar', 'aria-label': t('chats') },
      h('button', { type: 'button', id: 'new-chat', class: 'wide', onclick: () => on.create() }, t('new-chat')),
      this.search, this.list, this.file,
      h('div', { class: 'row' },
        h('button', { type: 'button', class: 'quiet', id: 'import', onclick: () => this.file.click() }, t('import')),
        h('button', { type: 'button', class: 'quiet', id: 'export', onclick: () => this.exportAll() }, t('export-all'))));
  }

  async refresh(current = this.#current) {
    this.#current = current;
    await this.#search();
  }

  // Search for `query` in titles and texts.
  find(query) {
    this.search.value = query;
    this.search.focus();
    this.#search();
  }

  async #search() {
    this.#query = this.search.value.trim().toLowerCase();
    let chats = (await store.allChats()).sort((a, b) => b.changed - a.changed);
    const found = new Map();                    // chat id -> snippets
    if (this.#query) {
      for (const message of await store.allMessages()) this.#find(message, found);
      chats = chats.filter((chat) => found.has(chat.id) || chat.title.toLowerCase().includes(this.#query));
    }
    this.list.replaceChildren(...chats.flatMap((chat) => [this.#row(chat), ...(found.get(chat.id) ?? [])]));
    if (!chats.length) this.list.append(h('li', { class: 'dim' }, t(this.#query ? 'nothing-found' : 'no-chats')));
  }

  // Add a link to `found` if the message contains the query.
  #find(message, found) {
    const text = searchText(message);
    const at = text.toLowerCase().indexOf(this.#query);
    if (at < 0) return;
    const rows = found.get(message.chat) ?? [];
    found.set(message.chat, rows);
    if (rows.length >= MAX_SNIPPETS) return;
    const end = at + this.#query.length;
    rows.push(h('li', { class: 'snippet' }, h('a', { href: `#chat/${message.chat}/${message.id}`, dir: 'auto' },
      at > BEFORE && '\u2026', text.slice(Math.max(0, at - BEFORE), at), h('mark', {}, text.slice(at, end)), text.slice(end, end + AFTER))));
  }

  #row(chat) {
    const isCurrent = chat.id === this.#current;
    const state = this.on.isRunning(chat.id) ? 'running' : chat.writing ? 'cut' : '';
    return h('li', { 'data-id': chat.id, class: `${isCurrent ? 'current' : ''} ${state}` },
      h('a', { href: `#chat/${chat.id}`, title: date(chat.changed), 'aria-current': isCurrent && 'page' },
        state && h('span', { class: 'mark', role: 'img', 'aria-label': t(`mark-${state}`), title: t(`mark-${state}`) }), h('bdi', {}, withBidiShown(chat.title))),
      iconButton('more', t('chat-actions', { name: chat.title }), () => this.#actions(chat), { 'aria-haspopup': 'dialog' }));
  }

  // A dialog to rename, export and delete.
  async #actions(chat) {
    const input = h('input', { type: 'text', maxlength: 200, value: chat.title, dir: 'auto' });
    const choice = (value, label, kind = '') => h('button', { type: 'submit', value, class: `wide ${kind}`, formnovalidate: true }, label);
    const answer = await ask(t('chat'), h('div', { class: 'settings' }, field(t('title'), input),
      h('div', { class: 'choices' }, choice('markdown', t('export-markdown')), choice('json', t('export-json')), choice('theirs', t('export-theirs')),
        choice('delete', t('delete-chat'), 'danger'))), [['', t('cancel')], ['ok', t('rename'), 'main']]);
    const place = [...this.list.children].findIndex((row) => row.dataset.id === chat.id);
    if (answer === 'ok' && input.value.trim()) {
      const latest = await store.getChat(chat.id);
      if (latest) await store.update(chat.id, { title: input.value.trim() });
      this.on.renamed({ ...chat, title: input.value.trim() });
    } else if (answer === 'delete') {
      const [whole, rows] = await Promise.all([store.getChat(chat.id), store.messagesOf(chat.id)]);
      this.on.removed(chat.id);
      await store.deleteChat(chat.id);
      toast(t('chat-removed', { name: chat.title }), 'note', [t('undo'), async () => {
        if (whole) await store.putAll([{ ...whole, writing: null }], rows);
        await this.refresh();
      }]);
    } else if (answer === 'json') {
      const { fileName, toJson } = await import('./transfer.js');
      download(fileName(chat.title, 'json'), toJson([chat], await store.messagesOf(chat.id)), 'application/json');
    } else if (answer === 'theirs') {
      const [{ fileName }, { toTheirs }] = await Promise.all([import('./transfer.js'), import('./peers.js')]);
      download(fileName(chat.title, 'json'), toTheirs([chat], await store.messagesOf(chat.id)), 'application/json');
    } else if (answer === 'markdown') {
      const { fileName, toMarkdown } = await import('./transfer.js');
      const tree = new Tree(await store.messagesOf(chat.id));
      download(fileName(chat.title, 'md'), toMarkdown(chat, tree.path(chat.leaf)), 'text/markdown');
    }
    await this.refresh();
    this.#focus(chat.id, place);
  }

  // The buttons of a conversation; if it is gone, those of the one in its place.
  #focus(id, place) {
    const rows = [...this.list.children];
    const row = rows.find((one) => one.dataset.id === id) ?? rows[Math.min(place, rows.length - 1)];
    row?.querySelector('button')?.focus();
  }

  async exportAll() {
    const { toJson } = await import('./transfer.js');
    const json = toJson(await store.allChats(), await store.allMessages());
    download(`llama_srv-${new Date().toISOString().slice(0, 10)}.json`, json, 'application/json');
  }

  async #import() {
    try {
      const { fromJson } = await import('./transfer.js');
      const { chats, messages } = fromJson(await this.file.files[0].text());
      await store.putAll(chats, messages);
      toast(t('imported', { n: chats.length }));
      if (chats.length) this.on.choose(chats[0].id);
    } catch (error) {
      toast(error.message, 'error');
    }
    this.file.value = '';
    await this.refresh();
  }
}

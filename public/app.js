// The page's start: waits for the server, makes the three views, and switches between them by the URL's hash
// (#chat, #chat/ID, #complete, #server). Everything on screen is built here and in the modules it imports.

import { get, health, isReady, sleep } from './api.js';
import { ChatView } from './chat.js';
import { CompleteView } from './complete.js';
import { h, iconButton, toast } from './dom.js';
import { t } from './i18n.js';
import { prefs, savePrefs } from './prefs.js';
import { ServerView } from './server.js';
import { openSettings } from './settings.js';
import { Sidebar } from './sidebar.js';
import { listen } from './store.js';

const WATCH_MS = 5000;
const NARROW = matchMedia('(max-width: 760px)');

class App {
  props = null;
  #isAsking = false;

  constructor() {
    this.chat = new ChatView({
      props: () => this.props,
      on: {
        changed: (id) => this.sidebar.refresh(id),
        opened: (id) => this.#opened(id),
        gone: () => this.#gone(),
      },
    });
    this.complete = new CompleteView();
    this.server = new ServerView();
    this.sidebar = new Sidebar({
      create: () => this.#newChat(),
      choose: (id) => { location.hash = `#chat/${id}`; },
      removed: (id) => { if (this.chat.removed(id)) this.#newChat(); },
      renamed: (chat) => this.chat.renamed(chat),
      isRunning: (id) => Boolean(this.chat.runs.get(id)),
    });
    this.views = { chat: this.chat, complete: this.complete, server: this.server };
    this.#build();
    this.#listen();
  }

  #build() {
    this.status = h('p', { id: 'status', role: 'status' }, t('connecting'));
    this.menu = iconButton('menu', t('toggle-chats'), () => this.#toggleSidebar(), { id: 'menu' });
    this.links = Object.fromEntries(['chat', 'complete', 'server'].map((name) =>
      [name, h('a', { href: `#${name}` }, t(name === 'complete' ? 'completion' : name))]));
    this.shade = h('div', { class: 'shade', onclick: () => this.#toggleSidebar(false) });
    this.main = h('main', { id: 'main', tabindex: -1 }, this.chat.element, this.complete.element, this.server.element);
    document.getElementById('app').replaceChildren(
      h('header', { class: 'bar' }, h('h1', { class: 'offscreen' }, 'llama_srv'), this.menu,
        h('nav', { 'aria-label': t('views') }, Object.values(this.links)),
        this.status,
        iconButton('gear', t('settings'), () => this.#settings(), { id: 'settings' })),
      this.sidebar.element, this.shade, this.main);
    this.#toggleSidebar(prefs.sidebar && !NARROW.matches);
    this.#applyTheme();
  }

  #listen() {
    window.addEventListener('hashchange', () => this.#route());
    window.addEventListener('prefs', () => this.#applyTheme());
    window.addEventListener('need-key', () => this.#settings());
    window.addEventListener('keydown', (event) => this.#key(event));
    listen(({ changed, deleted }) => (changed || deleted) && this.sidebar.refresh());
    // A file that misses its place must not replace the page.
    for (const name of ['dragover', 'drop']) window.addEventListener(name, (event) => event.preventDefault());
  }

  async start() {
    this.#route();
    this.sidebar.refresh();
    for (;;) {
      const isBack = await this.#waitForServer();
      if (isBack || !this.props) await this.#load();
      await sleep(WATCH_MS);
    }
  }

  // Returns once the server can answer; true if it couldn't before.
  async #waitForServer() {
    for (let n = 0; ; n++) {
      const state = await health();
      if (isReady(state)) {
        document.body.classList.remove('loading');
        if (n > 0 && this.props) this.#showModel();
        return n > 0;
      }
      const progress = state?.error?.progress;
      this.status.textContent = state === null ? t('offline')
        : progress === undefined ? state.error?.message ?? t('offline') : t('loading', { percent: Math.round(100 * progress) });
      this.status.classList.add('bad');
      if (!this.props) this.#showLoading(this.status.textContent, progress);
      await sleep(500);
    }
  }

  #showLoading(text, progress) {
    document.body.classList.add('loading');
    document.getElementById('loading-text').textContent = text;
    const bar = document.getElementById('loading-bar');
    bar.hidden = progress === undefined;
    bar.value = progress ?? 0;
  }

  async #load() {
    try {
      this.props = await get('props');
    } catch (error) {
      this.status.textContent = error.message;
      return;
    }
    this.#showModel();
    this.chat.ready();
    this.complete.ready(this.props);
    await this.server.ready(this.props).catch((error) => { this.status.textContent = error.message; });
  }

  #showModel() {
    this.status.textContent = this.props.model_alias.split(/[\\/]/).pop();
    this.status.title = this.props.model_path;
    this.status.classList.remove('bad');
  }

  #route() {
    const [name, id] = location.hash.slice(1).split('/');
    const view = name in this.views ? name : 'chat';
    for (const [key, one] of Object.entries(this.views)) {
      one.element.hidden = key !== view;
      if (key === view) this.links[key].setAttribute('aria-current', 'page');
      else this.links[key].removeAttribute('aria-current');
    }
    document.body.dataset.view = view;
    if (view === 'server') this.server.show();
    else this.server.hide();
    if (view === 'chat' && (this.chat.chat?.id !== id || !id)) this.chat.open(id ?? null);
    if (NARROW.matches) this.#toggleSidebar(false);
  }

  #opened(id) {
    const hash = id ? `#chat/${id}` : '#chat';
    if (document.body.dataset.view === 'chat' && location.hash !== hash) history.replaceState(null, '', hash);
    this.links.chat.href = hash;
    this.sidebar.refresh(id);
  }

  #gone() {
    toast(t('deleted-elsewhere'));
    this.#newChat();
  }

  #newChat() {
    document.activeElement?.blur();         // for the message field to take the focus
    if (location.hash === '#chat') this.chat.open(null);
    else location.hash = '#chat';
  }

  #toggleSidebar(isOpen = !document.body.classList.contains('with-sidebar')) {
    document.body.classList.toggle('with-sidebar', isOpen);
    this.menu.setAttribute('aria-expanded', String(isOpen));
    if (!NARROW.matches && prefs.sidebar !== isOpen) savePrefs({ sidebar: isOpen });
  }

  #applyTheme() {
    document.documentElement.dataset.theme = prefs.theme;
  }

  async #settings() {
    if (this.#isAsking) return;
    this.#isAsking = true;
    const isNewKey = await openSettings(this.props?.default_generation_settings);
    this.#isAsking = false;
    if (isNewKey) await this.#load();
  }

  #key(event) {
    if (document.querySelector('dialog[open]')) return;
    const isCommand = event.ctrlKey || event.metaKey;
    if (event.key === 'Escape') {
      this.chat.stop();
      this.complete.stop();
      if (NARROW.matches) this.#toggleSidebar(false);
    } else if (isCommand && event.key.toLowerCase() === 'k') {
      event.preventDefault();
      this.#toggleSidebar(true);
      // The field can take the focus only once its view is shown.
      if (document.body.dataset.view !== 'chat') {
        window.addEventListener('hashchange', () => this.sidebar.search.focus(), { once: true });
        location.hash = this.links.chat.hash;
      } else this.sidebar.search.focus();
    } else if (event.altKey && event.code === 'KeyN') {
      event.preventDefault();
      this.#newChat();
    } else if (event.altKey && ['1', '2', '3'].includes(event.key)) {
      event.preventDefault();
      location.hash = Object.values(this.links)[event.key - 1].hash;
    }
  }
}

new App().start();

// The page's start: waits for the server, makes the three views, and switches between them by the URL's hash
// (#chat, #chat/ID, #complete, #server). This module and its imports build all elements. Modules that a chat doesn't
// need are imported on demand.

import { errorText, get, health, isReady, sleep } from './api.js';
import { ChatView } from './chat.js';
import { ask, field, h, iconButton, toast } from './dom.js';
import { t } from './i18n.js';
import { prefs, savePrefs } from './prefs.js';
import { Sidebar } from './sidebar.js';
import { allChats, listen } from './store.js';

const WATCH_MS = 5000;
const NARROW = matchMedia('(max-width: 760px)');
const LATER = {
  complete: async () => new (await import('./complete.js')).CompleteView(),
  server: async () => new (await import('./server.js')).ServerView(),
};

class App {
  props = null;
  #isAsking = false;
  #declined = null;             // the key that the user declined to replace
  #view = null;                 // promise of the view that the URL names

  constructor() {
    this.chat = new ChatView({
      props: () => this.props,
      on: {
        changed: () => this.#changed(),
        opened: (id) => this.#opened(id),
        gone: () => this.#gone(),
        forked: (id) => { location.hash = `#chat/${id}`; },
      },
    });
    this.sidebar = new Sidebar({
      create: () => this.#newChat(),
      choose: (id) => { location.hash = `#chat/${id}`; },
      removed: (id) => { if (this.chat.removed(id)) this.#newChat(); },
      renamed: (chat) => {
        this.chat.renamed(chat);
        this.#showTitle();
      },
      isRunning: (id) => Boolean(this.chat.runs.get(id)),
    });
    this.views = { chat: this.chat };
    this.#build();
    this.#listen();
  }

  #build() {
    this.status = h('p', { id: 'status', role: 'status' }, t('connecting'));
    this.menu = iconButton('menu', t('toggle-chats'), () => this.#toggleSidebar(), { id: 'menu' });
    this.keyButton = h('button', { type: 'button', id: 'enter-key', hidden: true, onclick: () => this.#askKey(true) }, t('key-enter'));
    this.links = Object.fromEntries(['chat', 'complete', 'server'].map((name) =>
      [name, h('a', { href: `#${name}` }, t(name === 'complete' ? 'completion' : name))]));
    this.shade = h('div', { class: 'shade', onclick: () => this.#toggleSidebar(false) });
    this.main = h('main', { id: 'main', tabindex: -1 }, this.chat.element);
    document.getElementById('app').replaceChildren(
      h('header', { class: 'bar' }, h('h1', { class: 'offscreen' }, 'llama_srv'), this.menu,
        h('nav', { 'aria-label': t('views') }, Object.values(this.links)),
        this.status, this.keyButton,
        iconButton('search', `${t('palette')} (Ctrl K)`, () => this.#palette(), { id: 'find' }),
        iconButton('gear', t('settings'), () => this.#settings(), { id: 'settings' })),
      this.sidebar.element, this.shade, this.main);
    this.#toggleSidebar(prefs.sidebar && !NARROW.matches);
    this.#applyTheme();
  }

  #listen() {
    window.addEventListener('hashchange', () => this.#route());
    let key = prefs.apiKey;
    window.addEventListener('prefs', () => {
      this.#applyTheme();
      if (prefs.apiKey !== key) this.#load();
      key = prefs.apiKey;
    });
    window.addEventListener('need-key', () => this.#askKey());
    window.addEventListener('keydown', (event) => this.#key(event));
    listen(({ changed, deleted }) => (changed || deleted) && this.sidebar.refresh());
    // A file dropped outside of its target must not replace the page.
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

  // Returns once the server is ready; true if it wasn't before.
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
      this.status.textContent = errorText(error);
      this.status.classList.add('bad');
      return;
    }
    this.keyButton.hidden = true;
    if (this.props.role === 'router') await this.#chooseModel();
    await this.#view;
    for (const view of Object.values(this.views)) this.#ready(view);
    this.#showModel();
  }

  // The server has several models: show the one in use, and load its properties.
  async #chooseModel() {
    if (!this.picker) {
      const { ModelPicker } = await import('./models.js');
      this.picker = new ModelPicker({
        onchoose: (model) => {
          savePrefs({ model });
          this.chat.setModel(model);
          this.#load();
        },
        onloaded: () => this.#load(),
      });
      this.status.before(this.picker.element);
      await this.picker.refresh();
    }
    this.picker.use(this.chat.chat.model || prefs.model);
    const model = this.picker.current;
    const own = this.picker.isUp ? await get(`props?model=${encodeURIComponent(model)}`).catch(() => ({})) : {};
    this.props = { ...this.props, ...own, model };
  }

  async #ready(view) {
    try {
      await view.ready(this.props);
    } catch (error) {
      this.status.textContent = errorText(error);
    }
  }

  // The view `name`; makes it if needed.
  async #make(name) {
    if (this.views[name]) return this.views[name];
    const view = await LATER[name]();
    if (this.views[name]) return this.views[name];
    this.views[name] = view;
    view.element.hidden = true;
    this.main.append(view.element);
    if (this.props) await this.#ready(view);
    return view;
  }

  #showModel() {
    this.status.textContent = this.picker ? '' : this.props.model_alias.split(/[\\/]/).pop();
    this.status.title = this.props.model_path;
    this.status.classList.remove('bad');
  }

  async #route() {
    const [name, id, message] = location.hash.slice(1).split('/');
    const view = name in this.links ? name : 'chat';
    this.#view = this.#show(view);
    await this.#view;             // the message field can get the focus only once it is visible
    if (view === 'chat' && (this.chat.chat?.id !== id || !id || message)) this.chat.open(id ?? null, message);
    if (NARROW.matches) this.#toggleSidebar(false);
  }

  async #show(name) {
    document.body.dataset.view = name;
    for (const [key, link] of Object.entries(this.links)) {
      if (key === name) link.setAttribute('aria-current', 'page');
      else link.removeAttribute('aria-current');
    }
    this.#showTitle();
    try {
      await this.#make(name);
    } catch (error) {
      toast(error.message, 'error');
    }
    const { view } = document.body.dataset;
    for (const [key, one] of Object.entries(this.views)) {
      one.element.hidden = key !== view;
      if (key === view) one.show?.();
      else one.hide?.();
    }
  }

  // Set the tab's title: the view, and whether an answer is being written.
  #showTitle() {
    const { view } = document.body.dataset;
    const name = view === 'chat' ? this.chat.chat.title || t('new-chat') : this.links[view].textContent;
    document.title = `${this.chat.isRunning() ? '\u25cf ' : ''}${name} \u2013 llama_srv`;
  }

  #changed() {
    this.picker?.refresh();
    this.#showTitle();
    this.sidebar.refresh();
  }

  #opened(id) {
    const hash = id ? `#chat/${id}` : '#chat';
    if (document.body.dataset.view === 'chat' && location.hash !== hash) history.replaceState(null, '', hash);
    this.links.chat.href = hash;
    if (this.picker && this.chat.chat.model && this.chat.chat.model !== this.picker.current) this.#load();
    this.#showTitle();
    this.sidebar.refresh(id);
  }

  #gone() {
    toast(t('deleted-elsewhere'));
    this.#newChat();
  }

  #newChat() {
    document.activeElement?.blur();         // so that the message field gets the focus
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

  // A searchable list of conversations, prompts, settings and actions.
  async #palette() {
    if (document.querySelector('dialog[open]')) return;
    const [{ openPalette }, { settingNames }] = await Promise.all([import('./palette.js'), import('./settings.js')]);
    const item = (kind, label, run, more = '') => ({ kind: t(kind), label, more, run });
    const chats = (await allChats()).sort((a, b) => b.changed - a.changed);
    openPalette([
      ...this.#actions().map(([label, run]) => item('action', label, run)),
      ...chats.map(({ id, title }) => item('chat', title, () => { location.hash = `#chat/${id}`; })),
      ...Object.entries(prefs.prompts).map(([name, text]) => item('prompt', name, () => this.#inChat(() => this.chat.usePrompt(name)), text)),
      ...settingNames().map(([name, label, help]) => item('setting', label, () => this.#settings(name), help)),
    ], (query) => item('search', t('search-texts', { query }), () => this.#inChat(() => {
      this.#toggleSidebar(true);
      this.sidebar.find(query);
    })));
  }

  #actions() {
    return [
      [t('new-chat'), () => this.#newChat()],
      ...Object.keys(this.links).map((name) => [t(`go-${name}`), () => { location.hash = this.links[name].hash; }]),
      [t('prompts'), () => this.#inChat(() => this.chat.openPrompts())],
      [t('settings'), () => this.#settings()],
      [t('stop'), () => this.chat.stop()],
      [t('toggle-chats'), () => this.#inChat(() => this.#toggleSidebar())],
      [t('import'), () => this.#inChat(() => this.sidebar.file.click())],
      [t('export-all'), () => this.sidebar.exportAll()],
      ...['system', 'light', 'dark'].map((theme) => [`${t('theme')}: ${t(`theme-${theme}`)}`, () => savePrefs({ theme })]),
    ];
  }

  // Do something that needs the chat view.
  async #inChat(work) {
    if (document.body.dataset.view !== 'chat') {
      location.hash = this.links.chat.hash;
      await new Promise((resolve) => { window.addEventListener('hashchange', () => setTimeout(resolve), { once: true }); });
    }
    await work();
  }

  async #settings(name = '') {
    if (this.#isAsking) return;
    this.#isAsking = true;
    try {
      const { openSettings } = await import('./settings.js');
      await openSettings(this.props?.default_generation_settings, name);
    } finally {
      this.#isAsking = false;
    }
  }

  // The server needs another key. Ask once, but not while the user is typing; after that show a button in the bar.
  // `isWanted`: the user pressed it.
  async #askKey(isWanted = false) {
    this.keyButton.hidden = false;
    const isTyping = document.activeElement?.matches('input, textarea') && document.activeElement.value;
    const isOpen = document.querySelector('dialog[open]');
    if (this.#isAsking || isOpen || (!isWanted && (isTyping || this.#declined === prefs.apiKey))) return;
    this.#isAsking = true;
    this.#declined = prefs.apiKey;
    const input = h('input', { type: 'password', autocomplete: 'off', id: 'api-key', value: prefs.apiKey });
    const answer = await ask(t('api-key'), [h('p', {}, t(prefs.apiKey ? 'key-wrong' : 'key-missing')), field(t('api-key'), input)],
      [['', t('cancel')], ['ok', t('save'), 'main']]);
    this.#isAsking = false;
    if (answer === 'ok') savePrefs({ apiKey: input.value.trim() });
  }

  #key(event) {
    if (document.querySelector('dialog[open]')) return;
    const isCommand = event.ctrlKey || event.metaKey;
    if (event.key === 'Escape') {
      // Inside a text field the key belongs to the field.
      if (event.target.matches('input, select, textarea') && !['chat-input', 'prompt'].includes(event.target.id)) return;
      for (const view of Object.values(this.views)) view.stop?.();
      if (NARROW.matches) this.#toggleSidebar(false);
    } else if (isCommand && event.key.toLowerCase() === 'k') {
      event.preventDefault();
      this.#palette();
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

// The chat view: one conversation's messages, and the work on them: send, answer, edit, branch, continue, delete.
//
// A conversation that is being answered stays in `runs` with its tree, so the user may look at another one meanwhile.
// Only the shown conversation is drawn, including changes by other tabs.

import { errorText } from './api.js';
import { grow, h, iconButton, toast } from './dom.js';
import { Composer } from './composer.js';
import * as drafts from './drafts.js';
import { requestBody, toMessages } from './generate.js';
import { t } from './i18n.js';
import { MessageView } from './message.js';
import { Pages } from './pages.js';
import { Pen } from './pen.js';
import { prefs } from './prefs.js';
import { addTail, isWrittenElsewhere, Runs } from './runs.js';
import { SamplingBox } from './sampling.js';
import { Scroller } from './scroll.js';
import * as store from './store.js';
import { readTools, ToolsBox } from './tools.js';
import { Tree } from './tree.js';

const NEW = 'new';              // the draft's key in a conversation that isn't stored yet

export class ChatView {
  #views = new Map();           // message id -> MessageView
  #opening = 0;
  #isNew = true;                // not stored yet
  #elsewhere = null;            // id of the answer that another tab is writing

  // `props()` returns /props or null. on.changed(id): the list of conversations has changed; on.opened(id);
  // on.forked(id): a fork was made; on.gone(): another tab has deleted the shown one.
  constructor({ props, on }) {
    this.props = props;
    this.on = on;
    this.runs = new Runs((id) => this.on.changed(id));
    this.system = h('textarea', { id: 'system', rows: 2, dir: 'auto', placeholder: t('system-hint'), 'aria-label': t('system'),
      oninput: () => this.#typeSystem(), onchange: () => this.#setFields({ system: this.system.value }) });
    this.systemStart = h('bdi', { class: 'start' });
    this.systemBox = h('details', { class: 'system-box', ontoggle: () => grow(this.system) },
      h('summary', {}, t('system'), ' ', this.systemStart), this.system);
    this.tools = new ToolsBox((source) => this.#setFields({ tools: source }));
    this.sampling = new SamplingBox((sampling) => this.#setFields({ sampling }), () => this.props()?.default_generation_settings);
    this.log = h('div', { id: 'log', role: 'log', 'aria-label': t('conversation'), 'aria-live': 'off' });
    this.pages = new Pages(this.log, { path: () => this.#path, element: (message) => this.#view(message).element,
      forget: (id) => this.#views.delete(id), changed: () => this.#settle() });
    this.welcome = h('div', { class: 'welcome' });
    this.notice = h('p', { class: 'notice', role: 'status' });
    this.toEnd = iconButton('down', t('to-end'), () => this.#toEnd(), { class: 'round to-end', hidden: true });
    const column = h('div', { class: 'column' },
      h('div', { class: 'boxes' }, this.systemBox, this.tools.element, this.sampling.element), this.pages.earlier, this.welcome, this.log, this.pages.later, this.notice);
    this.scroller = h('div', { class: 'scroller', role: 'region', tabindex: 0, 'aria-label': t('conversation') }, column);
    this.element = h('section', { class: 'view chat', 'aria-label': t('chat') });
    this.composer = new Composer({
      dropZone: this.element,
      quick: this.sampling.quick,
      modalities: () => this.props()?.modalities ?? {},
      on: { send: (text, files) => this.#send(text, files), stop: () => this.stop(), prompts: () => this.openPrompts() },
    });
    this.element.append(this.scroller, this.toEnd, this.composer.element);
    this.scroll = new Scroller(this.scroller, column, () => this.log.children, (isAtEnd) => { this.toEnd.hidden = isAtEnd; },
      () => this.pages.hasEnd);
    this.#start();
    this.pages.watch(this.scroller);
    store.listen((note) => this.#hear(note));
  }

  // Show the conversation `id`, or a new one, at its end or at the message `target`.
  async open(id, target = null) {
    const turn = ++this.#opening;
    const running = this.runs.get(id);
    const [chat, rows] = id ? await Promise.all([store.getChat(id), running ? [] : store.messagesOf(id)]) : [];
    if (turn !== this.#opening) return;
    this.#start(chat, running?.tree ?? new Tree(rows));
    this.#showFields();
    for (const box of [this.systemBox, this.tools.element, this.sampling.element]) box.open = false;
    this.composer.use(this.#key);
    if (target && !this.#path.some((message) => message.id === target)) this.chat.leaf = this.tree.newestLeaf(target);
    this.#draw(target);
    if (this.#views.has(target)) this.scroll.to(this.#views.get(target).element);
    else this.scroll.toEnd();
    this.composer.focus();
    this.on.opened(chat ? id : null);
    if (!running && chat?.writing) await this.#resume(chat.writing);
  }

  // Switch to a conversation, or to a new one, which is stored with its first message.
  #start(chat, tree = new Tree()) {
    this.#isNew = !chat;
    this.#elsewhere = null;
    this.chat = chat ?? {
      id: store.newId(), title: '', created: Date.now(), changed: Date.now(), leaf: null,
      system: drafts.get(`${NEW}.system`) || prefs.system, tools: drafts.get(`${NEW}.tools`),
      sampling: JSON.parse(drafts.get(`${NEW}.sampling`) || '{}'), model: prefs.model,
    };
    this.tree = tree;
  }

  get #key() {
    return this.#isNew ? NEW : this.chat.id;
  }

  // Continue an answer that a closed page was writing, unless another tab writes it.
  async #resume(id) {
    const chatId = this.chat.id;
    const isElsewhere = await isWrittenElsewhere(id);
    const message = this.tree.messages.get(id);
    if (this.chat.id !== chatId || this.runs.get(chatId) || !message) return;
    this.#elsewhere = isElsewhere ? id : null;
    if (isElsewhere) {
      this.#views.get(id)?.setBusy(true);
      return;
    }
    addTail(message);
    this.#views.get(id)?.draw();
    await this.#answer(message, true);
  }

  // The server's properties are known, or have changed.
  ready() {
    const name = this.props().model ?? this.props().model_alias.split(/[\\/]/).pop();
    this.welcome.replaceChildren(h('h2', {}, t('welcome')), h('p', {}, t('welcome-model', { name })));
    this.#drawContext();
  }

  isRunning() {
    return Boolean(this.runs.get(this.chat.id));
  }

  // Use another model from now on.
  setModel(model) {
    this.#setFields({ model });
  }

  // Show the list of saved prompts, to use one or to save the message as one.
  async openPrompts() {
    const { openPrompts } = await import('./prompts.js');
    await openPrompts((name) => this.usePrompt(name), () => this.composer.area.value.trim());
  }

  async usePrompt(name) {
    const { fillPrompt } = await import('./prompts.js');
    const text = await fillPrompt(name);
    if (text !== null) this.composer.insert(text);
  }

  stop() {
    this.runs.stop(this.chat.id);
  }

  // The conversation `id` was deleted.
  removed(id) {
    this.runs.stop(id);
    return id === this.chat.id;
  }

  renamed(chat) {
    if (chat.id === this.chat.id) this.chat.title = chat.title;
  }

  // -- other tabs

  #hear({ changed, deleted, left }) {
    if (left && left === this.#elsewhere) this.#resume(left);
    if (deleted === 'all' || (deleted && deleted === this.chat.id)) {
      this.runs.stop(this.chat.id);
      if (!this.#isNew) this.on.gone();
    } else if (changed && changed === this.chat.id) this.#follow();
  }

  // Draw another tab's changes of the shown conversation. The shown version stays; only messages after it are added.
  async #follow() {
    const [chat, rows] = await Promise.all([store.getChat(this.chat.id), store.messagesOf(this.chat.id)]);
    if (!chat || chat.id !== this.chat.id) return;
    const { leaf } = this.chat;
    const running = this.runs.get(chat.id);
    const before = this.#path.map((message) => message.id);
    const fresh = new Tree(rows.map((row) => (row.id === running?.message.id ? running.message : row)));
    if (running) {
      for (const row of rows) if (!this.tree.messages.has(row.id)) this.tree.add(row);
      return;
    }
    this.tree = fresh;
    const goesOn = fresh.path(chat.leaf).some((message) => message.id === leaf) || !fresh.messages.has(leaf);
    this.chat = { ...chat, leaf: goesOn ? chat.leaf : leaf };
    if (!this.element.contains(document.activeElement?.closest('.boxes'))) this.#showFields();
    const isWriting = chat.writing !== null && fresh.messages.has(chat.writing);
    this.#elsewhere = isWriting ? chat.writing : null;
    this.#redrawPath(before);
    for (const [id, view] of this.#views) view.setBusy(id === this.#elsewhere);
    this.#askForResults();
  }

  // Draw the path again where it differs from the earlier one, `before` (ids).
  #redrawPath(before) {
    const path = this.#path;
    const isLonger = before.every((id, i) => path[i]?.id === id);
    if (!isLonger || !before.length) {
      if (!this.log.querySelector('.editing')) this.#draw();
      return;
    }
    for (const message of path.slice(0, before.length)) {
      const view = this.#views.get(message.id);
      if (!view) continue;
      const isSame = JSON.stringify(view.message) === JSON.stringify(message);
      view.message = message;
      if (!isSame) view.draw(message.id !== this.#elsewhere);
      view.setVersions(this.tree.versions(message));
    }
    this.pages.follow(before.length);            // doesn't move a user who reads further up
    this.#drawContext();
  }

  // -- drawing

  get #path() {
    return this.tree.path(this.chat.leaf);
  }

  #showFields() {
    this.system.value = this.chat.system;
    this.tools.source = this.chat.tools ?? '';
    this.sampling.values = this.chat.sampling ?? {};
    this.#drawSystemStart();
  }

  #drawSystemStart() {
    this.systemStart.textContent = this.system.value.trim().slice(0, 200);
  }

  // Draw the last messages; those around `target` if that is further up.
  #draw(target = null) {
    this.#views.clear();
    this.pages.draw(target);
    this.welcome.hidden = this.#path.length > 0;
    const running = this.runs.get(this.chat.id);
    this.composer.setRunning(Boolean(running));
    this.#views.get(running?.message.id)?.setBusy(true);
    this.#askForResults();
    this.#notify('');
    this.#drawContext();
  }

  // The last message's calls can be answered, unless it is being written or was cut off.
  #askForResults() {
    const last = this.#path.at(-1);
    const isOpen = last?.calls?.length > 0 && !isCut(last) && !this.runs.get(this.chat.id) && last.id !== this.#elsewhere;
    for (const [id, view] of this.#views) view.calls.ask(Boolean(isOpen) && id === last.id);
  }

  // After more messages were drawn: update them, and keep the scroll position.
  #settle() {
    this.#views.get(this.runs.get(this.chat.id)?.message.id)?.setBusy(true);
    this.#askForResults();
    this.scroll.settle();
  }

  #toEnd() {
    if (!this.pages.hasEnd) this.#draw();
    this.scroll.toEnd();
  }

  #view(message) {
    const view = new MessageView(message, this.tree.versions(message), {
      edit: (one, text) => this.#edit(one, text),
      regenerate: (one) => this.#regenerate(one),
      go: (one) => this.#answer(one),
      remove: (one) => this.#remove(one),
      version: (one, step) => this.#switch(one, step),
      answerCalls: (one, results) => this.#answerCalls(one, results),
      fork: (one) => this.#fork(one),
      showRequest: (one) => this.#showRequest(one),
      showVersions: () => this.#showVersions(),
      why: (one) => this.#why(one),
      branch: (one, text, parts) => this.#branch(one, text, parts),
    });
    this.#views.set(message.id, view);
    return view;
  }

  // Draw the last `n` messages of the path, which were added.
  #append(n = 1) {
    this.welcome.hidden = true;
    if (!this.pages.follow(this.#path.length - n)) this.#draw();
  }

  #notify(text, fraction = null) {
    this.notice.replaceChildren(text, ...(fraction === null ? [] : [h('progress', { max: 1, value: fraction, 'aria-label': text })]));
    this.notice.hidden = !text;
  }

  #drawContext() {
    const used = this.#path.findLast((message) => message.used)?.used ?? 0;
    this.composer.context(used, this.props()?.default_generation_settings.n_ctx ?? 0);
  }

  // -- what the user does

  async #send(text, files) {
    if (!this.#canAnswer()) {
      this.composer.restore(text, files);
      return;
    }
    this.composer.setRunning(true);             // now, or a second Enter would send twice
    const parent = this.#path.at(-1)?.id ?? null;
    if (!this.chat.title) this.chat.title = (text || files[0].name).split('\n')[0].slice(0, 60);
    const message = this.#add({ parent, role: 'user', content: text, files });
    this.#append();
    try {
      await this.#save(message);
    } catch (error) {
      this.composer.setRunning(false);
      toast(error.message, 'error');
      return;
    }
    this.on.opened(this.chat.id);
    await this.#answerTo(message);
  }

  async #edit(message, text) {
    if (!this.#canAnswer()) return;
    const path = this.#path;
    const { id, chat, time, speed, used, error, finish, parts, ...kept } = message;
    const edited = [this.#add({ ...kept, content: text })];
    // The results of the answer's other calls stay.
    if (message.role === 'tool') {
      for (let i = path.indexOf(message) + 1; path[i]?.role === 'tool'; i++) {
        edited.push(this.#add({ ...path[i], parent: edited.at(-1).id }));
      }
    }
    await this.#save(...edited);
    this.#draw();
    if (message.role !== 'assistant') await this.#answerTo(edited.at(-1));
  }

  // Continue with the tools' results, one text for each call.
  async #answerCalls(message, results) {
    if (!this.#canAnswer()) return;
    const rows = [];
    message.calls.forEach((call, i) => {
      rows.push(this.#add({ parent: rows.at(-1)?.id ?? message.id, role: 'tool', call: call.id, name: call.name, content: results[i] }));
    });
    await this.#save(...rows);
    this.#append(rows.length);
    await this.#answerTo(rows.at(-1));
  }

  async #regenerate(message) {
    if (!this.#canAnswer()) return;
    const fresh = this.#add({ parent: message.parent, role: 'assistant', content: '' });
    this.#draw();
    this.scroll.toEnd();
    await this.#answer(fresh);
  }

  // Add a version of an answer that continues `text`.
  async #branch(message, text, parts) {
    if (!this.#canAnswer()) return;
    const { reasoning, thought } = message;
    const fresh = this.#add({ parent: message.parent, role: 'assistant', content: text, parts, ...(reasoning ? { reasoning, thought } : {}) });
    this.#draw();
    await this.#answer(fresh);
  }

  // Show the tree of all versions, then the chosen one.
  async #showVersions() {
    const { askVersion } = await import('./versions.js');
    const id = await askVersion(this.tree, this.chat.leaf);
    if (!id || this.#isBusy()) return;
    this.chat.leaf = this.tree.newestLeaf(id);
    await this.#save();
    this.#draw(id);
    this.scroll.to(this.#views.get(id).element);
  }

  async #answerTo(message) {
    const answer = this.#add({ parent: message.id, role: 'assistant', content: '' });
    this.#append();
    this.scroll.toEnd();
    await this.#answer(answer);
  }

  async #switch(message, step) {
    if (this.#isBusy()) return;
    const versions = this.tree.versions(message);
    const other = versions[versions.findIndex((one) => one.id === message.id) + step];
    if (!other) return;
    this.chat.leaf = this.tree.newestLeaf(other.id);
    await this.#save();
    const top = this.scroller.scrollTop;
    this.#draw();
    this.scroller.scrollTop = top;
    this.#views.get(other.id)?.element.querySelector('.versions button:enabled')?.focus();
  }

  async #remove(message) {
    if (this.#isBusy()) return;
    const { chat, tree } = this;
    const { leaf } = chat;
    const rows = tree.below(message.id).map((id) => tree.messages.get(id));
    tree.remove(message.id);
    const sibling = tree.versions(message).at(-1);
    chat.leaf = sibling ? tree.newestLeaf(sibling.id) : message.parent;
    await store.deleteMessages(chat.id, rows.map((row) => row.id), { leaf: chat.leaf });
    this.#draw();
    toast(t(rows.length > 1 ? 'removed-below' : 'removed-one', { n: rows.length - 1 }), 'note', [t('undo'), async () => {
      if (!await store.update(chat.id, { leaf }, rows)) return;
      if (this.chat.id === chat.id) await this.open(chat.id);
    }]);
  }

  #typeSystem() {
    grow(this.system);
    this.#drawSystemStart();
    if (this.#isNew) drafts.set(`${NEW}.system`, this.system.value);
  }

  // Store changed fields of the conversation; those of a new one beside its draft.
  async #setFields(fields) {
    Object.assign(this.chat, fields);
    if (!this.#isNew) await store.update(this.chat.id, fields);
    else for (const [name, value] of Object.entries(fields)) drafts.set(`${NEW}.${name}`, typeof value === 'string' ? value : JSON.stringify(value));
  }

  #isBusy() {
    const isBusy = Boolean(this.runs.get(this.chat.id)) || Boolean(this.#elsewhere);
    if (isBusy) toast(t('still-running'));
    return isBusy;
  }

  // Can an answer begin now? If not, tell the user why.
  #canAnswer() {
    return !this.#isBusy() && this.tools.isGood() && this.sampling.isGood();
  }

  #add(fields) {
    const message = { ...fields, id: store.newId(), chat: this.chat.id, time: Date.now() };
    this.tree.add(message);
    this.chat.leaf = message.id;
    return message;
  }

  // Store `rows` and the shown message; the first time the whole conversation.
  async #save(...rows) {
    const { chat } = this;
    chat.changed = Date.now();
    await store.update(chat.id, { leaf: chat.leaf, changed: chat.changed }, rows, this.#isNew ? chat : null);
    if (this.#isNew) {
      for (const name of ['system', 'tools', 'sampling']) drafts.set(`${NEW}.${name}`, '');
      this.#isNew = false;
      this.composer.rename(chat.id);
    }
    this.on.changed(chat.id);
  }

  // -- the answer

  // Generate into `message`, after its text; `isResumed`: by its earlier stream.
  async #answer(message, isResumed = false) {
    if (!this.#canAnswer()) return;
    const { chat, tree } = this;
    if (!isResumed) delete message.asked;
    const isShown = () => this.chat.id === chat.id;
    const pen = new Pen(() => this.#redraw(message, isShown));
    const request = this.#request(message);
    this.composer.setRunning(true);
    this.#views.get(message.id)?.setBusy(true);
    this.#askForResults();
    await this.runs.run({
      chat, tree, message,
      request: { ...request, on: this.#listener(message, pen, isShown) },
    });
    pen.lift();
    if (isShown()) this.#finish(message);
  }

  // The request for `message`.
  #request(message) {
    const { system, tools, sampling } = this.chat;
    const { model } = this.props() ?? {};
    return { messages: toMessages(system, this.tree.path(message.parent)), tools: readTools(tools ?? ''), sampling: { ...(model ? { model } : {}), ...prefs.sampling, ...sampling }, keepsTokens: prefs.keepsTokens };
  }

  async #showRequest(message) {
    const { showRequest } = await import('./request.js');
    const { content, reasoning, calls, finish, speed } = message;
    await showRequest(requestBody(this.#request(message)), { content, reasoning, calls, finish, speed });
  }

  async #why(message) {
    const { showWhy } = await import('./why.js');
    await showWhy(requestBody(this.#request(message)), message.content);
  }

  // Make a new conversation of this one up to `message`.
  async #fork(message) {
    const chat = { ...this.chat, id: store.newId(), title: t('fork-of', { name: this.chat.title }), created: Date.now(), changed: Date.now(), writing: null };
    let parent = null;
    const rows = this.tree.path(message.id).map((one) => {
      const row = { ...one, id: store.newId(), chat: chat.id, parent };
      parent = row.id;
      return row;
    });
    await store.putAll([{ ...chat, leaf: parent }], rows);
    this.on.forked(chat.id);
  }

  #listener(message, pen, isShown) {
    const notify = (text, fraction) => isShown() && this.#notify(text, fraction);
    return {
      text: ({ content, reasoning, thought, calls, parts }) => {
        Object.assign(message, { content, ...(prefs.keepsTokens ? { parts } : {}), ...(reasoning ? { reasoning, thought } : {}), ...(calls.length ? { calls } : {}) });
        notify('');
        pen.move();
      },
      progress: ({ total, processed, cache }) => {
        const todo = total - cache;
        const fraction = todo > 0 ? (processed - cache) / todo : 1;
        notify(fraction < 1 ? t('reading', { percent: Math.round(fraction * 100), n: total }) : '', fraction);
      },
      speed: (speed) => { message.speed = speed; },
      used: (n) => { message.used = n; },
      busy: (n) => notify(t('busy', { n })),
      loading: (fraction) => notify(t('loading', { percent: Math.round(100 * fraction) }), fraction),
      lost: (error) => notify(!error ? '' : error.status === 503 ? errorText(error) : t('lost')),
    };
  }

  #redraw(message, isShown) {
    if (!isShown()) return;
    this.#views.get(message.id)?.draw();
    this.#drawContext();
  }

  #finish(message) {
    const view = this.#views.get(message.id);
    view?.setBusy(false);
    view?.draw(true);
    view?.setVersions(this.tree.versions(message));     // the buttons depend on calls
    this.composer.setRunning(false);
    this.#askForResults();
    this.#notify('');
    this.#drawContext();
    this.composer.focus();
  }
}

// Is it incomplete?
const isCut = (message) => ['length', 'stopped'].includes(message.finish);

// The chat view: one conversation's messages, and the work on them: send, answer, edit, branch, continue, delete.
//
// A conversation that is being answered stays in `#running` with its tree, so the user may look at another one
// meanwhile; only what belongs to the shown conversation is drawn. Text is stored every two seconds while it streams.

import { ask, grow, h, iconButton, toast } from './dom.js';
import { Composer } from './composer.js';
import { countTokens, generate, toMessages } from './generate.js';
import { t } from './i18n.js';
import { MessageView } from './message.js';
import { prefs } from './prefs.js';
import * as store from './store.js';
import { readTools, ToolsBox } from './tools.js';
import { Tree } from './tree.js';

const PAGE = 40;                // messages drawn at once; earlier ones when they are scrolled to
const SAVE_MS = 2000;
const NEAR_END = 100;           // pixels from the end within which new text keeps the end in view

export class ChatView {
  #running = new Map();         // chat id -> { controller, message, tree }
  #views = new Map();           // message id -> MessageView
  #first = 0;                   // index in the path of the first drawn message
  #opening = 0;

  // `props()` gives /props or null; on.changed(id) when the list of conversations changes, on.opened(id).
  constructor({ props, on }) {
    this.props = props;
    this.on = on;
    this.system = h('textarea', { id: 'system', rows: 2, placeholder: t('system-hint'), 'aria-label': t('system'),
      oninput: () => grow(this.system), onchange: () => this.#setSystem() });
    this.systemBox = h('details', { class: 'system-box', ontoggle: () => grow(this.system) },
      h('summary', {}, t('system')), this.system);
    this.tools = new ToolsBox((source) => this.#setTools(source));
    this.earlier = h('button', { type: 'button', class: 'quiet', hidden: true, onclick: () => this.#drawEarlier() }, t('earlier'));
    this.log = h('div', { id: 'log', role: 'log', 'aria-label': t('conversation'), 'aria-live': 'off' });
    this.welcome = h('div', { class: 'welcome' });
    this.notice = h('p', { class: 'notice', role: 'status' });
    this.toEnd = iconButton('down', t('to-end'), () => this.#scrollToEnd(true), { class: 'round to-end', hidden: true });
    this.scroller = h('div', { class: 'scroller', onscroll: () => this.#scrolled(), tabindex: -1 },
      h('div', { class: 'column' }, this.systemBox, this.tools.element, this.earlier, this.welcome, this.log, this.notice));
    this.element = h('section', { class: 'view chat', 'aria-label': t('chat') });
    this.composer = new Composer({
      dropZone: this.element,
      modalities: () => this.props()?.modalities ?? {},
      on: { send: (text, files) => this.#send(text, files), stop: () => this.stop() },
    });
    this.element.append(this.scroller, this.toEnd, this.composer.element);
    this.#start();
    this.nearTop = new IntersectionObserver((entries) => {
      if (entries.at(-1).isIntersecting && !this.earlier.hidden) this.#drawEarlier();
    }, { root: this.scroller, rootMargin: '200px' });
    this.nearTop.observe(this.earlier);
  }

  // Show the conversation `id`, or a new one.
  async open(id) {
    const turn = ++this.#opening;
    const running = this.#running.get(id);
    const [chat, rows] = id ? await Promise.all([store.getChat(id), running ? [] : store.messagesOf(id)]) : [];
    if (turn !== this.#opening) return;
    this.#start(chat, running?.tree ?? new Tree(rows));
    this.system.value = this.chat.system;
    this.tools.source = this.chat.tools ?? '';
    this.systemBox.open = this.tools.element.open = false;
    this.#draw();
    this.#scrollToEnd(true);
    this.composer.focus();
    this.on.opened(chat ? id : null);
  }

  // Take a conversation, or begin one, which is stored with its first message.
  #start(chat, tree = new Tree()) {
    this.chat = chat ?? { id: store.newId(), title: '', created: Date.now(), changed: Date.now(), system: prefs.system, leaf: null };
    this.tree = tree;
  }

  // The server's properties are known, or have changed.
  ready() {
    const name = this.props().model_alias.split(/[\\/]/).pop();
    this.welcome.replaceChildren(h('h2', {}, t('welcome')), h('p', {}, t('welcome-model', { name })));
    this.#drawContext();
  }

  stop() {
    this.#running.get(this.chat.id)?.controller.abort();
  }

  // The conversation `id` was deleted.
  removed(id) {
    this.#running.get(id)?.controller.abort();
    return id === this.chat.id;
  }

  renamed(chat) {
    if (chat.id === this.chat.id) this.chat.title = chat.title;
  }

  // -- drawing

  get #path() {
    return this.tree.path(this.chat.leaf);
  }

  #draw() {
    const path = this.#path;
    this.#views.clear();
    this.#first = Math.max(0, path.length - PAGE);
    this.log.replaceChildren(...path.slice(this.#first).map((message) => this.#view(message).element));
    this.earlier.hidden = this.#first === 0;
    this.welcome.hidden = path.length > 0;
    const running = this.#running.get(this.chat.id);
    this.composer.setRunning(Boolean(running));
    this.#views.get(running?.message.id)?.setBusy(true);
    this.#askForResults();
    this.#notify('');
    this.#drawContext();
  }

  // The last message's calls can be answered, unless it is still being written or was cut off.
  #askForResults() {
    const last = this.#path.at(-1);
    for (const [id, view] of this.#views) {
      view.calls.ask(id === last?.id && last.calls?.length > 0 && !isCut(last) && !this.#running.has(this.chat.id));
    }
  }

  #drawEarlier() {
    const path = this.#path;
    const before = this.scroller.scrollHeight;
    const from = Math.max(0, this.#first - PAGE);
    this.log.prepend(...path.slice(from, this.#first).map((message) => this.#view(message).element));
    this.#first = from;
    this.earlier.hidden = from === 0;
    this.scroller.scrollTop += this.scroller.scrollHeight - before;
    this.nearTop.unobserve(this.earlier);       // only changes are told: who is at the top again before the next look
    this.nearTop.observe(this.earlier);         // would never see more
  }

  #view(message) {
    const view = new MessageView(message, this.tree.versions(message), {
      edit: (one, text) => this.#edit(one, text),
      regenerate: (one) => this.#regenerate(one),
      go: (one) => this.#answer(one),
      remove: (one) => this.#remove(one),
      version: (one, step) => this.#switch(one, step),
      answerCalls: (one, results) => this.#answerCalls(one, results),
    });
    this.#views.set(message.id, view);
    return view;
  }

  #append(message) {
    this.welcome.hidden = true;
    this.log.append(this.#view(message).element);
  }

  #notify(text, fraction = null) {
    this.notice.replaceChildren(text, ...(fraction === null ? [] : [h('progress', { max: 1, value: fraction, 'aria-label': text })]));
    this.notice.hidden = !text;
  }

  #drawContext() {
    const used = this.#path.findLast((message) => message.used)?.used ?? 0;
    this.composer.context(used, this.props()?.default_generation_settings.n_ctx ?? 0);
  }

  #isNearEnd() {
    return this.scroller.scrollHeight - this.scroller.scrollTop - this.scroller.clientHeight < NEAR_END;
  }

  #scrollToEnd(isWanted) {
    if (isWanted) this.scroller.scrollTop = this.scroller.scrollHeight;
    this.#scrolled();
  }

  #scrolled() {
    this.toEnd.hidden = this.#isNearEnd();
  }

  // -- what the user does

  async #send(text, files) {
    if (!this.#canAnswer()) {
      this.composer.restore(text, files);
      return;
    }
    this.composer.setRunning(true);             // at once: a second Enter must not send twice
    const parent = this.#path.at(-1)?.id ?? null;
    if (!this.chat.title) this.chat.title = (text || files[0].name).split('\n')[0].slice(0, 60);
    const message = this.#add({ parent, role: 'user', content: text, files });
    this.#append(message);
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
    const { id, chat, time, speed, used, error, finish, ...kept } = message;
    const edited = [this.#add({ ...kept, content: text })];
    // Results of the same answer's other calls stay.
    if (message.role === 'tool') {
      for (let i = path.indexOf(message) + 1; path[i]?.role === 'tool'; i++) {
        edited.push(this.#add({ ...path[i], parent: edited.at(-1).id }));
      }
    }
    await this.#save(...edited);
    this.#draw();
    if (message.role !== 'assistant') await this.#answerTo(edited.at(-1));
  }

  // Go on with what the tools gave back, one text for each call.
  async #answerCalls(message, results) {
    if (!this.#canAnswer()) return;
    const rows = [];
    message.calls.forEach((call, i) => {
      rows.push(this.#add({ parent: rows.at(-1)?.id ?? message.id, role: 'tool', call: call.id, name: call.name, content: results[i] }));
    });
    await this.#save(...rows);
    for (const row of rows) this.#append(row);
    await this.#answerTo(rows.at(-1));
  }

  async #regenerate(message) {
    if (!this.#canAnswer()) return;
    const fresh = this.#add({ parent: message.parent, role: 'assistant', content: '' });
    this.#draw();
    this.#scrollToEnd(true);
    await this.#answer(fresh);
  }

  async #answerTo(message) {
    const answer = this.#add({ parent: message.id, role: 'assistant', content: '' });
    this.#append(answer);
    this.#scrollToEnd(true);
    await this.#answer(answer);
  }

  async #switch(message, step) {
    if (this.#isBusy()) return;
    const versions = this.tree.versions(message);
    const other = versions[versions.indexOf(message) + step];
    if (!other) return;
    this.chat.leaf = this.tree.newestLeaf(other.id);
    await store.putChat(this.chat);
    const top = this.scroller.scrollTop;
    this.#draw();
    this.scroller.scrollTop = top;
    this.#views.get(other.id)?.element.querySelector('.count')?.closest('.tools').querySelector('button:enabled')?.focus();
  }

  async #remove(message) {
    if (this.#isBusy()) return;
    const n = this.tree.below(message.id).length;
    const sure = await ask(t(n > 1 ? 'remove-below' : 'remove-one', { n: n - 1 }), '', [['', t('cancel')], ['ok', t('delete'), 'danger']]);
    if (sure !== 'ok') return;
    const ids = this.tree.remove(message.id);
    const sibling = this.tree.versions(message).at(-1);
    this.chat.leaf = sibling ? this.tree.newestLeaf(sibling.id) : message.parent;
    await store.deleteMessages(ids);
    await store.putChat(this.chat);
    this.#draw();
  }

  async #setSystem() {
    this.chat.system = this.system.value;
    if (this.tree.messages.size) await store.putChat(this.chat);
  }

  async #setTools(source) {
    this.chat.tools = source;
    if (this.tree.messages.size) await store.putChat(this.chat);
  }

  #isBusy() {
    const isBusy = this.#running.has(this.chat.id);
    if (isBusy) toast(t('still-running'));
    return isBusy;
  }

  // Can an answer begin now? The user is told why not.
  #canAnswer() {
    return !this.#isBusy() && this.tools.isGood();
  }

  #add(fields) {
    const message = { ...fields, id: store.newId(), chat: this.chat.id, time: Date.now() };
    this.tree.add(message);
    this.chat.leaf = message.id;
    return message;
  }

  async #save(...rows) {
    this.chat.changed = Date.now();
    await store.putAll([this.chat], rows);
    this.on.changed(this.chat.id);
  }

  // -- the answer

  // Generate into `message`, from the end of what it says already.
  async #answer(message) {
    if (!this.#canAnswer()) return;
    const { chat, tree } = this;
    const tools = readTools(chat.tools ?? '');
    const controller = new AbortController();
    this.#running.set(chat.id, { controller, message, tree });
    const isShown = () => this.chat.id === chat.id;
    const pen = new Pen(() => this.#redraw(message, isShown));
    const saver = setInterval(() => store.putMessage(message), SAVE_MS);
    delete message.error;
    this.composer.setRunning(true);
    this.#views.get(message.id)?.setBusy(true);
    const messages = toMessages(chat.system, tree.path(message.parent));
    await store.putAll([chat], [message]);
    try {
      message.finish = await generate({
        messages, tools, start: message, signal: controller.signal, on: this.#listener(message, pen, isShown) });
    } catch (error) {
      message.error = await this.#explain(error, messages);
    }
    clearInterval(saver);
    pen.lift();
    this.#running.delete(chat.id);
    const stored = await store.getChat(chat.id);        // gone when the user has deleted it meanwhile
    if (stored) await store.putAll([{ ...stored, leaf: chat.leaf, changed: Date.now() }], [message]);
    if (isShown()) this.#finish(message);
    this.on.changed(this.chat.id);
  }

  #listener(message, pen, isShown) {
    const notify = (text, fraction) => isShown() && this.#notify(text, fraction);
    return {
      text: ({ content, reasoning, thought, calls }) => {
        Object.assign(message, { content, ...(reasoning ? { reasoning, thought } : {}), ...(calls.length ? { calls } : {}) });
        notify('');
        pen.move();
      },
      progress: ({ total, processed, cache }) => {
        const todo = total - cache;
        const fraction = todo > 0 ? (processed - cache) / todo : 1;
        notify(fraction < 1 ? t('reading', { percent: Math.round(fraction * 100), n: total }) : '', fraction);
      },
      timings: (timings) => {
        message.speed = { n: timings.predicted_n, rate: timings.predicted_per_second };
        message.used = timings.cache_n + timings.prompt_n + timings.predicted_n;
      },
      busy: (n) => notify(t('busy', { n })),
      lost: (isLost) => notify(isLost ? t('lost') : ''),
    };
  }

  #redraw(message, isShown) {
    if (!isShown()) return;
    const isNear = this.#isNearEnd();
    this.#views.get(message.id)?.draw();
    this.#drawContext();
    this.#scrollToEnd(isNear);
  }

  #finish(message) {
    const isNear = this.#isNearEnd();
    const view = this.#views.get(message.id);
    view?.setBusy(false);
    view?.draw(true);
    this.composer.setRunning(false);
    this.#askForResults();
    view?.setVersions(this.tree.versions(message));     // an answer with calls has other buttons
    this.#notify('');
    this.#drawContext();
    this.#scrollToEnd(isNear);
    this.composer.focus();
  }

  // What to tell the user about a refusal; with numbers when the conversation doesn't fit.
  async #explain(error, messages) {
    if (error.type !== 'exceed_context_size_error') return error.message;
    const n = await countTokens(messages).catch(() => null);
    return n === null ? error.message : t('too-long', { n, size: this.props().default_generation_settings.n_ctx });
  }
}

// Was the end of it left out?
const isCut = (message) => ['length', 'stopped'].includes(message.finish);

// Draws at most once per frame, and never for more than a fifth of the time.
class Pen {
  #isWaiting = false;
  #isLifted = false;
  #hasMore = false;

  constructor(draw) {
    this.draw = draw;
  }

  move() {
    this.#hasMore = this.#isWaiting;
    if (this.#isWaiting || this.#isLifted) return;
    this.#isWaiting = true;
    requestAnimationFrame(() => {
      if (this.#isLifted) return;
      const start = performance.now();
      this.draw();
      setTimeout(() => {
        this.#isWaiting = false;
        if (this.#hasMore) this.move();
      }, Math.max(30, 4 * (performance.now() - start)));
    });
  }

  lift() {
    this.#isLifted = true;
  }
}

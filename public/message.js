// One message: its text, folded reasoning, files, versions and buttons. The chat view has the data and does the work; a
// MessageView only draws, and reports clicks through `actions`.

import { CallsView, callsText, pretty } from './calls.js';
import { copyButton, grow, h, icon, iconButton, menuButton } from './dom.js';
import * as drafts from './drafts.js';
import { number, seconds, t } from './i18n.js';
import { MarkdownView, withBidiShown } from './markdown.js';
import { prefs } from './prefs.js';

// The shown name of the message's author.
export function roleName({ role, name }) {
  if (role === 'tool') return t('result-of', { name: name || t('tool') });
  return t({ user: 'you', assistant: 'model' }[role] ?? 'system');
}

export class MessageView {
  // `actions` has edit(message, text), regenerate, go (continue), remove, version(message, step), answerCalls(message, results),
  // fork, showRequest, showVersions, why, branch(message, text, parts).
  constructor(message, versions, actions) {
    this.message = message;
    this.actions = actions;
    this.body = h('div', { class: 'body md' });
    this.files = h('div', { class: 'files' });
    this.thinkLabel = h('summary', { onclick: () => { this.isThinkTouched = true; } }, t('reasoning'));
    this.think = h('details', { class: 'think', hidden: true }, this.thinkLabel,
      h('div', { class: 'thought' }, copyButton(t('copy-reasoning'), () => this.message.reasoning), this.thought = h('div', { class: 'text md' })));
    this.calls = new CallsView(message, actions.answerCalls);
    this.note = h('p', { class: 'note', hidden: true });
    this.meta = h('span', { class: 'meta' });
    this.tools = h('div', { class: 'tools' });
    const name = roleName(message);
    const isAnswer = message.role === 'assistant';
    this.element = h('article', { class: `message ${message.role}`, 'aria-label': name, 'data-id': message.id },
      message.role === 'tool' && h('p', { class: 'dim' }, icon('tool'), h('bdi', {}, name)),
      this.files, isAnswer && this.think, this.body, isAnswer && this.calls.element, this.note, h('footer', {}, this.meta, this.tools));
    this.setVersions(versions);
    this.#drawFiles();
    this.draw(true);
  }

  // Draw the message; `isFinal`: it is complete.
  draw(isFinal = false) {
    const { role, content, finish, error } = this.message;
    if (role === 'assistant') {
      this.#drawMarkdown('view', this.body, content, isFinal);
      this.#drawThinking(isFinal);
      this.calls.draw(isFinal);
    } else this.body.textContent = role === 'tool' ? pretty(content) : content;
    const note = error ?? (isFinal && finish === 'length' ? t('cut-off') : '');
    this.note.textContent = note;
    this.note.hidden = !note;
    this.note.classList.toggle('error', Boolean(error));
    this.#drawMeta();
  }

  // A text that may grow.
  #drawMarkdown(name, element, text, isFinal) {
    if (!this[name]?.canShow(text)) {
      element.replaceChildren();
      this[name] = new MarkdownView(element);
    }
    this[name].update(text, isFinal);
  }

  // Reasoning is open while it is written, unless the user folds it.
  #drawThinking(isFinal) {
    const { content, reasoning, thought, calls } = this.message;
    this.think.hidden = !reasoning;
    if (!reasoning) return;
    const isThinking = !(content || calls?.length || isFinal);
    this.#drawMarkdown('thoughtView', this.thought, reasoning, isFinal);
    this.thinkLabel.textContent = t(isThinking ? 'thinking' : thought ? 'thought-for' : 'reasoning', { time: seconds((thought ?? 0) / 1000) });
    if (!this.isThinkTouched) this.think.open = isThinking;
  }

  // Are all tokens of the text known?
  #hasTokens() {
    const { content, parts = [] } = this.message;
    return parts.some((part) => part.top) && parts.map((part) => part.text).join('') === content;
  }

  // Show the tokens, coloured by probability, in place of the text, or the text again.
  async #toggleTokens() {
    const isShown = Boolean(this.tokens);
    this.tokens?.remove();
    this.tokens = null;
    this.body.hidden = !isShown;
    if (isShown) return;
    const { TokenView } = await import('./tokens.js');
    const text = h('div', { class: 'tokens', dir: 'auto' });
    const view = new TokenView(text, (start, parts) => this.actions.branch(this.message, start, parts));
    view.parts = this.message.parts;
    this.tokens = h('div', {}, view.legend, text, view.menu);
    this.body.after(this.tokens);
  }

  #drawMeta() {
    const speed = this.message.speed;
    const isShown = prefs.showSpeed && speed && speed.n > 0;
    this.meta.textContent = isShown ? t('speed', { n: speed.n, rate: number(speed.rate, 1) }) : '';
  }

  #drawFiles() {
    this.files.hidden = !this.message.files?.length;
    this.files.replaceChildren(...(this.message.files ?? []).map((file) => {
      if (file.kind === 'image') return h('img', { src: file.data, alt: file.name, title: file.name });
      if (file.kind === 'audio') return h('audio', { src: file.data, controls: true, 'aria-label': file.name });
      return h('details', { class: 'file' }, h('summary', {}, icon('clip'), h('bdi', {}, withBidiShown(file.name))), h('pre', { tabindex: 0 }, file.data));
    }));
  }

  setBusy(isBusy) {
    this.element.classList.toggle('busy', isBusy);
    this.element.setAttribute('aria-busy', String(isBusy));
  }

  setVersions(versions) {
    const { message, actions } = this;
    const at = versions.findIndex((one) => one.id === message.id);
    const isAnswer = message.role === 'assistant';
    this.tools.replaceChildren(
      ...(versions.length < 2 ? [] : [h('span', { class: 'versions' },
        iconButton('left', t('version-before'), () => actions.version(message, -1), { disabled: at === 0 }),
        h('span', { class: 'count', 'aria-label': t('version-of', { i: at + 1, n: versions.length }) },
          `${at + 1} / ${versions.length}`),
        iconButton('right', t('version-after'), () => actions.version(message, 1), { disabled: at === versions.length - 1 }))]),
      copyButton(t('copy'), () => [message.content, callsText(message.calls)].filter(Boolean).join('\n\n')),
      iconButton('edit', t('edit'), () => this.edit()),
      ...(isAnswer ? [
        iconButton('retry', t('regenerate'), () => actions.regenerate(message)),
        ...(message.calls?.length && !['length', 'stopped'].includes(message.finish) ? [] : [iconButton('go', t('continue'), () => actions.go(message))]),
      ] : []),
      ...(isAnswer && this.#hasTokens() ? [iconButton('heat', t('show-tokens'), () => this.#toggleTokens())] : []),
      iconButton('trash', t('delete'), () => actions.remove(message)),
      menuButton('more', t('more'), [
        [t('fork'), () => actions.fork(message)],
        [t('versions'), () => actions.showVersions()],
        ...(isAnswer && message.content && !message.reasoning && !message.calls?.length ? [[t('why'), () => actions.why(message)]] : []),
        ...(isAnswer ? [[t('show-request'), () => actions.showRequest(message)]] : []),
      ]));
  }

  // Replace the text by an edit box. Saving it makes a new version.
  edit() {
    if (this.element.classList.contains('editing')) return;
    const key = `${this.message.id}.edit`;
    const area = h('textarea', { class: 'edit', dir: 'auto', 'aria-label': t('edit'), value: drafts.get(key) || this.message.content,
      oninput: () => {
        grow(area);
        drafts.set(key, area.value);
      } });
    const close = () => {
      drafts.set(key, '');
      form.remove();
      this.element.classList.remove('editing');
    };
    const form = h('form', {
      onsubmit: (event) => {
        event.preventDefault();
        close();
        this.actions.edit(this.message, area.value);
      },
      onkeydown: (event) => {
        if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) form.requestSubmit();
        if (event.key !== 'Escape') return;
        close();
        event.stopPropagation();
      },
    }, area, h('div', { class: 'row end' },
      h('button', { type: 'button', onclick: close }, t('cancel')),
      h('button', { type: 'submit', class: 'main' }, t(this.message.role === 'assistant' ? 'save' : 'save-send'))));
    this.element.classList.add('editing');
    this.body.after(form);
    grow(area);
    area.focus();
  }
}

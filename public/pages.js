// The part of a conversation that is on the page: messages around what is looked at, more of them as one scrolls, and
// those at the far end taken off again, so that a long conversation costs no more than a short one.

import { h } from './dom.js';
import { t } from './i18n.js';

const PAGE = 40;                // messages drawn at once
const MAX_DRAWN = 3 * PAGE;

export class Pages {
  #first = 0;                   // index in the path of the first drawn message
  #last = 0;                    // and of the one behind the last
  #most = MAX_DRAWN;

  // `log` holds the messages; path() gives all of them, element(message) makes one's element, forget(id) is told whose are
  // taken off; changed() is called after more have been drawn, for the view to put things where they were.
  constructor(log, { path, element, forget, changed }) {
    Object.assign(this, { log, path, element, forget, changed });
    this.earlier = h('button', { type: 'button', class: 'quiet', hidden: true, onclick: () => this.#drawEarlier() }, t('earlier'));
    this.later = h('button', { type: 'button', class: 'quiet', hidden: true, onclick: () => this.#drawLater() }, t('later'));
    window.addEventListener('beforeprint', () => {
      this.#most = Infinity;
      while (!this.earlier.hidden) this.#drawEarlier();
      while (!this.later.hidden) this.#drawLater();
    });
    window.addEventListener('afterprint', () => { this.#most = MAX_DRAWN; });
  }

  // Draw more when an edge comes near in the scrolled box `root`.
  watch(root) {
    this.edges = new IntersectionObserver((entries) => {
      const { target } = entries.findLast((one) => one.isIntersecting) ?? {};
      if (target === this.earlier) this.#drawEarlier();
      else if (target === this.later) this.#drawLater();
    }, { root, rootMargin: '200px' });
    this.#watchEdges();
  }

  // Is the end of the conversation on the page?
  get hasEnd() {
    return this.#last >= this.path().length;
  }

  // Draw the last messages; those around `target`, an id, if that is further up.
  draw(target = null) {
    const path = this.path();
    const at = path.findIndex((message) => message.id === target);
    this.#first = Math.max(0, Math.min(path.length - PAGE, at < 0 ? path.length : at - 5));
    this.#last = Math.min(path.length, this.#first + PAGE);
    this.log.replaceChildren(...path.slice(this.#first, this.#last).map((message) => this.element(message)));
    this.#showEdges();
  }

  // Draw messages that have come to the path's end, which had `n` before; false where that end isn't on the page.
  follow(n) {
    const isNearEnd = this.#last >= n;
    if (isNearEnd) {
      const path = this.path();
      this.log.append(...path.slice(this.#last).map((message) => this.element(message)));
      this.#last = path.length;
      this.#cutStart();
    }
    this.#showEdges();
    return isNearEnd;
  }

  #drawEarlier() {
    const path = this.path();
    const from = Math.max(0, this.#first - PAGE);
    this.log.prepend(...path.slice(from, this.#first).map((message) => this.element(message)));
    this.#first = from;
    const n = this.#last - from - this.#most;
    if (n > 0) this.#last -= this.#takeOff([...this.log.children].slice(-n));
    this.#moveEdges();
  }

  #drawLater() {
    const path = this.path();
    const to = Math.min(path.length, this.#last + PAGE);
    this.log.append(...path.slice(this.#last, to).map((message) => this.element(message)));
    this.#last = to;
    this.#cutStart();
    this.#moveEdges();
  }

  #cutStart() {
    const n = this.#last - this.#first - this.#most;
    if (n > 0) this.#first += this.#takeOff([...this.log.children].slice(0, n));
  }

  // Take messages off the page, unless one of them is being edited; how many are gone.
  #takeOff(elements) {
    if (elements.some((element) => element.classList.contains('editing'))) return 0;
    for (const element of elements) {
      this.forget(element.dataset.id);
      element.remove();
    }
    return elements.length;
  }

  #showEdges() {
    this.earlier.hidden = this.#first === 0;
    this.later.hidden = this.hasEnd;
  }

  #moveEdges() {
    this.#showEdges();
    this.changed();
    this.#watchEdges();
  }

  // Only changes are told: who is at an edge again before the next look would never see more.
  #watchEdges() {
    for (const edge of [this.earlier, this.later]) {
      this.edges.unobserve(edge);
      this.edges.observe(edge);
    }
  }
}

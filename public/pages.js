// The drawn part of a conversation: messages around the visible ones. Scrolling draws more and removes those at the far
// end, so that a long conversation costs no more than a short one.

import { h } from './dom.js';
import { t } from './i18n.js';

const PAGE = 40;                // messages drawn at once
const MAX_DRAWN = 3 * PAGE;

export class Pages {
  #first = 0;                   // index in the path of the first drawn message
  #last = 0;                    // and of the one after the last
  #most = MAX_DRAWN;

  // `log` contains the messages; path() returns all of them, element(message) makes one's element. forget(id) is called
  // for removed ones, changed() after more are drawn, to restore the scroll position.
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

  // Draw more when an edge comes near in the scrolling box `root`.
  watch(root) {
    this.edges = new IntersectionObserver((entries) => {
      const { target } = entries.findLast((one) => one.isIntersecting) ?? {};
      if (target === this.earlier) this.#drawEarlier();
      else if (target === this.later) this.#drawLater();
    }, { root, rootMargin: '200px' });
    this.#watchEdges();
  }

  // Is the end of the conversation drawn?
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

  // Draw messages added to the path, which had `n`; false if its end wasn't drawn.
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

  // Remove drawn messages, unless one is being edited; returns how many.
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

  // The observer reports only changes, not an edge that is near again by its next check.
  #watchEdges() {
    for (const edge of [this.earlier, this.later]) {
      this.edges.unobserve(edge);
      this.edges.observe(edge);
    }
  }
}

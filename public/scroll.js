// A scrolling box whose content grows above and below. At the end it stays there; further up the first visible line
// keeps its place. Browsers do that differently and in part, so theirs is switched off (overflow-anchor).

const NEAR_END = 60;            // pixels from the end that count as the end

export class Scroller {
  #isPinned = true;             // stays at the end
  #top = 0;
  #anchor = null;               // { element, offset } at the top of the window

  // `items()`: the elements, one of which keeps its place; `moved(isAtEnd)` is called after each movement;
  // `isWhole()`: is the end of the conversation drawn?
  constructor(box, content, items, moved, isWhole) {
    Object.assign(this, { box, items, moved, isWhole });
    box.addEventListener('scroll', () => this.#scrolled(), { passive: true });
    new ResizeObserver(() => this.settle()).observe(content);
    new ResizeObserver(() => this.settle()).observe(box);
  }

  toEnd() {
    this.#isPinned = true;
    this.settle();
  }

  // Scroll `element` to the top, and highlight it for a moment.
  to(element) {
    this.#isPinned = false;
    element.scrollIntoView({ block: 'start' });
    this.#note();
    element.classList.add('found');
    element.addEventListener('animationend', () => element.classList.remove('found'), { once: true });
  }

  // The content has changed: restore the position.
  settle() {
    if (this.#isPinned) this.box.scrollTop = this.box.scrollHeight;
    else if (this.#anchor?.element.isConnected) {
      const drift = this.#anchor.element.getBoundingClientRect().top - this.#anchor.offset;
      if (Math.abs(drift) >= 1) this.box.scrollTop += drift;
    }
    this.#note();
  }

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.box;
    const left = scrollHeight - scrollTop - clientHeight;
    // Also at the end if the content has become shorter; downwards, already shortly before it.
    const isAtEnd = left < 2 || (left < NEAR_END && scrollTop > this.#top);
    if (isAtEnd && this.isWhole()) this.#isPinned = true;
    else if (scrollTop < this.#top) this.#isPinned = false;
    this.#note();
  }

  #note() {
    this.#top = this.box.scrollTop;
    const { top } = this.box.getBoundingClientRect();
    const element = this.#isPinned ? null : firstBelow(this.items(), top + 1);       // one that ends on the edge is hidden
    this.#anchor = element && { element, offset: element.getBoundingClientRect().top };
    this.moved(this.#isPinned);
  }
}

// The first of `elements`, in vertical order, that ends below `y`.
function firstBelow(elements, y) {
  let [low, high] = [0, elements.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (elements[middle].getBoundingClientRect().bottom > y) high = middle;
    else low = middle + 1;
  }
  return elements[low] ?? null;
}

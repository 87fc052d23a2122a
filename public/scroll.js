// A scrolled box whose content grows above and below: who is at the end stays there, who reads further up keeps the
// line that they read. Browsers do that in part and each in its own way, so theirs is switched off (overflow-anchor).

const NEAR_END = 60;            // pixels from the end within which one is at the end

export class Scroller {
  #isPinned = true;             // at the end, and to stay there
  #top = 0;
  #anchor = null;               // { element, offset }: what is at the top of the window, and where

  // `items()` gives the elements that one of is kept in place; `moved(isAtEnd)` is called after each movement,
  // `isWhole()` tells whether the box has the end of the whole thing.
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

  // Bring `element` to the top, and show for a moment that it is meant.
  to(element) {
    this.#isPinned = false;
    element.scrollIntoView({ block: 'start' });
    this.#note();
    element.classList.add('found');
    element.addEventListener('animationend', () => element.classList.remove('found'), { once: true });
  }

  // The content has changed: put things where they were.
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
    // At the end also when the content has become shorter; on the way down already shortly before it.
    const isAtEnd = left < 2 || (left < NEAR_END && scrollTop > this.#top);
    if (isAtEnd && this.isWhole()) this.#isPinned = true;
    else if (scrollTop < this.#top) this.#isPinned = false;
    this.#note();
  }

  #note() {
    this.#top = this.box.scrollTop;
    const { top } = this.box.getBoundingClientRect();
    const element = this.#isPinned ? null : firstBelow(this.items(), top + 1);       // what ends on the edge is not seen
    this.#anchor = element && { element, offset: element.getBoundingClientRect().top };
    this.moved(this.#isPinned);
  }
}

// The first of `elements`, which lie one below the other, that ends below `y`.
function firstBelow(elements, y) {
  let [low, high] = [0, elements.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (elements[middle].getBoundingClientRect().bottom > y) high = middle;
    else low = middle + 1;
  }
  return elements[low] ?? null;
}

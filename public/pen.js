// Draws a stream without blocking the page.

// Draws at most once per frame, for at most a fifth of the time.
export class Pen {
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

// A conversation as a tree: each message has a parent, versions share one. Pure; no page, no storage.

export class Tree {
  constructor(messages = []) {
    this.messages = new Map();
    this.children = new Map([[null, []]]);
    for (const message of [...messages].sort((a, b) => a.time - b.time)) this.add(message);
  }

  add(message) {
    this.messages.set(message.id, message);
    const siblings = this.children.get(message.parent) ?? [];
    siblings.push(message);
    this.children.set(message.parent, siblings);
  }

  // From the first message to `leaf`. A loop or missing parent (of a damaged import) ends it.
  path(leaf) {
    const path = [];
    const seen = new Set();
    for (let at = this.messages.get(leaf); at && !seen.has(at.id); at = this.messages.get(at.parent)) {
      seen.add(at.id);
      path.push(at);
    }
    return path.reverse();
  }

  versions(message) {
    return this.children.get(message.parent) ?? [message];
  }

  // The end of the newest branch below `id`.
  newestLeaf(id) {
    const seen = new Set();
    let at = id;
    for (;;) {
      const below = (this.children.get(at) ?? []).filter((child) => !seen.has(child.id));
      if (!below.length) return at;
      at = below.at(-1).id;
      seen.add(at);
    }
  }

  // `id` and everything below it.
  below(id) {
    const ids = [id];
    for (let i = 0; i < ids.length; i++) ids.push(...(this.children.get(ids[i]) ?? []).map((child) => child.id));
    return ids;
  }

  // Remove `id` with everything below it; returns the removed ids.
  remove(id) {
    const message = this.messages.get(id);
    const ids = this.below(id);
    this.children.set(message.parent, this.versions(message).filter((one) => one.id !== id));
    for (const one of ids) {
      this.messages.delete(one);
      this.children.delete(one);
    }
    return ids;
  }
}

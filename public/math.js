// Math as models write it (LaTeX) -> MathML, which browsers draw. It supports the part of LaTeX that is common in
// answers; other formulas stay unchanged. Loaded with the first formula.

const NS = 'http://www.w3.org/1998/Math/MathML';
const MAX_DEPTH = 40;

// Names and their characters, alternating.
const pairs = (text) => Object.fromEntries(text.match(/\S+\s+\S+/g).map((pair) => pair.split(/\s+/)));

const LETTERS = pairs(`alpha α beta β gamma γ delta δ epsilon ϵ varepsilon ε zeta ζ eta η theta θ vartheta ϑ iota ι kappa κ lambda λ mu μ nu ν xi ξ pi π varpi ϖ rho ρ
  varrho ϱ sigma σ varsigma ς tau τ upsilon υ phi ϕ varphi φ chi χ psi ψ omega ω Gamma Γ Delta Δ Theta Θ Lambda Λ Xi Ξ Pi Π Sigma Σ Upsilon Υ Phi Φ Psi Ψ
  Omega Ω ell ℓ hbar ℏ infty ∞ partial ∂ nabla ∇ emptyset ∅ varnothing ∅ Re ℜ Im ℑ aleph ℵ angle ∠ top ⊤ bot ⊥ ldots … dots … cdots ⋯ vdots ⋮ ddots ⋱
  prime ′ degree °`);
const OPERATORS = pairs(`times × cdot ⋅ div ÷ pm ± mp ∓ ast ∗ star ⋆ circ ∘ bullet ∙ oplus ⊕ otimes ⊗ wedge ∧ vee ∨ land ∧ lor ∨ lnot ¬ neg ¬ cap ∩ cup ∪ setminus ∖ leq ≤ le ≤
  geq ≥ ge ≥ neq ≠ ne ≠ ll ≪ gg ≫ approx ≈ equiv ≡ sim ∼ simeq ≃ cong ≅ propto ∝ in ∈ notin ∉ ni ∋ subset ⊂ subseteq ⊆ supset ⊃ supseteq ⊇ to →
  rightarrow → leftarrow ← leftrightarrow ↔ Rightarrow ⇒ implies ⟹ Leftarrow ⇐ Leftrightarrow ⇔ iff ⟺ mapsto ↦ uparrow ↑ downarrow ↓ longrightarrow ⟶
  forall ∀ exists ∃ nexists ∄ mid ∣ parallel ∥ perp ⊥ therefore ∴ because ∵ models ⊨ vdash ⊢ colon : triangle △ square □ langle ⟨ rangle ⟩ lfloor ⌊
  rfloor ⌋ lceil ⌈ rceil ⌉ lvert | rvert | vert | lVert ‖ rVert ‖ Vert ‖ | ‖ lbrace { rbrace } { { } } % % # # & & $ $ _ _ backslash \\`);
// In displayed formulas their limits are below and above.
const LARGE = pairs('sum ∑ prod ∏ coprod ∐ bigcup ⋃ bigcap ⋂ bigoplus ⨁ bigotimes ⨂ bigwedge ⋀ bigvee ⋁');
const INTEGRALS = pairs('int ∫ iint ∬ iiint ∭ oint ∮');
const FUNCTIONS = 'sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan log ln lg exp det dim ker deg arg hom Pr gcd mod'.split(' ');
const LIMITS = 'lim limsup liminf max min sup inf argmax argmin'.split(' ');
const ACCENTS = pairs('hat ^ widehat ^ bar ¯ overline ¯ vec → overrightarrow → dot ˙ ddot ¨ tilde ~ widetilde ~ check ˇ');
const UNDER = { underline: '_', underbrace: '⏟' };
const SPACES = { ',': '0.17em', ':': '0.22em', ';': '0.28em', '!': '-0.17em', ' ': '0.33em', quad: '1em', qquad: '2em' };
// First code points of Unicode's math letters: capital, small, digit.
const ALPHABETS = { mathbb: [0x1d538, 0x1d552, 0x1d7d8], mathbf: [0x1d400, 0x1d41a, 0x1d7ce], boldsymbol: [0x1d400, 0x1d41a, 0x1d7ce],
  mathcal: [0x1d49c, 0x1d4b6], mathscr: [0x1d49c, 0x1d4b6], mathfrak: [0x1d504, 0x1d51e], mathsf: [0x1d5a0, 0x1d5ba, 0x1d7e2], mathtt: [0x1d670, 0x1d68a, 0x1d7f6] };
const HOLES = pairs(`mathbbC ℂ mathbbH ℍ mathbbN ℕ mathbbP ℙ mathbbQ ℚ mathbbR ℝ mathbbZ ℤ mathcalB ℬ mathcalE ℰ mathcalF ℱ mathcalH ℋ mathcalI ℐ mathcalL ℒ mathcalM ℳ
  mathcalR ℛ mathcale ℯ mathcalg ℊ mathcalo ℴ mathfrakC ℭ mathfrakH ℌ mathfrakI ℑ mathfrakR ℜ mathfrakZ ℨ`);
const FENCES = { pmatrix: '()', bmatrix: '[]', Bmatrix: '{}', vmatrix: '||', Vmatrix: '‖‖', cases: '{' };
const TABLES = 'matrix smallmatrix array aligned align align* gathered split equation equation*'.split(' ').concat(Object.keys(FENCES));

function m(tag, attributes = {}, ...children) {
  const element = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
const mo = (text, attributes = {}) => m('mo', attributes, text);
const row = (nodes) => (nodes.length === 1 ? nodes[0] : m('mrow', {}, ...nodes));

function letter(alphabet, char) {
  const bases = ALPHABETS[alphabet];
  const hole = HOLES[alphabet.replace('scr', 'cal') + char];
  if (hole) return hole;
  const kind = [/[A-Z]/, /[a-z]/, /\d/].findIndex((one) => one.test(char));
  if (kind < 0 || bases[kind] === undefined) return char;
  return String.fromCodePoint(bases[kind] + char.charCodeAt(0) - ['A', 'a', '0'][kind].charCodeAt(0));
}

// The <math> element for LaTeX `source`; throws if it isn't supported.
export function mathML(source, isDisplay) {
  const reader = new Reader(source, isDisplay);
  const nodes = reader.list(() => reader.isAtEnd(), 0);
  return m('math', isDisplay ? { display: 'block' } : {}, m('semantics', {}, m('mrow', {}, ...nodes),
    m('annotation', { encoding: 'application/x-tex' }, source)));
}

class Reader {
  #at = 0;

  constructor(source, isDisplay) {
    // Commands, numbers, or single characters; white space and comments mean nothing.
    this.tokens = source.match(/\\(?:[A-Za-z]+\*?|[\s\S])|\d+(?:\.\d+)?|\s+|[^]/gu) ?? [];
    this.isDisplay = isDisplay;
  }

  isAtEnd() {
    this.#skip();
    return this.#at >= this.tokens.length;
  }

  #skip() {
    while (/^\s/.test(this.tokens[this.#at] ?? '')) this.#at += 1;
  }

  #peek() {
    this.#skip();
    return this.tokens[this.#at];
  }

  #next() {
    this.#skip();
    if (this.#at >= this.tokens.length) throw new Error('the formula ends too early');
    return this.tokens[this.#at++];
  }

  #expect(token) {
    if (this.#next() !== token) throw new Error(`expected ${token}`);
  }

  // Nodes until `ends()`.
  list(ends, depth) {
    if (depth > MAX_DEPTH) throw new Error('too deep');
    const nodes = [];
    while (!ends()) nodes.push(this.#scripted(depth));
    return nodes;
  }

  // One atom with its sub- and superscript.
  #scripted(depth) {
    const token = this.#peek();
    const base = token === '^' || token === '_' ? m('mrow') : this.#atom(depth);
    let [sub, sup, primes] = [null, null, ''];
    for (;;) {
      const next = this.#peek();
      if (next === '_' && !sub) sub = this.#script(depth);
      else if (next === '^' && !sup) sup = this.#script(depth);
      else if (next === "'") {
        this.#next();
        primes += '′';
      } else if (next === '\\limits' || next === '\\nolimits') this.#next();
      else break;
    }
    if (primes) sup = row([mo(primes), ...(sup ? [sup] : [])]);
    if (!sub && !sup) return base;
    const isAround = base.dataset?.limits === 'around' || (this.isDisplay && base.dataset?.limits === 'display');
    const name = isAround ? { both: 'munderover', sub: 'munder', sup: 'mover' } : { both: 'msubsup', sub: 'msub', sup: 'msup' };
    return m(name[sub && sup ? 'both' : sub ? 'sub' : 'sup'], {}, base, ...[sub, sup].filter(Boolean));
  }

  #script(depth) {
    this.#next();
    return this.argument(depth);
  }

  // A group in braces, or one atom.
  argument(depth) {
    const token = this.#peek() ?? '';
    // Without braces: one digit.
    if (/^\d./.test(token)) this.tokens.splice(this.#at, 1, token[0], token.slice(1));
    if (token !== '{') return this.#atom(depth + 1);
    this.#next();
    return this.#group(depth);
  }

  #group(depth) {
    const nodes = this.list(() => this.#peek() === '}' || this.#fail(), depth + 1);
    this.#next();
    return m('mrow', {}, ...nodes);
  }

  #fail() {
    if (this.isAtEnd()) throw new Error('a brace is not closed');
    return false;
  }

  // The text between braces.
  #text() {
    this.#expect('{');
    let text = '';
    for (let open = 1; ;) {
      const token = this.tokens[this.#at++];
      if (token === undefined) throw new Error('a brace is not closed');
      if (token === '{') open += 1;
      if (token === '}') open -= 1;
      if (!open) return text;
      text += token.length === 2 && token[0] === '\\' ? token[1] : token;
    }
  }

  #atom(depth) {
    if (depth > MAX_DEPTH) throw new Error('too deep');
    const token = this.#next();
    if (token === '{') return this.#group(depth);
    if (token[0] === '\\' && token.length > 1) return this.#command(token.slice(1), depth);
    if (/^\d/.test(token)) return m('mn', {}, token);
    if (/^\p{L}/u.test(token)) return m('mi', {}, token);
    if ('}&^_$#%~\\'.includes(token)) throw new Error(`${token} out of place`);
    return mo(token === '-' ? '−' : token === '*' ? '∗' : token, '()[]|'.includes(token) ? { stretchy: 'false' } : {});
  }

  #command(name, depth) {
    if (Object.hasOwn(LETTERS, name)) return m('mi', /^[Α-Ω]/.test(LETTERS[name]) ? { mathvariant: 'normal' } : {}, LETTERS[name]);
    if (Object.hasOwn(OPERATORS, name)) return mo(OPERATORS[name], /[|⟨⟩⌊⌋⌈⌉‖{}]/.test(OPERATORS[name]) ? { stretchy: 'false' } : {});
    if (Object.hasOwn(LARGE, name)) return this.#withLimits(mo(LARGE[name], { largeop: 'true', movablelimits: 'false' }), 'display');
    if (Object.hasOwn(INTEGRALS, name)) return mo(INTEGRALS[name], { largeop: 'true' });
    if (LIMITS.includes(name)) return this.#withLimits(m('mi', {}, name), 'display');
    if (FUNCTIONS.includes(name)) return m('mrow', {}, m('mi', {}, name), m('mspace', { width: '0.17em' }));
    if (Object.hasOwn(SPACES, name)) return m('mspace', { width: SPACES[name] });
    if (Object.hasOwn(ALPHABETS, name)) return m('mi', {}, [...this.#text()].map((char) => letter(name, char)).join(''));
    if (Object.hasOwn(ACCENTS, name)) return m('mover', { accent: 'true' }, this.argument(depth), mo(ACCENTS[name], { stretchy: String(/^(wide|over)/.test(name)) }));
    if (Object.hasOwn(UNDER, name)) return this.#withLimits(m('munder', {}, this.argument(depth), mo(UNDER[name])), 'around');
    if (name === 'overbrace') return this.#withLimits(m('mover', {}, this.argument(depth), mo('⏞')), 'around');
    const read = COMMANDS[name];
    if (!read) throw new Error(`\\${name} is not known`);
    return read(this, depth);
  }

  #withLimits(node, kind) {
    node.dataset.limits = kind;
    return node;
  }

  // Commands with special syntax.
  fraction(depth, attributes = {}) {
    return m('mfrac', attributes, this.argument(depth), this.argument(depth));
  }

  between(open, close, node) {
    return m('mrow', {}, mo(open), node, mo(close));
  }

  root(depth) {
    if (this.#peek() !== '[') return m('msqrt', {}, this.argument(depth));
    this.#next();
    const index = row(this.list(() => this.#peek() === ']' || this.#fail(), depth + 1));
    this.#next();
    return m('mroot', {}, this.argument(depth), index);
  }

  words(isFunction) {
    const text = this.#text();
    return isFunction ? m('mi', { mathvariant: 'normal' }, text) : m('mtext', {}, text.replace(/^ | $/g, '\u00a0'));
  }

  fenced(depth) {
    const side = () => {
      const token = this.#next();
      const name = token.slice(1);
      return token === '.' ? '' : token[0] === '\\' ? OPERATORS[name] ?? '' : token;
    };
    const open = side();
    const nodes = this.list(() => ['\\right', '\\middle'].includes(this.#peek()) || this.#fail(), depth + 1);
    while (this.#next() === '\\middle') {
      nodes.push(mo(side(), { stretchy: 'true' }));
      nodes.push(...this.list(() => ['\\right', '\\middle'].includes(this.#peek()) || this.#fail(), depth + 1));
    }
    return m('mrow', {}, mo(open, { stretchy: 'true', fence: 'true' }), ...nodes, mo(side(), { stretchy: 'true', fence: 'true' }));
  }

  // A delimiter of a given size.
  sized() {
    const token = this.#next();
    return mo(token[0] === '\\' ? OPERATORS[token.slice(1)] ?? '' : token, { stretchy: 'false' });
  }

  boxed(depth) {
    return m('mrow', { class: 'boxed' }, this.argument(depth));
  }

  stacked(depth) {
    const over = this.argument(depth);
    return m('mover', {}, this.argument(depth), over);
  }

  table(depth) {
    const name = this.#text();
    if (!TABLES.includes(name)) throw new Error(`${name} is not known`);
    if (name === 'array') this.#text();
    const rows = [[]];
    const ends = () => ['&', '\\\\', '\\end', '\\hline'].includes(this.#peek()) || this.#fail();
    for (;;) {
      const cell = this.list(ends, depth + 1);
      const mark = this.#next();
      if (mark === '\\hline') continue;
      rows.at(-1).push(m('mtd', {}, ...cell));
      if (mark === '\\\\') rows.push([]);
      if (mark !== '\\end') continue;
      if (this.#text() !== name) throw new Error(`${name} is not closed`);
      break;
    }
    const [open = '', close = ''] = FENCES[name] ?? '';
    const isAligned = /^(align|split)/.test(name);
    const table = m('mtable', isAligned ? { class: 'aligned', displaystyle: 'true' } : name === 'cases' ? { class: 'cases' } : {},
      ...rows.filter((cells) => cells.length > 1 || cells[0]?.childNodes.length).map((cells) => m('mtr', {}, ...cells)));
    const fence = { stretchy: 'true', fence: 'true' };
    return m('mrow', {}, ...(open ? [mo(open, fence)] : []), table, ...(close ? [mo(close, fence)] : []));
  }
}

const sized = (reader) => reader.sized();
const COMMANDS = {
  frac: (reader, depth) => reader.fraction(depth), tfrac: (reader, depth) => reader.fraction(depth, { displaystyle: 'false' }),
  dfrac: (reader, depth) => reader.fraction(depth, { displaystyle: 'true' }), cfrac: (reader, depth) => reader.fraction(depth, { displaystyle: 'true' }),
  binom: (reader, depth) => reader.between('(', ')', reader.fraction(depth, { linethickness: '0' })),
  sqrt: (reader, depth) => reader.root(depth),
  text: (reader) => reader.words(false), textbf: (reader) => reader.words(false), textit: (reader) => reader.words(false), mbox: (reader) => reader.words(false),
  mathrm: (reader) => reader.words(true), operatorname: (reader) => reader.words(true), mathit: (reader) => reader.words(true),
  left: (reader, depth) => reader.fenced(depth),
  big: sized, Big: sized, bigg: sized, Bigg: sized, bigl: sized, bigr: sized, Bigl: sized, Bigr: sized, biggl: sized, biggr: sized,
  boxed: (reader, depth) => reader.boxed(depth), overset: (reader, depth) => reader.stacked(depth), stackrel: (reader, depth) => reader.stacked(depth),
  begin: (reader, depth) => reader.table(depth),
  displaystyle: () => m('mrow'), textstyle: () => m('mrow'), limits: () => m('mrow'), nolimits: () => m('mrow'),
  bmod: () => m('mo', { lspace: '0.22em', rspace: '0.22em' }, 'mod'),
  pmod: (reader, depth) => m('mrow', {}, m('mspace', { width: '0.5em' }), mo('('), m('mi', {}, 'mod'), m('mspace', { width: '0.3em' }), reader.argument(depth), mo(')')),
};

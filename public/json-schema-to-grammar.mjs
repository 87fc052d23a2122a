// JSON schema -> GBNF grammar, for clients that send `grammar` (pages, examples/chat.mjs).
// Properties appear in the order of `prop_order`, then of the schema. Local `$ref`s may recurse; remote ones are
// refused. The server's `json_schema` supports more. Pure, no imports; docs/web.md shows its use.

const SPACE = '| " " | "\\n"{1,2} [ \\t]{0,20}';
const PRIMITIVES = {
  boolean: ['("true" | "false") space', []],
  null: ['"null" space', []],
  'integral-part': ['[0] | [1-9] [0-9]{0,15}', []],
  'decimal-part': ['[0-9]{1,16}', []],
  integer: ['("-"? integral-part) space', ['integral-part']],
  number: ['("-"? integral-part) ("." decimal-part)? ([eE] [-+]? integral-part)? space',
    ['integral-part', 'decimal-part']],
  char: ['[^"\\\\\\x7F\\x00-\\x1F] | [\\\\] (["\\\\bfnrt/] | "u" [0-9a-fA-F]{4})', []],
  string: ['"\\"" char* "\\"" space', ['char']],
  value: ['object | array | string | number | boolean | null',
    ['object', 'array', 'string', 'number', 'boolean', 'null']],
  object: ['"{" space ( string ":" space value ("," space string ":" space value)* )? "}" space',
    ['string', 'value']],
  array: ['"[" space ( value ("," space value)* )? "]" space', ['value']],
  date: ['[0-9]{4} "-" ( "0" [1-9] | "1" [0-2] ) "-" ( "0" [1-9] | [1-2] [0-9] | "3" [0-1] )', []],
  time: ['([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ( "." [0-9]{3} )? '
    + '( "Z" | ( "+" | "-" ) ( [01] [0-9] | "2" [0-3] ) ":" [0-5] [0-9] )', []],
  'date-time': ['date "T" time', ['date', 'time']],
  uuid: ['[0-9a-fA-F]{8} ( "-" [0-9a-fA-F]{4} ){3} "-" [0-9a-fA-F]{12}', []],
};
const FORMATS = ['date', 'time', 'date-time', 'uuid'];

// A text as a GBNF literal.
const literal = (text) => `"${text.replace(/[\\"\n\r]/g, (c) => ({ '\n': '\\n', '\r': '\\r' }[c] ?? `\\${c}`))}"`;
// A JSON value as a literal that matches exactly its compact text.
const constant = (value) => `${literal(JSON.stringify(value))} space`;

// `item` between `least` and `most` times, with an optional separator.
function repeat(item, least, most, separator = '') {
  if (most === 0) return '';
  if (!separator) return `${item}{${least},${most === Infinity ? '' : most}}`;
  const rest = `(${separator} ${item}){${Math.max(least - 1, 0)},${most === Infinity ? '' : most - 1}}`;
  return least > 0 ? `${item} ${rest}` : `(${item} ${rest})?`;
}

export class SchemaConverter {
  #order;
  #rules = new Map([['space', SPACE]]);
  #root = {};
  #refs = new Map();

  // `options`: `{ prop_order }` or, as in the first version, the order itself.
  constructor(options = {}) {
    this.#order = options.prop_order ?? options;
  }

  // For clients that call it before `visit`, which follows references itself.
  async resolveRefs(schema) {
    return schema;
  }

  // Add the rules for `schema` as `name` ('' is the root); returns the rule's name.
  visit(schema, name = '') {
    if (!name) this.#root = schema;
    return this.#add(name || 'root', this.#body(schema, name));
  }

  formatGrammar() {
    return [...this.#rules].sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, body]) => `${name} ::= ${body}\n`).join('');
  }

  // Add a rule of that name, or a similar one if it is in use.
  #add(wanted, body) {
    const base = wanted.replace(/[^A-Za-z0-9-]+/g, '-');
    let name = base;
    for (let i = 0; this.#rules.has(name) && this.#rules.get(name) !== body; i++) name = `${base}${i}`;
    this.#rules.set(name, body);
    return name;
  }

  #primitive(type) {
    if (!this.#rules.has(type)) {
      const [body, needed] = PRIMITIVES[type];
      this.#rules.set(type, body);
      for (const other of needed) this.#primitive(other);
    }
    return type;
  }

  // A schema as a rule, which can be part of a sequence.
  #rule(schema, name) {
    return this.#add(name, this.#body(schema, name));
  }

  #body(schema, name) {
    if (schema === true || schema === undefined || schema === null) return this.#primitive('value');
    if (schema === false) throw new Error(`${name || 'root'}: the schema false matches nothing`);
    if (schema.$ref !== undefined) return this.#reference(schema.$ref);
    if (schema.const !== undefined) return constant(schema.const);
    if (schema.enum) return schema.enum.map(constant).join(' | ');
    const choices = schema.oneOf ?? schema.anyOf;
    if (choices) return choices.map((one, i) => this.#rule(one, `${name}-${i}`)).join(' | ');
    if (schema.allOf) return this.#body(this.#merged(schema), name);
    if (Array.isArray(schema.type)) {
      return schema.type.map((type) => this.#rule({ ...schema, type }, `${name}-${type}`)).join(' | ');
    }
    return this.#typed(schema, name);
  }

  #typed(schema, name) {
    const { type } = schema;
    const isObject = type === undefined && (schema.properties || schema.additionalProperties !== undefined);
    if (type === 'object' || isObject) return this.#object(schema, name);
    if (type === 'array' || (type === undefined && (schema.items || schema.prefixItems))) return this.#array(schema, name);
    if (type === 'string' || (type === undefined && (schema.pattern || schema.format))) return this.#string(schema, name);
    if (type === undefined) return this.#primitive('value');
    if (!(type in PRIMITIVES)) throw new Error(`${name || 'root'}: the type ${JSON.stringify(type)} is unknown`);
    return this.#primitive(type);
  }

  #target(ref) {
    if (ref !== '#' && !ref.startsWith('#/')) throw new Error(`$ref ${ref}: only references inside the schema work`);
    const steps = ref.split('/').slice(1).map((step) => decodeURIComponent(step).replace(/~1/g, '/').replace(/~0/g, '~'));
    const target = steps.reduce((at, step) => at?.[step], this.#root);
    if (target === undefined) throw new Error(`$ref ${ref}: there is no such place in the schema`);
    return target;
  }

  // The name is set before the target is visited, so that recursion finds it.
  #reference(ref) {
    if (!this.#refs.has(ref)) {
      const name = this.#add(`ref${ref.replace(/^#/, '').replace(/\W+/g, '-')}`, ref);
      this.#refs.set(ref, name);
      this.#rules.set(name, this.#body(this.#target(ref), name));
    }
    return this.#refs.get(ref);
  }

  // `allOf` of objects: all their properties together.
  #merged({ allOf, ...own }) {
    const parts = [own, ...allOf].map((part) => (part.$ref ? this.#target(part.$ref) : part));
    const merged = Object.assign({}, ...parts.map((part) => (part.allOf ? this.#merged(part) : part)));
    merged.properties = Object.assign({}, ...parts.map((part) => part.properties ?? {}));
    merged.required = parts.flatMap((part) => part.required ?? []);
    if (!Object.keys(merged.properties).length) delete merged.properties;
    return merged;
  }

  #object(schema, name) {
    const names = Object.keys(schema.properties ?? {});
    const place = (key, i) => this.#order[key] ?? names.length + i;
    const order = new Map(names.map((key, i) => [key, place(key, i)]));
    names.sort((a, b) => order.get(a) - order.get(b));
    const required = new Set(schema.required ?? []);
    const pair = (key) => `${literal(JSON.stringify(key))} space ":" space `
      + this.#rule(schema.properties[key], `${name}${name && '-'}${key}`);
    const must = names.filter((key) => required.has(key)).map(pair);
    const may = names.filter((key) => !required.has(key)).map(pair);
    const extra = schema.additionalProperties;
    if (extra === true || typeof extra === 'object' || (extra === undefined && !names.length)) {
      const value = this.#rule(extra === undefined ? true : extra, `${name}${name && '-'}additional`);
      const item = this.#add(`${name}${name && '-'}additional-kv`, `${this.#primitive('string')} ":" space ${value}`);
      may.push(repeat(item, 1, Infinity, '"," space'));
    }
    const comma = ' "," space ';
    const start = must.join(comma);
    // Optional ones: any subset in this order; each alternative begins with another one.
    const tail = may.map((_, i) => may[i] + may.slice(i + 1).map((one) => ` ("," space ${one})?`).join('')).join(' | ');
    const optional = !tail ? '' : must.length ? may.map((one) => ` ("," space ${one})?`).join('') : ` (${tail})?`;
    return `"{" space ${start}${optional} "}" space`;
  }

  #array(schema, name) {
    const prefix = schema.prefixItems ?? (Array.isArray(schema.items) ? schema.items : undefined);
    if (prefix) {
      const items = prefix.map((one, i) => this.#rule(one, `${name}${name && '-'}tuple-${i}`));
      return `"[" space ${items.join(' "," space ')} "]" space`;
    }
    const item = this.#rule(schema.items ?? true, `${name}${name && '-'}item`);
    const items = repeat(item, schema.minItems ?? 0, schema.maxItems ?? Infinity, '"," space');
    return `"[" space ${items} "]" space`;
  }

  #string(schema, name) {
    if (schema.pattern !== undefined) return `"\\"" (${regex(schema.pattern)}) "\\"" space`;
    if (FORMATS.includes(schema.format)) return `"\\"" ${this.#primitive(schema.format)} "\\"" space`;
    if (schema.minLength === undefined && schema.maxLength === undefined) return this.#primitive('string');
    const length = repeat(this.#primitive('char'), schema.minLength ?? 0, schema.maxLength ?? Infinity);
    return `"\\"" ${length} "\\"" space`;
  }
}

const CLASSES = { d: '[0-9]', w: '[A-Za-z0-9_]', s: '[ \\t]' };
const IN_CLASS = { d: '0-9', w: 'A-Za-z0-9_', s: ' \\t' };

// A regular expression of a schema (anchored, no look-around) as GBNF. Throws if it isn't supported.
function regex(pattern) {
  const source = pattern.replace(/^\^/, '').replace(/(?<!\\)\$$/, '');
  const tokens = /\\([\s\S])|\[(\^?)((?:\\[\s\S]|[^\]\\])+)\]|(\(\??:?|\)|\|)|([*+?]|\{\d+(?:,\d*)?\})|([\s\S])/gy;
  const out = [];
  for (const [all, escaped, negated, members, group, quantifier, plain] of source.matchAll(tokens)) {
    if (escaped !== undefined) out.push(CLASSES[escaped] ?? literal(plainEscape(escaped)));
    else if (members !== undefined) out.push(`[${negated}${members.replace(/\\([dws])/g, (_, c) => IN_CLASS[c])}]`);
    else if (group !== undefined) out.push(group[0]);
    else if (quantifier !== undefined) out[out.length - 1] += quantifier;
    else if (plain === '.') out.push('[^"\\\\\\x7F\\x00-\\x1F]');
    else if ('^$'.includes(all)) throw new Error(`pattern ${pattern}: anchors work at the ends only`);
    else out.push(literal(plain));
  }
  return out.join(' ');
}

function plainEscape(character) {
  if (/[A-Za-z0-9]/.test(character)) throw new Error(`pattern: \\${character} is not supported`);
  // JSON strings escape quotes and backslashes
  return '"\\'.includes(character) ? `\\${character}` : character;
}

// Convert a schema in one call.
export function schemaToGrammar(schema, options = {}) {
  const converter = new SchemaConverter(options);
  converter.visit(schema, '');
  return converter.formatGrammar();
}

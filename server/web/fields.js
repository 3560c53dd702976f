// fields.js - kinds of form fields, each made from the schema that the daemon's OpenAPI document has of it.
//
// A field is { path, input, content, read, write }: read() gives a JSON value or undefined (not sent), and throws a FieldError
// for text that cannot be said in JSON at all; everything else is judged by the server. setDefault(v) shows what counts when
// nothing is said: a model's default, or (undefined) the schema's. `look` is how the page shows it: { id, title, none, slider,
// rest, rows }; no range or choice is written down twice.
import { el } from './dom.js';

export class FieldError extends Error {
  constructor(param, message) {
    super(message);
    this.param = param;
  }
}

// ---- text and JSON ----

// What looks like a number is one; other text goes as it is, and the server says what it should have been.
const numberOf = (text) => (Number.isFinite(Number(text)) ? Number(text) : text);

// A number, a word, or a list of those as JSON.
export function wordOf(text) {
  if (text.startsWith('['))
    return JSON.parse(text);
  return /^\d+$/.test(text) ? Number(text) : text;
}

const listOf = (text) => text.split(/[\s,[\]]+/).filter(Boolean).map(numberOf);

const textOf = (value) => (typeof value === 'object' ? JSON.stringify(value) : String(value));

// An object with a key on each line.
const linesOf = (value) => `{\n${Object.entries(value).map(([k, v]) => ` ${JSON.stringify(k)}: ${JSON.stringify(v)}`).join(',\n')}\n}`;

// ---- kinds ----

export function textField(path, schema, look, parse, props = {}) {
  const plain = look.none ?? (schema.default === undefined ? '' : textOf(schema.default));
  const input = el(look.rows ? 'textarea' : 'input', {
    id: look.id, type: look.rows ? null : 'text', rows: look.rows, spellcheck: 'false', autocapitalize: 'off', placeholder: plain, ...props,
  });
  const read = () => {
    const text = input.value.trim();
    try {
      return text === '' ? undefined : parse(text);
    } catch {
      throw new FieldError(path, `${path} is not well-formed JSON`);
    }
  };
  const initial = input.placeholder;
  return {
    path, input, content: [input], read,
    write: (v) => { input.value = v === undefined ? '' : look.rows && !Array.isArray(v) ? linesOf(v) : textOf(v); },
    setDefault: (v) => { input.placeholder = v === undefined ? initial : textOf(v); },
  };
}

// A slider beside the text: it moves the text, and the text may leave its range.
function sliderField(path, schema, look) {
  const [low, high, step] = look.slider;
  const rest = look.rest ?? schema.default ?? low;
  const field = textField(path, schema, look, numberOf, { inputmode: 'decimal', class: 'number', placeholder: rest });
  const text = field.input;
  const slider = el('input', {
    type: 'range', step, min: Math.max(low, schema.minimum ?? low), max: Math.min(high, schema.maximum ?? high),
    value: rest, 'aria-label': `${look.title}, slider`,
    oninput: () => {
      text.value = slider.value;
      text.dispatchEvent(new Event('input', { bubbles: true }));
    },
  });
  const follow = () => {
    slider.value = text.value.trim() === '' ? text.placeholder : text.value;
  };
  text.addEventListener('input', follow);
  const write = (v) => {
    field.write(v);
    follow();
  };
  const setDefault = (v) => {
    field.setDefault(v);
    follow();
  };
  return { ...field, write, setDefault, content: [el('div', { class: 'pair' }, slider, text)] };
}

export function seedField(path, schema, look) {
  const field = textField(path, schema, look, numberOf, { inputmode: 'numeric' });
  const roll = el('button', {
    type: 'button', class: 'small', title: 'A new random seed',
    onclick: () => field.write(crypto.getRandomValues(new Uint32Array(1))[0]),
  }, 'Roll');
  return { ...field, content: [el('div', { class: 'pair' }, field.input, roll)] };
}

// `choices` are JSON values; the first option says nothing.
function selectField(path, schema, look, choices) {
  const first = el('option', { value: '' });
  const select = el('select', { id: look.id }, first, ...choices.map((c) => el('option', { value: c }, String(c))));
  const setDefault = (v = schema.default) => {
    const words = look.none ?? 'default';
    first.textContent = v === undefined ? words : `${words} (${textOf(v)})`;
  };
  setDefault();
  return {
    path, input: select, content: [select], setDefault,
    read: () => choices[select.selectedIndex - 1],
    write: (v) => { select.selectedIndex = choices.indexOf(v) + 1; },
  };
}

// One of what the server has at present: setOptions([value, text] ...), where '' says nothing.
export function choiceField(path, look) {
  const select = el('select', { id: look.id });
  const write = (v) => {
    if ([...select.options].some((o) => o.value === (v ?? '')))
      select.value = v ?? '';
  };
  let shown = null;
  const setOptions = (options) => {
    if (JSON.stringify(options) === shown)
      return; // a list that is open stays open
    shown = JSON.stringify(options);
    const before = select.value;
    select.replaceChildren(...options.map(([value, text]) => el('option', { value }, text)));
    write(before);
  };
  return { path, input: select, content: [select], read: () => select.value || undefined, write, setOptions };
}

export function fieldOf(path, schema, look) {
  if (look.slider)
    return sliderField(path, schema, look);
  if (schema.enum)
    return selectField(path, schema, look, schema.enum);
  if (schema.oneOf)
    return textField(path, schema, look, wordOf);
  switch (schema.type) {
  case 'boolean':
    return selectField(path, schema, look, [true, false]);
  case 'integer':
  case 'number':
    return textField(path, schema, look, numberOf, { inputmode: 'decimal' });
  case 'string':
    return textField(path, schema, look, String);
  case 'array':
    if (!schema.items?.$ref)
      return textField(path, schema, look, listOf);
  }
  return textField(path, schema, { rows: 2, ...look }, JSON.parse, { placeholder: schema.type === 'array' ? '[ ]' : '{ }' });
}

// form.js - the form, made from the schema of GenerateRequest: a field that the daemon gains appears by itself.
//
// A field is { path, node, read, write, setDefault, error }: read() gives a JSON value or undefined (not sent), and throws a
// FieldError for text that cannot be said in JSON at all. Everything else is judged by the server, whose error is shown at
// its field. setDefault(v) shows what counts when nothing is said: the model's default, or (undefined) the schema's.
import { el, show } from './dom.js';

export class FieldError extends Error {
  constructor(param, message) {
    super(message);
    this.param = param;
  }
}

// The fields that everybody needs, in this order; the others are under More. `slider` is the range of everyday values.
const COMMON = {
  model: { title: 'Model' },
  class_label: { title: 'Label' },
  sampler: { title: 'Sampler', none: 'the model’s own' },
  steps: { title: 'Steps', slider: [1, 100, 1] },
  'guidance.cfg.scale': { title: 'Guidance', slider: [0, 12, 0.5], rest: 1 },
  n: { title: 'Pictures', slider: [1, 16, 1] },
  seed: { title: 'Seed', none: 'drawn by the server' },
};
const OWN = ['stream']; // what the page itself decides
const START = { preview_every: 1 };
const CHIPS_MAX = 24; // labels that are shown all at once

const idOf = (path) => `f-${path.replaceAll('.', '-')}`;
const titleOf = (path) => COMMON[path]?.title ?? path.split('.').pop().replaceAll('_', ' ');

// ---- text and JSON ----

// What looks like a number is one; other text goes as it is, and the server says what it should have been.
const numberOf = (text) => (Number.isFinite(Number(text)) ? Number(text) : text);

function labelOf(text) {
  if (text.startsWith('['))
    return JSON.parse(text);
  return /^\d+$/.test(text) ? Number(text) : text;
}

const listOf = (text) => text.split(/[\s,]+/).filter(Boolean).map(numberOf);

const textOf = (value) => (typeof value === 'object' ? JSON.stringify(value) : String(value));

// ---- kinds of fields ----

const placeholder = (path, schema) => COMMON[path]?.none ?? (schema.default === undefined ? '' : textOf(schema.default));

function textField(path, schema, parse, props = {}) {
  const input = el(props.rows ? 'textarea' : 'input', {
    id: idOf(path), type: props.rows ? null : 'text', spellcheck: 'false', autocapitalize: 'off',
    placeholder: placeholder(path, schema), ...props,
  });
  const read = () => {
    const text = input.value.trim();
    try {
      return text === '' ? undefined : parse(text);
    } catch {
      throw new FieldError(path, `${path} is not well-formed JSON`);
    }
  };
  const plain = input.placeholder;
  return {
    path, input, content: [input], read,
    write: (v) => { input.value = v === undefined ? '' : textOf(v); },
    setDefault: (v) => { input.placeholder = v === undefined ? plain : textOf(v); },
  };
}

// A slider beside the text: it moves the text, and the text may leave its range.
function sliderField(path, schema) {
  const [low, high, step] = COMMON[path].slider;
  const rest = COMMON[path].rest ?? schema.default ?? low;
  const field = textField(path, schema, numberOf, { inputmode: 'decimal', class: 'number', placeholder: rest });
  const text = field.input;
  const slider = el('input', {
    type: 'range', step, min: Math.max(low, schema.minimum ?? low), max: Math.min(high, schema.maximum ?? high),
    value: rest, 'aria-label': `${titleOf(path)}, slider`,
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

function seedField(path, schema) {
  const field = textField(path, schema, numberOf, { inputmode: 'numeric' });
  const roll = el('button', {
    type: 'button', class: 'small', title: 'A new random seed',
    onclick: () => field.write(crypto.getRandomValues(new Uint32Array(1))[0]),
  }, 'Roll');
  return { ...field, content: [el('div', { class: 'pair' }, field.input, roll)] };
}

// `choices` are JSON values; the first option says nothing.
function selectField(path, schema, choices) {
  const first = el('option', { value: '' });
  const select = el('select', { id: idOf(path) }, first, ...choices.map((c) => el('option', { value: c }, String(c))));
  const setDefault = (v = schema.default) => {
    const words = COMMON[path]?.none ?? 'default';
    first.textContent = v === undefined ? words : `${words} (${textOf(v)})`;
  };
  setDefault();
  return {
    path, input: select, content: [select], setDefault,
    read: () => choices[select.selectedIndex - 1],
    write: (v) => { select.selectedIndex = choices.indexOf(v) + 1; },
  };
}

function modelField(path) {
  const select = el('select', { id: idOf(path) });
  const write = (v) => {
    const name = String(v ?? '').split('@')[0];
    if ([...select.options].some((o) => o.value === name))
      select.value = name;
  };
  return { path, input: select, content: [select], read: () => select.value || undefined, write };
}

// Chips for few labels (none: the null label; one; several: they take turns), a text with suggestions for many.
function labelField(path, schema) {
  const text = textField(path, schema, labelOf, { list: `${idOf(path)}-list`, placeholder: 'none' });
  const list = el('datalist', { id: `${idOf(path)}-list` });
  const chips = el('div', { class: 'chips' });
  const boxes = () => [...chips.querySelectorAll('input')];
  const chosen = () => boxes().filter((b) => b.checked).map((b) => b.value);

  const read = (n) => {
    if (chips.hidden)
      return text.read();
    const labels = chosen();
    return labels.length < 2 ? labels[0] : Array.from({ length: n }, (_, k) => labels[k % labels.length]);
  };
  const write = (v) => {
    const wanted = [v ?? []].flat().map((w, k, all) => (typeof w === 'number' ? boxes()[w]?.value ?? String(w) : w));
    boxes().forEach((b) => { b.checked = wanted.includes(b.value); });
    text.write(v);
  };
  let shown = null;
  const setLabels = (labels) => {
    if (JSON.stringify(labels) === shown)
      return; // the chip that has the focus keeps it
    shown = JSON.stringify(labels);
    const few = labels.length > 0 && labels.length <= CHIPS_MAX;
    const before = chosen();
    const chip = (name, k) => el('label', { class: 'chip' },
      el('input', { type: 'checkbox', value: name, id: k ? null : idOf(path), checked: before.includes(name) }), el('span', {}, name));
    chips.replaceChildren(...(few ? labels.map(chip) : []));
    list.replaceChildren(...(few ? [] : labels.map((name) => el('option', { value: name }))));
    text.input.id = few ? `${idOf(path)}-text` : idOf(path);
    show(chips, few);
    show(text.input, !few);
  };
  setLabels([]);
  return { path, group: true, input: text.input, content: [chips, text.input, list], read, write, setDefault: text.setDefault, setLabels, count: () => chosen().length };
}

function fieldOf(path, schema) {
  if (path === 'model')
    return modelField(path);
  if (path === 'class_label')
    return labelField(path, schema);
  if (path === 'seed')
    return seedField(path, schema);
  if (COMMON[path]?.slider)
    return sliderField(path, schema);
  if (schema.enum)
    return selectField(path, schema, schema.enum);
  switch (schema.type) {
  case 'boolean':
    return selectField(path, schema, [true, false]);
  case 'integer':
  case 'number':
    return textField(path, schema, numberOf, { inputmode: 'decimal' });
  case 'string':
    return textField(path, schema, String);
  case 'array':
    return textField(path, schema, listOf);
  default:
    return textField(path, schema, JSON.parse, { rows: 2, placeholder: '{ }' });
  }
}

// ---- the form ----

// There is nothing to choose.
const isFixed = (schema) => schema.enum?.length === 1 || (schema.minimum !== undefined && schema.minimum === schema.maximum);

// [path, schema] of every field, objects that the document describes taken apart.
function flatten(spec, schema, prefix = '') {
  const resolve = (s) => (s.$ref ? spec.components.schemas[s.$ref.split('/').pop()] : s);
  return Object.entries(schema.properties).flatMap(([name, property]) => {
    const path = prefix + name;
    const s = resolve(property);
    return s.properties ? flatten(spec, s, `${path}.`) : [[path, s]];
  });
}

function dress(field, schema) {
  const id = idOf(field.path);
  const hint = el('p', { class: COMMON[field.path] ? 'hidden' : 'hint', id: `${id}-hint` }, schema.description ?? '');
  field.error = el('p', { class: 'error', id: `${id}-error`, role: 'alert', hidden: true });
  field.input.setAttribute('aria-describedby', `${id}-hint ${id}-error`);
  const unit = schema['x-unit'];
  const name = titleOf(field.path);
  const title = !unit ? name : `${name.endsWith(` ${unit}`) ? name.slice(0, -unit.length - 1) : name} (${unit})`;
  field.node = field.group
    ? el('fieldset', { class: 'field', title: schema.description, 'aria-describedby': `${id}-hint ${id}-error` }, el('legend', {}, title))
    : el('div', { class: 'field', title: COMMON[field.path] ? schema.description : null }, el('label', { for: id }, title));
  if (field.group)
    field.input.setAttribute('aria-label', title);
  field.node.dataset.param = field.path;
  field.node.append(...field.content, hint, field.error);
  return field;
}

function assign(out, path, value) {
  const keys = path.split('.');
  const last = keys.pop();
  let at = out;
  for (const key of keys)
    at = at[key] ??= {};
  at[last] = value;
}

const lookup = (value, path) => path.split('.').reduce((at, key) => at?.[key], value);

// Fill `common` and `rest` with fields of the OpenAPI document's GenerateRequest.
export function makeForm(spec, common, rest, general) {
  const fields = flatten(spec, spec.components.schemas.GenerateRequest)
    .filter(([path, schema]) => !OWN.includes(path) && !isFixed(schema))
    .map(([path, schema]) => dress(fieldOf(path, schema), schema));
  const byPath = new Map(fields.map((f) => [f.path, f]));
  const order = Object.keys(COMMON);
  common.replaceChildren(...order.filter((p) => byPath.has(p)).map((p) => byPath.get(p).node));
  rest.replaceChildren(...groups(fields.filter((f) => !order.includes(f.path))));

  let cards = [];
  const model = byPath.get('model');
  const label = byPath.get('class_label');
  const card = () => cards.find((c) => c.name === model.input.value);

  function applyModel() {
    const c = card();
    show(label.node, !c || c.n_classes === undefined || c.n_classes > 0);
    label.setLabels(c?.labels ?? []);
    const own = { sampler: c?.sampler, height: c?.height, width: c?.width };
    for (const f of fields)
      f.setDefault?.(lookup(c?.defaults, f.path) ?? own[f.path]);
  }

  const count = () => {
    const { input } = byPath.get('n');
    return Math.trunc(Number(input.value.trim() || input.placeholder)) || 1;
  };

  // Several labels need as many pictures.
  label.node.addEventListener('change', () => {
    const n = byPath.get('n');
    if (label.count() > Math.max(1, count()))
      n.write(label.count());
  });
  model.input.addEventListener('change', applyModel);

  function read() {
    const out = {};
    for (const f of fields) {
      const value = f.node.hidden ? undefined : f.read(Math.min(Math.max(1, count()), 64));
      if (value !== undefined)
        assign(out, f.path, value);
    }
    return out;
  }

  function fill(request) {
    model.write(request.model);
    applyModel();
    for (const f of fields)
      if (f !== model)
        f.write(lookup(request, f.path));
  }

  function setModels(list) {
    const before = model.input.value;
    cards = list;
    const options = cards.map((c) => el('option', { value: c.name }, c.state === 'loaded' ? c.name : `${c.name} (${c.state})`));
    model.input.replaceChildren(...options);
    model.write(before || (cards.find((c) => c.state === 'loaded') ?? cards[0])?.name);
    applyModel();
  }

  function clearErrors() {
    show(general, false);
    for (const f of fields) {
      show(f.error, false);
      f.node.querySelectorAll('[aria-invalid]').forEach((i) => i.removeAttribute('aria-invalid'));
    }
  }

  // At the field that `param` names: "class_label[2]" is at class_label, "guidance" at its first.
  function fieldAt(param) {
    for (let p = param ?? ''; p; p = p.replace(/(\[[^[]*|\.[^.[]*|^[^.[]*)$/, ''))
      for (const f of fields)
        if (f.path === p || f.path.startsWith(`${p}.`))
          return f;
    return null;
  }

  function showError({ param, message }) {
    const f = fieldAt(param);
    const place = f && !f.node.hidden ? f.error : general;
    place.textContent = message;
    show(place, true);
    if (place === general)
      return;
    const more = f.node.closest('details');
    if (more)
      more.open = true;
    const target = f.input.hidden ? f.node.querySelector('input') : f.input;
    target.setAttribute('aria-invalid', 'true');
    target.focus();
  }

  fill(START);
  return { read, fill, setModels, clearErrors, showError, card: (name) => cards.find((c) => c.name === name) };
}

// Fields of one object stand together under its name.
function groups(fields) {
  const out = [];
  const groupAt = new Map();
  for (const f of fields) {
    const prefix = f.path.includes('.') ? f.path.slice(0, f.path.lastIndexOf('.')) : '';
    if (!prefix) {
      out.push(f.node);
      continue;
    }
    if (!groupAt.has(prefix)) {
      groupAt.set(prefix, el('fieldset', { class: 'group' }, el('legend', {}, prefix.replaceAll('.', ' · '))));
      out.push(groupAt.get(prefix));
    }
    groupAt.get(prefix).append(f.node);
  }
  return out;
}

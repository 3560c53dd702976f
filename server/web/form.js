// form.js - a form made from a schema of the OpenAPI document: a field that the daemon gains appears by itself.
import { el, show } from './dom.js';
import { fieldOf } from './fields.js';

// There is nothing to choose.
const isFixed = (schema) => schema.enum?.length === 1 || (schema.minimum !== undefined && schema.minimum === schema.maximum);

// { path, schema, required } of every field, objects that the document describes taken apart.
function flatten(spec, schema, prefix = '') {
  const resolve = (s) => (s.$ref ? spec.components.schemas[s.$ref.split('/').pop()] : s);
  return Object.entries(schema.properties).flatMap(([name, property]) => {
    const path = prefix + name;
    const s = resolve(property);
    return s.properties ? flatten(spec, s, `${path}.`) : [{ path, schema: s, required: !prefix && schema.required?.includes(name) }];
  });
}

// "Warm-up (optimizer steps)"; a name that ends as its unit does says it once.
function titleOf(name, unit) {
  if (!unit)
    return name;
  const last = unit.split(' ').pop().toLowerCase();
  if (name.toLowerCase() === last)
    return unit;
  return `${name.endsWith(` ${last}`) ? name.slice(0, -last.length - 1) : name} (${unit})`;
}

// The field's row: label, control, help and error. Help of the common fields is a tooltip, so that they stay near each other.
function dress(field, { schema, required }, look, common) {
  const hint = el('p', { class: common ? 'hidden' : 'hint', id: `${look.id}-hint` }, schema.description ?? '');
  const title = titleOf(look.title, schema['x-unit']);
  const described = `${look.id}-hint ${look.id}-error`;
  field.schema = schema;
  field.error = el('p', { class: 'error', id: `${look.id}-error`, role: 'alert', hidden: true });
  field.input.setAttribute('aria-describedby', described);
  if (required)
    field.input.setAttribute('aria-required', 'true');
  field.node = field.group
    ? el('fieldset', { class: 'field', title: schema.description, 'aria-describedby': described }, el('legend', {}, title))
    : el('div', { class: 'field', title: common ? schema.description : null }, el('label', { for: look.id }, title));
  if (field.group)
    field.input.setAttribute('aria-label', title);
  field.node.dataset.param = field.path;
  field.node.append(...field.content, hint, field.error);
  return field;
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
      groupAt.set(prefix, el('fieldset', { class: 'group' }, el('legend', {}, prefix.replace(/[._]/g, (c) => (c === '.' ? ' · ' : ' ')))));
      out.push(groupAt.get(prefix));
    }
    groupAt.get(prefix).append(f.node);
  }
  return out;
}

const isSame = (a, b) => JSON.stringify(a) === JSON.stringify(b);

function assign(out, path, value) {
  const keys = path.split('.');
  const last = keys.pop();
  let at = out;
  for (const key of keys)
    at = at[key] ??= {};
  at[last] = value;
}

export const lookup = (value, path) => path.split('.').reduce((at, key) => at?.[key], value);

// The form of spec's schema `name`. `id` begins every id; `common` has the look of the fields that everybody needs, in their
// order, the rest is under More; `own` is what the page itself decides; `kinds` makes the fields that the schema alone cannot:
// path -> (path, schema, look) => field. `places` are elements: { common, rest, error }.
export function makeForm(spec, name, { id, common, own = [], kinds, places }) {
  const fields = flatten(spec, spec.components.schemas[name])
    .filter((entry) => !own.includes(entry.path) && !isFixed(entry.schema))
    .map((entry) => {
      const { path, schema, required } = entry;
      const look = { id: `${id}-${path.replaceAll('.', '-')}`, title: path.split('.').pop().replaceAll('_', ' '),
        none: required ? 'needed' : undefined, ...common[path] };
      return dress((kinds[path] ?? fieldOf)(path, schema, look), entry, look, common[path]);
    });
  const byPath = new Map(fields.map((f) => [f.path, f]));
  const order = Object.keys(common);
  places.common.replaceChildren(...order.filter((p) => byPath.has(p)).map((p) => byPath.get(p).node));
  places.rest.replaceChildren(...groups(fields.filter((f) => !order.includes(f.path))));

  // What is said; a field that is hidden says nothing.
  function read() {
    const out = {};
    for (const f of fields) {
      const value = f.node.hidden ? undefined : f.read();
      if (value !== undefined)
        assign(out, f.path, value);
    }
    return out;
  }

  // `brief`: what counts anyway when nothing is said is not written.
  function fill(request, brief = false) {
    for (const f of fields) {
      const value = lookup(request, f.path) ?? undefined;
      f.write(brief && isSame(value, f.schema.default) ? undefined : value);
    }
  }

  function clearErrors() {
    show(places.error, false);
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
    const place = f && !f.node.hidden ? f.error : places.error;
    place.textContent = message;
    show(place, true);
    if (place === places.error)
      return;
    const more = f.node.closest('details');
    if (more)
      more.open = true;
    const target = f.input.hidden ? f.node.querySelector('input') : f.input;
    target.setAttribute('aria-invalid', 'true');
    target.focus();
  }

  return { fields, byPath, read, fill, clearErrors, showError };
}

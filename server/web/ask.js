// ask.js - the form of POST /generate: what the chosen model has as labels and defaults is shown in it.
import { el, show } from './dom.js';
import { choiceField, seedField, textField, wordOf } from './fields.js';
import { lookup, makeForm } from './form.js';

// `slider` is the range of everyday values.
const COMMON = {
  model: { title: 'Model' },
  class_label: { title: 'Label' },
  sampler: { title: 'Sampler', none: 'the model’s own' },
  steps: { title: 'Steps', slider: [1, 100, 1] },
  'guidance.cfg.scale': { title: 'Guidance', slider: [0, 12, 0.5], rest: 1 },
  n: { title: 'Pictures', slider: [1, 16, 1] },
  seed: { title: 'Seed', none: 'drawn by the server' },
};
const START = { preview_every: 1 };
const CHIPS_MAX = 24; // labels that are shown all at once

function modelField(path, schema, look) {
  const field = choiceField(path, look);
  return { ...field, write: (v) => field.write(String(v ?? '').split('@')[0]) };
}

// Chips for few labels (none: the null label; one; several: they take turns over count() pictures), a text with suggestions
// for many.
function labelField(path, schema, look, count) {
  const text = textField(path, schema, { ...look, none: 'none' }, wordOf, { list: `${look.id}-list` });
  const list = el('datalist', { id: `${look.id}-list` });
  const chips = el('div', { class: 'chips' });
  const boxes = () => [...chips.querySelectorAll('input')];
  const chosen = () => boxes().filter((b) => b.checked).map((b) => b.value);

  const read = () => {
    if (chips.hidden)
      return text.read();
    const labels = chosen();
    return labels.length < 2 ? labels[0] : Array.from({ length: count() }, (_, k) => labels[k % labels.length]);
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
      el('input', { type: 'checkbox', value: name, id: k ? null : look.id, checked: before.includes(name) }), el('span', {}, name));
    chips.replaceChildren(...(few ? labels.map(chip) : []));
    list.replaceChildren(...(few ? [] : labels.map((name) => el('option', { value: name }))));
    text.input.id = few ? `${look.id}-text` : look.id;
    show(chips, few);
    show(text.input, !few);
  };
  setLabels([]);
  return { path, group: true, input: text.input, content: [chips, text.input, list], read, write, setDefault: text.setDefault, setLabels, chosen };
}

export function makeAsk(spec, places) {
  let cards = [];
  const count = () => {
    const { input } = form.byPath.get('n');
    return Math.trunc(Number(input.value.trim() || input.placeholder)) || 1;
  };
  const labels = (...args) => labelField(...args, () => Math.min(Math.max(1, count()), 64));
  const form = makeForm(spec, 'GenerateRequest', { id: 'f', common: COMMON, own: ['stream'], places,
    kinds: { model: modelField, class_label: labels, seed: seedField } });
  const model = form.byPath.get('model');
  const label = form.byPath.get('class_label');
  const cardOf = (name) => cards.find((c) => c.name === name);

  function applyModel() {
    const c = cardOf(model.input.value);
    show(label.node, !c || c.n_classes === undefined || c.n_classes > 0);
    label.setLabels(c?.labels ?? []);
    const own = { sampler: c?.sampler, height: c?.height, width: c?.width };
    for (const f of form.fields)
      f.setDefault?.(lookup(c?.defaults, f.path) ?? own[f.path]);
  }

  // Several labels need as many pictures.
  label.node.addEventListener('change', () => {
    const n = label.chosen().length;
    if (n > Math.max(1, count()))
      form.byPath.get('n').write(n);
  });
  model.input.addEventListener('change', applyModel);

  function fill(request) {
    model.write(request.model); // its labels first
    applyModel();
    form.fill(request);
  }

  function setModels(list) {
    const before = model.input.value;
    cards = list;
    model.setOptions(cards.map((c) => [c.name, c.state === 'loaded' ? c.name : `${c.name} (${c.state})`]));
    if (!before)
      model.write((cards.find((c) => c.state === 'loaded') ?? cards[0])?.name);
    applyModel();
  }

  fill(START);
  return { ...form, fill, setModels, card: cardOf };
}

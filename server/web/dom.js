// dom.js - elements from descriptions. Text only ever becomes a text node, so no name or label can inject.

export const $ = (id) => document.getElementById(id);

// el('button', { class: 'small', type: 'button', onclick: f }, 'Load'); a property that is null or false is left out.
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false)
      continue;
    if (key.startsWith('on'))
      node.addEventListener(key.slice(2), value);
    else
      node.setAttribute(key, value === true ? '' : value);
  }
  node.append(...children.filter((c) => c !== null && c !== undefined));
  return node;
}

export function show(node, on) {
  if (node.hidden === Boolean(on))
    node.hidden = !on;
}

// Only what differs is written: a live region speaks when its text changes, and a repaint costs.
export function setText(node, text) {
  if (node.textContent !== text)
    node.textContent = text;
}

// Say something to a screen reader.
export function announce(text) {
  setText($('live'), text);
}

// One child of `list` per item, kept by key so that focus survives; make(item) builds, update(node, item) fills.
export function keyed(list, items, keyOf, make, update) {
  const had = new Map([...list.children].map((node) => [node.dataset.key, node]));
  let at = list.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    let node = had.get(key);
    had.delete(key);
    if (!node) {
      node = make(item);
      node.dataset.key = key;
    }
    if (node === at)
      at = at.nextElementSibling;
    else
      list.insertBefore(node, at);
    update(node, item);
  }
  for (const node of had.values())
    node.remove();
}

export const plural = (n, word, many = `${word}s`) => `${Number(n).toLocaleString('en')} ${n === 1 ? word : many}`;

// Three digits; what is no number as it is.
export const shortNumber = (v) => (typeof v === 'number' ? String(Number(v.toPrecision(3))) : String(v ?? '-'));

export function duration(ms) {
  if (ms < 950)
    return `${Math.max(1, Math.round(ms))} ms`;
  if (ms < 60000)
    return `${(ms / 1000).toFixed(1)} s`;
  return ms < 7.2e6 ? `${Math.round(ms / 60000)} min` : `${(ms / 3.6e6).toFixed(1)} h`;
}

export function bytes(n) {
  const units = ['B', 'KB', 'MB', 'GB', 'TB'];
  const k = n > 0 ? Math.min(Math.floor(Math.log10(n) / 3), units.length - 1) : 0;
  return `${Number((n / 1000 ** k).toPrecision(2))} ${units[k]}`;
}

export const sleep = (ms, signal) => new Promise((resolve) => {
  const timer = setTimeout(resolve, ms);
  signal.addEventListener('abort', () => { clearTimeout(timer); resolve(); }, { once: true });
});

export const calm = () => matchMedia('(prefers-reduced-motion: reduce)').matches;

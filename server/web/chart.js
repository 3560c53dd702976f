// chart.js - a curve of numbers by step, as SVG. Its box is stretched, so what is read stands in HTML beside it.
import { el, setText, shortNumber } from './dom.js';

const WIDE = 600;
const HIGH = 200;
const EDGE = 10; // above and below, for the strokes
const COLUMNS = 300;

function svg(tag, props, ...children) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [key, value] of Object.entries(props))
    node.setAttribute(key, value);
  node.append(...children);
  return node;
}

// The least and the greatest of each column: no spike is lost, however many steps there are.
function thin(points) {
  const size = Math.ceil(points.length / COLUMNS);
  if (size < 3)
    return points;
  const out = [];
  for (let i = 0; i < points.length; i += size) {
    const part = points.slice(i, i + size);
    const least = part.reduce((a, b) => (b.value < a.value ? b : a));
    const most = part.reduce((a, b) => (b.value > a.value ? b : a));
    out.push(...(least.step < most.step ? [least, most] : [most, least]));
  }
  return out;
}

// A moving average over about a thirtieth of the curve, without the weight of its beginning.
function smooth(points) {
  const keep = 1 - 1 / Math.max(5, points.length / 30);
  let sum = 0;
  let weight = 0;
  return points.map(({ step, value }) => {
    sum = keep * sum + (1 - keep) * value;
    weight = keep * weight + 1 - keep;
    return { step, value: sum / weight };
  });
}

export class Chart {
  // A `plain` curve has no noise that would have to be smoothed.
  constructor(title, { log = false, plain = false } = {}) {
    Object.assign(this, { title, log, plain });
    this.raw = svg('path', { class: 'raw' });
    this.line = svg('path', { class: 'smooth' });
    this.held = svg('path', { class: 'held' });
    this.svg = svg('svg', { viewBox: `0 0 ${WIDE} ${HIGH}`, preserveAspectRatio: 'none', role: 'img' }, this.raw, this.line, this.held);
    this.now = el('span', { class: 'hint' });
    this.low = el('span', { class: 'hint' });
    this.high = el('span', { class: 'hint' });
    this.node = el('div', { class: 'chart' }, el('div', { class: 'chart-range' }, el('h3', {}, title), this.now), this.svg,
      el('div', { class: 'chart-range' }, this.low, this.high));
  }

  // Points { step, value }, by step; `held` are drawn as dots.
  draw(points, held = []) {
    const fits = (p) => Number.isFinite(p.value) && (!this.log || p.value > 0);
    const good = points.filter(fits);
    const dots = held.filter(fits);
    const all = [...good, ...dots];
    const least = all.reduce((v, p) => Math.min(v, p.value), Infinity);
    const most = all.reduce((v, p) => Math.max(v, p.value), -Infinity);
    const last = all.reduce((v, p) => Math.max(v, p.step), 1);
    const first = all.reduce((v, p) => Math.min(v, p.step), last);
    const scale = (v) => (this.log ? Math.log(v) : v);
    const span = scale(most) - scale(least);
    const at = ({ step, value }) => `${(((step - first) / (last - first || 1)) * (WIDE - 2 * EDGE) + EDGE).toFixed(1)} ` +
      `${(HIGH - EDGE - (span ? (scale(value) - scale(least)) / span : 0.5) * (HIGH - 2 * EDGE)).toFixed(1)}`;
    const path = (list) => (list.length ? `M${list.map(at).join('L')}` : '');
    this.raw.setAttribute('d', path(thin(good)));
    this.line.setAttribute('d', path(thin(this.plain ? good : smooth(good))));
    this.held.setAttribute('d', dots.map((p) => `M${at(p)}h.01`).join(''));
    const heldText = dots.length ? `, held out ${shortNumber(dots.at(-1).value)}` : '';
    setText(this.now, good.length ? `now ${shortNumber(good.at(-1).value)}${heldText}` : 'no step yet');
    setText(this.low, all.length ? `${shortNumber(least)} to ${shortNumber(most)}${this.log ? ', log scale' : ''}` : '');
    setText(this.high, all.length ? `steps ${first} to ${last}` : '');
    this.svg.setAttribute('aria-label', `${this.title}: ${this.now.textContent}`);
  }
}

// board.js - the daemon at this moment: the rows of the last step and who shares them, the queue, the models.
import { $, bytes, duration, el, keyed, plural, setText, show } from './dom.js';
import { tagOf } from './state.js';

const HISTORY = 48; // columns: steps that were seen, two a second
const ROWS_DRAWN = 64;

// ---- devices ----

const history = new Map(); // device name -> { steps, columns: [[share ...] ...] }

function addColumn(device, busy) {
  const past = history.get(device.name) ?? { steps: device.steps, columns: [] };
  const moved = device.steps !== past.steps;
  past.steps = device.steps;
  past.columns = [...past.columns, busy || moved ? device.shares : []].slice(-HISTORY);
  history.set(device.name, past);
  return { columns: past.columns, moved };
}

function makeDevice() {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  svg.setAttribute('class', 'history');
  svg.setAttribute('preserveAspectRatio', 'none');
  svg.setAttribute('aria-hidden', 'true');
  return el('div', { class: 'device' }, el('p', { class: 'device-name' }), el('div', { class: 'strip', role: 'img' }), svg, el('p', { class: 'hint' }));
}

// One cell per row, in the colour and with the letter of its request.
function drawStrip(strip, device, moved) {
  const cells = device.shares.flatMap((s) => Array.from({ length: s.rows }, () => tagOf(s.id))).slice(0, ROWS_DRAWN);
  strip.classList.toggle('past', !moved);
  strip.replaceChildren(...cells.map((t) => el('span', { class: `cell c${t.colour}` }, cells.length <= 32 ? t.letter : '')));
  const words = device.shares.map((s) => `${s.rows} of request ${tagOf(s.id).letter}`).join(', ');
  strip.setAttribute('aria-label', cells.length ? `${moved ? 'This' : 'The last'} step: ${words}` : 'No step yet');
}

// A column per look, a block per request as high as its rows.
function drawHistory(svg, columns) {
  const high = Math.max(4, ...columns.map((c) => c.reduce((sum, s) => sum + s.rows, 0)));
  svg.setAttribute('viewBox', `0 0 ${HISTORY} ${high}`);
  const blocks = [];
  columns.forEach((shares, i) => {
    let y = high;
    for (const s of shares) {
      const block = document.createElementNS('http://www.w3.org/2000/svg', 'rect');
      y -= s.rows;
      for (const [key, value] of Object.entries({ x: HISTORY - columns.length + i + 0.08, y, width: 0.84, height: s.rows, class: `c${tagOf(s.id).colour}` }))
        block.setAttribute(key, value);
      blocks.push(block);
    }
  });
  svg.replaceChildren(...blocks);
}

function updateDevice(node, device, busy) {
  const { columns, moved } = addColumn(device, busy);
  const [name, strip, svg, note] = node.children;
  setText(name, `${device.name} · ${plural(device.threads, 'thread')}`);
  drawStrip(strip, device, moved);
  drawHistory(svg, columns);
  const step = `${plural(device.rows, 'row')} of ${device.model} in ${duration(device.step_ms)}`;
  setText(note, device.rows ? `${moved ? '' : 'idle; last step: '}${step}` : 'no step yet');
}

// ---- queue ----

function makeRequest() {
  return el('li', {}, el('span', { class: 'tag' }), el('span', { class: 'queue-name' }), el('progress', { 'aria-label': 'Progress' }), el('span', { class: 'hint' }));
}

function updateRequest(node, r, mine) {
  const tag = tagOf(r.id);
  const [dot, name, bar, note] = node.children;
  dot.className = `tag c${tag.colour}`;
  setText(dot, tag.letter);
  setText(name, mine ? 'you' : 'someone');
  node.classList.toggle('mine', mine);
  bar.max = r.steps || 1;
  bar.value = r.step ?? 0;
  const where = r.state === 'queued' ? `waits, ${r.position ?? 0} ahead` : `${r.step ?? 0}/${r.steps ?? '?'}`;
  setText(note, [r.n > 1 ? `${r.n} × ${r.model}` : r.model, where].filter(Boolean).join(' · '));
}

// ---- models ----

const ACTION = { available: 'load', failed: 'load', loaded: 'unload' };

function makeModel(act) {
  const node = el('li', {}, el('span', { class: 'state-dot', 'aria-hidden': 'true' }), el('span', { class: 'model-name' }),
    el('span', { class: 'hint' }), el('button', { type: 'button', class: 'small', onclick: () => act(node.dataset.key, node.dataset.action) }));
  return node;
}

function updateModel(node, m) {
  const [dot, name, note, button] = node.children;
  const action = ACTION[m.state];
  dot.className = `state-dot ${m.state}`;
  setText(name, m.name);
  const facts = [m.state, m.state === 'loaded' && m.bytes ? bytes(m.bytes) : null, m.ms_per_row ? `${m.ms_per_row.toFixed(1)} ms/row` : null, m.error];
  setText(note, facts.filter(Boolean).join(' · '));
  node.dataset.action = action ?? '';
  show(button, action);
  setText(button, action === 'unload' ? 'Unload' : 'Load');
  button.setAttribute('aria-label', `${action === 'unload' ? 'Unload' : 'Load'} ${m.name}`);
}

// ---- all of it ----

function pulse(status) {
  const busy = status.running > 0;
  const state = status.draining ? 'stopping' : busy ? 'busy' : 'idle';
  $('pulse-dot').className = `dot ${state}`;
  const waiting = status.waiting ? `, ${status.waiting} waiting` : '';
  setText($('pulse-text'), busy ? `${status.running} running${waiting}` : `${state}${waiting}`);
}

export function lost(text) {
  $('pulse-dot').className = 'dot lost';
  setText($('pulse-text'), text);
}

// isMine(id): the request is of this page; act(model, 'load' | 'unload').
export function drawStatus(status, isMine, act) {
  pulse(status);
  keyed($('devices'), status.devices, (d) => d.name, makeDevice, (node, d) => updateDevice(node, d, status.running > 0));
  keyed($('queue'), status.requests, (r) => r.id, makeRequest, (node, r) => updateRequest(node, r, isMine(r.id)));
  const waits = status.queue_ms >= 1 ? `, ${duration(status.queue_ms)} of work` : '';
  setText($('queue-text'), status.requests.length ? `${status.running} running, ${status.waiting} waiting${waits}` : 'Nobody is waiting.');
  keyed($('models'), status.models, (m) => m.name, () => makeModel(act), updateModel);
  setText($('version'), `denoised ${status.version}`);
}

// view.js - the pictures: runs that are under way or just done, and the recent ones.
//
// A run is one POST /generate that is streamed. It has a tile per picture, whose previews are kept so that a finished run
// can be looked through step by step.
import { $, announce, calm, duration, el, plural, setText, show } from './dom.js';
import { recentPictures, remember, single, tagOf } from './state.js';

const PREVIEW_CHARS_MAX = 16e6; // of one run

const pngUrl = (b64) => `data:image/png;base64,${b64}`;
const safeName = (text) => String(text).replace(/[^A-Za-z0-9._-]+/g, '-').slice(0, 60);
// Of a small picture one sees the pixels.
const onload = ({ target }) => target.classList.toggle('pixels', target.naturalWidth <= 128);

function fileOf(image) {
  const bytes = Uint8Array.from(atob(image.b64), (c) => c.charCodeAt(0));
  const png = image.content_type === 'image/png';
  return new Blob([bytes], { type: png ? 'image/png' : 'application/octet-stream' });
}

const labelOf = (request, index) => [request.class_label ?? []].flat()[Array.isArray(request.class_label) ? index : 0];
const describe = (request, index, seed) =>
  [request.model, labelOf(request, index), `seed ${seed}`].filter((s) => s !== undefined).join(', ');

// Grey noise, drawn from a small generator: what a picture begins as.
export function drawNoise(canvas, seed) {
  const context = canvas.getContext('2d');
  const image = context.createImageData(canvas.width, canvas.height);
  let x = seed >>> 0 || 1;
  for (let i = 0; i < image.data.length; i += 4) {
    let sum = 0;
    for (let k = 0; k < 3; k++) {
      x ^= x << 13;
      x ^= x >>> 17;
      x ^= x << 5;
      sum += (x >>> 0) / 4294967296;
    }
    image.data.fill(Math.round((sum / 3) * 300 - 22), i, i + 3);
    image.data[i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

class Tile {
  constructor(run, index, card) {
    this.run = run;
    this.index = index;
    this.previews = [];
    this.canvas = el('canvas', { class: 'picture', width: card?.width ?? 32, height: card?.height ?? 32, 'aria-hidden': 'true' });
    drawNoise(this.canvas, index * 7919 + 17);
    this.image = el('img', { class: 'picture', alt: '', hidden: true, onload });
    this.caption = el('figcaption');
    this.node = el('figure', {}, this.canvas, this.image, this.caption);
  }

  look(src, alt) {
    this.image.src = src;
    this.image.alt = alt;
    show(this.image, true);
    this.canvas.remove();
  }

  preview({ step, b64 }) {
    this.run.chars += b64.length;
    if (this.run.chars < PREVIEW_CHARS_MAX)
      this.previews.push({ step, b64 });
    if (!this.final) // one that was still being encoded may come after the picture
      this.look(pngUrl(b64), `Preview after step ${step}`);
  }

  finish(image, reuse) {
    const { request } = this.run;
    const grid = request.output?.layout === 'grid';
    const what = describe(request, image.index, image.seed) + (grid ? ' and following' : '');
    const png = image.content_type === 'image/png';
    this.final = image;
    if (png)
      this.look(pngUrl(image.b64), what);
    const ext = { 'image/png': 'png', 'application/x-npy': 'npy' }[image.content_type] ?? 'safetensors';
    const name = [request.model, grid ? 'grid' : labelOf(request, image.index), image.seed].filter((s) => s !== undefined).map(safeName).join('-');
    this.url = URL.createObjectURL(fileOf(image));
    this.caption.replaceChildren(
      el('button', { type: 'button', class: 'link', title: 'Put this request into the form', onclick: () => reuse(single(request, image)) },
        `seed ${image.seed}`),
      el('a', { class: 'link', href: this.url, download: `${name}.${ext}`, 'aria-label': `Download ${what}` }, ext === 'png' ? 'PNG' : ext));
  }

  release() {
    if (this.url)
      URL.revokeObjectURL(this.url);
  }
}

export class Run {
  constructor(request, card, { cancel, reuse }) {
    Object.assign(this, { request, card, reuse, chars: 0, state: 'running', tiles: [], step: 0 });
    this.dot = el('span', { class: 'tag', 'aria-hidden': 'true' });
    this.title = el('h3', {}, [request.model, [request.class_label ?? []].flat().slice(0, 3).join(', ')].filter(Boolean).join(' · ') || 'Picture');
    this.status = el('p', { class: 'status' }, 'Asking …');
    this.bar = el('progress', { max: 1, 'aria-label': 'Progress' });
    this.cancelButton = el('button', { type: 'button', class: 'small cancel', onclick: () => cancel(this) }, 'Cancel');
    this.scrub = el('input', { type: 'range', min: 0, 'aria-label': 'Step to look at', oninput: () => this.lookBack(Number(this.scrub.value)) });
    this.scrubText = el('output', { class: 'hint' });
    this.scrubber = el('div', { class: 'scrub', hidden: true }, el('span', { class: 'hint' }, 'noise'), this.scrub, el('span', { class: 'hint' }, 'picture'), this.scrubText);
    this.grid = el('div', { class: 'tiles' });
    this.node = el('article', { class: 'run' },
      el('div', { class: 'run-head' }, this.dot, this.title, this.cancelButton), this.grid, this.bar, this.status, this.scrubber);
    const n = request.output?.layout === 'grid' ? 1 : Math.min(Math.max(Math.trunc(Number(request.n ?? card?.defaults?.n ?? 1)) || 1, 1), 64);
    for (let k = 0; k < n; k++)
      this.tile(k);
  }

  get running() {
    return this.state === 'running';
  }

  tile(index) {
    while (this.tiles.length <= index) {
      const tile = new Tile(this, this.tiles.length, this.card);
      this.tiles.push(tile);
      this.grid.append(tile.node);
    }
    this.grid.dataset.count = Math.min(this.tiles.length, 16);
    return this.tiles[index];
  }

  // One event of the stream, by its name.
  queued({ id, seed, position, eta_ms: eta }) {
    const tag = tagOf(id);
    Object.assign(this, { id, seed });
    this.dot.className = `tag c${tag.colour}`;
    this.dot.textContent = tag.letter;
    setText(this.status, position > 0 ? `${position} ahead, done in about ${duration(eta)}` : `Starting, about ${duration(eta)}`);
    announce(position > 0 ? `Queued, ${position} ahead.` : 'Started.');
  }

  progress({ step, steps, eta_ms: eta }) {
    if (step < steps / 2 !== this.step < steps / 2)
      announce(`Half done, step ${step} of ${steps}.`);
    this.step = step;
    this.bar.max = steps;
    this.bar.value = step;
    setText(this.status, `Step ${step} of ${steps}, ${duration(eta)} left`);
  }

  preview(event) {
    // A grid is one picture at the end; until then its first sample stands for it.
    if (this.request.output?.layout !== 'grid' || event.index === 0)
      this.tile(event.index).preview(event);
  }

  image(image) {
    this.tile(image.index).finish(image, this.reuse);
  }

  done({ timing, model }) {
    this.end('done');
    const shared = timing.batch_rows_mean.toFixed(1).replace('.0', '');
    setText(this.status, `${plural(timing.steps, 'step')} of ${model} · ${duration(timing.device_ms)} of the device · ` +
      `on average ${shared} rows shared a step`);
    announce(`Done: ${plural(this.tiles.length, 'picture')}, seed ${this.seed}.`);
    this.longest = Math.max(...this.tiles.map((t) => t.previews.length));
    if (this.longest > 1 && this.tiles.every((t) => t.final?.content_type === 'image/png')) {
      this.scrub.max = this.longest;
      this.scrub.value = this.longest;
      show(this.scrubber, true);
    }
  }

  fail(message, state = 'failed') {
    this.end(state);
    setText(this.status, message);
    this.status.classList.toggle('error', state === 'failed');
    announce(message);
  }

  end(state) {
    this.state = state;
    this.node.dataset.state = state;
    show(this.bar, false);
    this.cancelButton.remove();
    const pictures = this.tiles.map((t) => t.final).filter((image) => image?.content_type === 'image/png');
    remember(pictures.map((image) => ({ request: single(this.request, image), seed: image.seed, b64: image.b64 })));
  }

  // Preview k of every picture, or the picture itself.
  lookBack(k) {
    for (const tile of this.tiles) {
      const p = k < this.longest ? tile.previews[Math.min(k, tile.previews.length - 1)] : null;
      tile.look(pngUrl(p ? p.b64 : tile.final.b64), p ? `Preview after step ${p.step}` : describe(this.request, tile.index, tile.final.seed));
      if (tile.index === 0)
        setText(this.scrubText, p ? `step ${p.step}` : '');
    }
  }
}

// ---- the stage ----

const runs = [];

// Newest first; finished runs make room, their pictures are among the recent ones.
export function addRun(run) {
  for (const old of runs.filter((r) => !r.running))
    removeRun(old);
  runs.unshift(run);
  $('runs').prepend(run.node);
  show($('empty'), false);
  const { top, bottom } = $('stage').getBoundingClientRect();
  if (top > innerHeight * 0.6 || bottom < 0)
    run.node.scrollIntoView({ block: 'start', behavior: calm() ? 'auto' : 'smooth' });
}

export function removeRun(run) {
  const at = runs.indexOf(run);
  if (at < 0)
    return;
  runs.splice(at, 1);
  run.node.remove();
  run.tiles.forEach((t) => t.release());
  show($('empty'), runs.length === 0);
}

export const runningRuns = () => runs.filter((r) => r.running);
export const isMine = (id) => runs.some((r) => r.id === id);

export function drawRecent(reuse) {
  const pictures = recentPictures();
  show($('recent'), pictures.length > 0);
  $('recent-list').replaceChildren(...pictures.map((p) => {
    const what = describe(p.request, 0, p.seed);
    return el('li', {}, el('button', { type: 'button', title: what, 'aria-label': `Make again: ${what}`, onclick: () => reuse(p.request) },
      el('img', { src: pngUrl(p.b64), alt: '', loading: 'lazy', onload }), el('span', {}, String(p.seed))));
  }));
}

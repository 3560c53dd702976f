// card.js - one job: its state, what can be done with it, curves, previews, the memory it was planned with.
//
// The card follows the job's events; when the connection is lost it goes on after the last event that it saw.
import { json, request } from './api.js';
import { Chart } from './chart.js';
import { announce, bytes, duration, el, keyed, setText, shortNumber, show, sleep } from './dom.js';
import { events } from './sse.js';

const DRAW_MS = 250;
const POINTS_MAX = 65536; // of a curve; then every second goes
const FILE_STEPS_MAX = 200000; // a metrics.csv of some 16 MB
const COLUMNS = 12; // steps of previews, and as many more when they are asked for
const OVER = ['succeeded', 'failed', 'cancelled'];
const MAY = { // by the job's state
  pause: ['queued', 'running'],
  resume: ['paused'],
  cancel: ['queued', 'running', 'paused'],
  checkpoints: ['running'],
  publish: ['running', 'paused', 'succeeded', 'failed', 'cancelled'],
  again: ['queued', 'running', 'paused', ...OVER],
};
const TITLES = { pause: 'Pause', resume: 'Resume', cancel: 'Cancel', checkpoints: 'Save now', publish: 'Publish', again: 'Use as template' };

const pathOf = (id, rest = '') => `jobs/${encodeURIComponent(id)}${rest}`;

// The lines of a metrics.csv as objects; an empty cell is no number.
function rowsOf(text) {
  const [head, ...lines] = text.trim().split('\n').map((line) => line.split(','));
  return lines.map((cells) => Object.fromEntries(head.map((key, i) => [key, key === 'kind' ? cells[i] : cells[i] === '' ? NaN : Number(cells[i])])));
}

// Points are in the order of their steps: what was told of later ones is void.
function cut(points, step) {
  while (points.length && points.at(-1).step > step)
    points.pop();
}

function add(points, point) {
  cut(points, point.step - 1);
  points.push(point);
}

const stepsOf = (samples) => [...new Set(samples.map((s) => s.step))];

// The plan in the words and units of its schema: bytes first, their sum before all.
function planRows(plan, { properties }) {
  const isBytes = (schema) => schema['x-unit'] === 'bytes';
  const valueOf = (key, schema) => (isBytes(schema) ? bytes(plan[key]) : shortNumber(plan[key]));
  const rank = ([key, schema]) => (key === 'total' ? 0 : isBytes(schema) ? 1 : 2);
  return Object.entries(properties).filter(([key]) => plan?.[key] !== undefined).sort((a, b) => rank(a) - rank(b)).map(([key, schema]) =>
    el('div', { title: schema.description }, el('dt', {}, key.replaceAll('_', ' ')), el('dd', {}, valueOf(key, schema))));
}

export class Card {
  // `schemas` are those of the OpenAPI document; `around` is the view: again(job) begins another like it, models() are names.
  constructor(job, schemas, around) {
    Object.assign(this, { job, schemas, around, id: job.id, steps: [], evals: [], lastId: null, urls: [], columns: COLUMNS });
    const { minimum: min, maximum: max } = schemas.JobPatch.properties.train_share;
    this.state = el('span', { class: 'job-state' });
    this.bar = el('progress', { max: 1, 'aria-label': 'Progress' });
    this.status = el('p', { class: 'status' });
    this.error = el('p', { class: 'error', role: 'alert', hidden: true });
    const own = { publish: () => this.askName(), cancel: () => this.askEnd(true), again: () => around.again(this.job) };
    this.buttons = Object.keys(TITLES).map((action) => el('button', { type: 'button', class: 'small', 'data-action': action,
      onclick: own[action] ?? (() => this.act(action)) }, TITLES[action]));
    this.name = el('input', { type: 'text', spellcheck: 'false', autocapitalize: 'off', 'aria-describedby': 'publish-hint', oninput: () => this.tellName() });
    this.nameHint = el('p', { class: 'hint', id: 'publish-hint', role: 'status' });
    this.form = el('form', { class: 'publish', novalidate: true, hidden: true, onsubmit: (e) => this.publish(e) },
      el('label', {}, 'Publish as model', this.name), el('button', { type: 'submit', class: 'primary' }, 'Publish'), this.nameHint);
    this.keep = el('button', { type: 'button', class: 'small', onclick: () => this.askEnd(false) }, 'Keep it');
    this.sure = el('p', { class: 'sure', hidden: true }, this.keep,
      el('button', { type: 'button', class: 'small danger', 'data-action': 'end', onclick: () => this.end() }, 'End it for good'));
    this.share = el('input', { type: 'range', min, max, step: 0.05, oninput: () => this.tellShare(),
      onchange: () => this.change({ train_share: Number(this.share.value) }) });
    this.shareText = el('span');
    this.charts = { loss: new Chart('Loss', { log: true }), lr: new Chart('Learning rate', { plain: true }), grad_norm: new Chart('Gradient norm') };
    this.plan = el('dl', { class: 'plan' });
    this.samples = el('ul', { class: 'samples', tabindex: 0, 'aria-label': 'Previews, newest first' });
    this.older = el('button', { type: 'button', class: 'small', hidden: true, onclick: () => this.showOlder() }, 'Older previews');
    this.previews = el('section', { class: 'previews', 'aria-label': 'Previews', hidden: true },
      el('div', { class: 'panel-head' }, el('h3', {}, 'Previews'), this.older), this.samples);
    this.heading = el('h3', { tabindex: -1 }, job.name);
    this.node = el('article', { class: 'run' },
      el('div', { class: 'run-head' }, this.heading, this.state), this.bar, this.status,
      el('div', { class: 'actions' }, ...this.buttons), this.sure, this.form, this.error,
      el('label', { class: 'share' }, this.shareText, this.share), el('div', { class: 'charts' }, ...Object.values(this.charts).map((c) => c.node)),
      this.previews, el('h3', {}, 'Memory plan'), this.plan);
    this.update(job);
    this.draw();
  }

  update(job) {
    if (job.state !== this.job.state)
      announce(`${job.name}: ${job.state}.`);
    this.job = job;
    this.node.dataset.state = job.state;
    setText(this.state, job.state);
    this.progress(job);
    this.allow(job.state);
    this.share.disabled = OVER.includes(job.state);
    if (document.activeElement !== this.share)
      this.share.value = job.train_share;
    this.tellShare();
    this.plan.replaceChildren(...planRows(job.plan, this.schemas.JobPlan));
  }

  // A button that may not be pressed any more hands the focus on: Pause to Resume.
  allow(state) {
    const held = this.buttons.find((button) => button === document.activeElement);
    for (const button of this.buttons)
      button.disabled = !MAY[button.dataset.action].includes(state);
    if (!MAY.cancel.includes(state) && !this.sure.hidden) {
      if (this.sure.contains(document.activeElement))
        this.heading.focus();
      show(this.sure, false);
    }
    if (held?.disabled)
      this.buttons.find((button) => !button.disabled)?.focus();
  }

  progress({ step, steps, images_per_s: rate, eta_s: eta }) {
    const { job } = this;
    this.bar.max = steps;
    this.bar.value = step;
    const parts = [`Step ${step} of ${steps}`];
    if (rate !== undefined)
      parts.push(`${shortNumber(rate)} images/s`);
    if (job.state === 'running' && eta !== undefined)
      parts.push(`${duration(eta * 1000)} left`);
    parts.push(job.dataset.split('@')[0], job.device);
    if (job.published)
      parts.push(`published as ${job.published}`);
    setText(this.status, [...parts, job.error?.message ?? (job.reason && `${job.state}: ${job.reason}`)].filter(Boolean).join(' · '));
  }

  tellShare() {
    setText(this.shareText, `Share of the device while requests wait: ${Math.round(this.share.value * 100)} %`);
  }

  // ---- what the user does ----

  async ask(path, options) {
    show(this.error, false);
    try {
      const job = await json(pathOf(this.id, path), options);
      this.update({ ...job, state: this.job.state }); // the state is told by events, in their order; an answer may come after them
      return job;
    } catch (e) {
      setText(this.error, e.message);
      show(this.error, true);
      return null;
    }
  }

  // A cancelled job never goes on: asked for twice, and the first answer that offers itself is no.
  askEnd(on) {
    show(this.sure, on);
    (on ? this.keep : this.buttons.find((button) => button.dataset.action === 'cancel')).focus();
  }

  async end() {
    this.heading.focus();
    show(this.sure, false);
    await this.act('cancel');
  }

  act(action) {
    return this.ask(`/${action}`, { method: 'POST' });
  }

  async change(body) {
    if (!(await this.ask('', { method: 'PATCH', body })))
      this.update(this.job);
  }

  askName() {
    show(this.form, this.form.hidden);
    if (!this.form.hidden) {
      this.name.value ||= this.job.name;
      this.tellName();
      this.name.focus();
    }
  }

  tellName() {
    const name = this.name.value.trim();
    setText(this.nameHint, this.around.models().includes(name) ? `There is a model ${name}: this becomes its live version, the one before is kept.` : '');
  }

  async publish(e) {
    e.preventDefault();
    const job = await this.ask('/publish', { method: 'POST', body: { as: this.name.value.trim() } });
    if (job) {
      show(this.form, false);
      this.buttons.find((button) => button.dataset.action === 'publish').focus();
      announce(`Published as ${job.published}.`);
    }
  }

  // ---- what the job tells ----

  on(event, data) {
    if (event === 'state') {
      this.update(data);
      this.loadPast();
    } else if (event === 'step') {
      add(this.steps, data);
      this.progress(data);
      this.loadPast();
    } else if (event === 'eval') {
      add(this.evals, data);
    } else if (event === 'resumed') {
      this.job = { ...this.job, step: data.step };
      cut(this.steps, data.step);
      cut(this.evals, data.step);
      this.loadSamples();
    } else if (event === 'preview') {
      this.loadSamples();
    }
    this.redraw();
  }

  redraw() {
    if (this.steps.length > POINTS_MAX)
      this.steps = this.steps.filter((_, i) => i % 2 === 0);
    this.timer ??= setTimeout(() => this.draw(), DRAW_MS);
  }

  // What was before the first event: a server tells the last steps only, and none of a job that was over when it was started.
  async loadPast() {
    const first = () => this.steps[0]?.step ?? this.job.step + 1;
    if (this.past || first() <= 1 || this.job.step > FILE_STEPS_MAX)
      return;
    this.past = true;
    try {
      const rows = rowsOf(await (await request(pathOf(this.id, '/metrics.csv'), { accept: 'text/csv', signal: this.controller.signal })).text());
      const before = rows.filter((row) => row.step < first());
      const had = new Set(this.evals.map((e) => e.step));
      this.steps = [...before.filter((row) => row.kind === 'step'), ...this.steps];
      this.evals = [...rows.filter((row) => row.kind === 'eval' && row.step <= this.job.step && !had.has(row.step)), ...this.evals]
        .sort((a, b) => a.step - b.step);
      this.redraw();
    } catch {
      // the next connection tries again
    }
  }

  draw() {
    this.timer = undefined;
    for (const [key, chart] of Object.entries(this.charts))
      chart.draw(this.steps.map((p) => ({ step: p.step, value: p[key] })), key === 'loss' ? this.evals.map((p) => ({ step: p.step, value: p.loss })) : []);
  }

  // Until the job is over, or the card is closed.
  async follow() {
    this.controller = new AbortController();
    const { signal } = this.controller;
    this.loadSamples();
    for (let ms = 500; !signal.aborted; ms = Math.min(ms * 2, 15000)) {
      try {
        this.past = false;
        const response = await request(pathOf(this.id, '/events'), { accept: 'text/event-stream', signal, lastId: this.lastId });
        for await (const { event, data, id } of events(response)) {
          ms = 500;
          this.lastId = id ?? this.lastId;
          this.on(event, data);
        }
        if (OVER.includes(this.job.state))
          return;
      } catch (e) {
        if (signal.aborted || e.status === 401 || e.status === 404)
          return;
      }
      setText(this.state, 'no connection');
      await sleep(ms, signal);
    }
  }

  // ---- previews ----

  // One at a time: what comes while it loads is looked at when it is done.
  async loadSamples() {
    this.stale = true;
    if (this.loading)
      return;
    this.loading = true;
    while (this.stale && !this.controller.signal.aborted) {
      this.stale = false;
      try {
        await this.showSamples(await this.readSamples());
      } catch {
        break; // the next preview, or the next look, asks again
      }
    }
    this.loading = false;
  }

  // As many pages as the columns need, and one step more, so that it is known whether there are older ones.
  async readSamples() {
    const all = [];
    for (let after = ''; after !== null;) {
      const { samples, next } = await json(pathOf(this.id, `/samples${after && `?after=${after}`}`), { signal: this.controller.signal });
      all.push(...samples);
      after = stepsOf(all).length <= this.columns ? next : null;
    }
    return all;
  }

  showOlder() {
    this.columns += COLUMNS;
    this.samples.focus();
    return this.loadSamples();
  }

  async showSamples(samples) {
    const steps = stepsOf(samples).slice(0, this.columns);
    show(this.older, stepsOf(samples).length > this.columns);
    const columns = steps.map((step) => ({ step, samples: samples.filter((s) => s.step === step).reverse().slice(0, 10) })); // as they were asked for
    const make = () => el('li', {}, el('span', { class: 'hint' }));
    show(this.previews, columns.length);
    keyed(this.samples, columns, (c) => c.step, make, (node, c) => setText(node.firstChild, `step ${c.step}`));
    for (const [i, column] of columns.entries())
      await Promise.all(column.samples.map((sample) => this.showSample(this.samples.children[i], sample)));
  }

  async showSample(column, { url, sha256, label, step }) {
    const key = `${url} ${sha256}`;
    if ([...column.querySelectorAll('img')].some((image) => image.dataset.key === key))
      return;
    const words = label ?? 'no label';
    const image = el('img', { alt: `${words}, step ${step}`, 'data-key': key });
    const figure = el('figure', {}, image, el('figcaption', { title: words }, words));
    column.append(figure); // its place among the others, which may come before it
    try {
      const response = await request(url.replace(/^\//, ''), { accept: 'image/png', signal: this.controller.signal });
      image.src = URL.createObjectURL(await response.blob());
      this.urls.push(image.src);
    } catch (e) {
      figure.remove(); // to be asked for again
      throw e;
    }
  }

  stop() {
    this.controller?.abort();
  }

  close() {
    this.stop();
    clearTimeout(this.timer);
    this.urls.forEach((url) => URL.revokeObjectURL(url));
    this.node.remove();
  }
}

// jobs.js - the list of jobs, newest first, asked for again and again while it is looked at; "Older jobs" adds a page.
import { json } from './api.js';
import { $, el, keyed, plural, setText, show, sleep } from './dom.js';

const LIST_MS = 2000;
const REST = 5; // of so many looks at jobs one is at the rest, too: others bring datasets

export class JobList {
  // choose(job) when one is pressed; changed(jobs) when a job is new or its state is; rest() then, and now and then.
  constructor(choose, changed, rest) {
    Object.assign(this, { choose, changed, rest, looks: 0, pages: 1, chosen: null, states: null, looking: null });
    $('jobs-older').addEventListener('click', () => this.older());
  }

  // Begin, or ask at once.
  look() {
    this.stop();
    this.states = null; // what hangs on them is looked at again too
    this.looking = new AbortController();
    this.ask(this.looking.signal);
  }

  stop() {
    this.looking?.abort();
    this.looking = null;
  }

  async ask(signal) {
    for (; !signal.aborted; await sleep(LIST_MS, signal)) {
      try {
        this.draw(await this.read(signal));
      } catch (e) {
        if (signal.aborted)
          return;
        setText($('jobs-text'), e.message);
        if (e.status === 401)
          return;
      }
    }
  }

  // The pages that are shown, each after the last of the one before: { jobs, next }.
  async read(signal) {
    const all = { jobs: [], next: null };
    for (let page = 0; page < this.pages && (page === 0 || all.next); page++) {
      const { jobs, next } = await json(all.next ? `jobs?after=${encodeURIComponent(all.next)}` : 'jobs', { signal });
      all.jobs.push(...jobs);
      all.next = next;
    }
    return all;
  }

  draw({ jobs, next }) {
    const before = $('jobs').children.length;
    keyed($('jobs'), jobs, (j) => j.id, () => this.makeItem(), updateItem);
    this.mark(this.chosen);
    setText($('jobs-text'), jobs.length ? `${next ? 'The newest ' : ''}${plural(jobs.length, 'job')}` : 'No job yet.');
    show($('jobs-older'), next);
    if (this.focusNew)
      $('jobs').children[before]?.firstChild.focus();
    this.focusNew = false;
    const states = jobs.map((j) => `${j.id} ${j.state}`).join();
    if (states !== this.states)
      this.changed(jobs);
    if (states !== this.states || ++this.looks % REST === 0)
      this.rest();
    this.states = states;
  }

  older() {
    this.pages++;
    this.focusNew = true; // the button may go: the keyboard goes on with what it brought
    this.look();
  }

  mark(id) {
    this.chosen = id;
    for (const item of $('jobs').children)
      item.firstChild.setAttribute('aria-pressed', String(item.dataset.key === id));
  }

  makeItem() {
    const item = el('li');
    item.append(el('button', { type: 'button', onclick: () => this.choose(item.job) }, el('span', { class: 'job-name' }),
      el('span', { class: 'job-state' }), el('progress', { 'aria-label': 'Progress' }), el('span', { class: 'hint' })));
    return item;
  }
}

function words(j) {
  const parts = [`step ${j.step} of ${j.steps}`];
  if (j.loss !== undefined)
    parts.push(`loss ${j.loss.toPrecision(3)}`);
  if (j.state === 'queued')
    parts.push(`${j.position} ahead`);
  return parts.join(' · ');
}

function updateItem(item, job) {
  const [name, state, bar, note] = item.firstChild.children;
  item.job = job;
  item.dataset.state = job.state;
  setText(name, job.name);
  setText(state, job.state);
  bar.max = job.steps;
  bar.value = job.step;
  setText(note, words(job));
}

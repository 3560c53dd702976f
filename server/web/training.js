// training.js - the Training view: the list of jobs, the chosen one's card, the form of a new one, and the datasets.
//
// Nothing is asked while the view or the page is hidden.
import { Card } from './card.js';
import { loadDatasets, onDatasets, setUpDatasets } from './datasets.js';
import { $, show } from './dom.js';
import { JobList } from './jobs.js';
import { makeNewJob } from './newjob.js';

let schemas = null; // of the OpenAPI document
let list = null;
let form = null;
let card = null;
let watching = false;
let models = []; // names

const openForm = (on) => show($('new-job'), on);

function look(job) {
  card?.close();
  card = new Card(job, schemas, { again, models: () => models });
  $('job').replaceChildren(card.node);
  card.follow();
  list.mark(job.id);
}

// The keyboard goes on at what is shown, wherever on the screen that is.
function choose(job) {
  look(job);
  openForm(false);
  card.heading.focus();
}

function again(job) {
  openForm(true);
  form.useJob(job);
}

function accepted(job) {
  choose(job);
  list.look();
}

function onJobs(jobs) {
  form.setJobs(jobs);
  if (card)
    return;
  if (jobs.length)
    look(jobs[0]);
  else
    openForm(true);
}

// Begin or end asking, by what can be seen.
export function watchTraining(on = !document.hidden && !$('training').hidden) {
  if (on === watching || !list)
    return;
  watching = on;
  if (on) {
    list.look();
    card?.follow();
  } else {
    list.stop();
    card?.stop();
  }
}

function turn(training) {
  show($('training'), training);
  show($('making'), !training);
  $('tab-training').setAttribute('aria-pressed', String(training));
  $('tab-pictures').setAttribute('aria-pressed', String(!training));
  watchTraining();
}

// { setModels } of the view; `spec` is the OpenAPI document.
export function makeTraining(spec) {
  schemas = spec.components.schemas;
  list = new JobList(choose, onJobs, loadDatasets);
  form = makeNewJob(spec, accepted);
  onDatasets((datasets, stored) => {
    form.setDatasets(datasets);
    if (stored)
      form.useDataset(stored);
  });
  setUpDatasets();
  $('tab-training').addEventListener('click', () => turn(true));
  $('tab-pictures').addEventListener('click', () => turn(false));
  $('new-open').addEventListener('click', () => {
    openForm(true);
    form.focus();
  });
  $('new-close').addEventListener('click', () => {
    openForm(false);
    $('new-open').focus();
  });
  return {
    setModels(cards) {
      models = cards.map((c) => c.name);
      form.setModels(cards);
    },
  };
}

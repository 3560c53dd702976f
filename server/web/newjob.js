// newjob.js - the form of POST /jobs.
import { json } from './api.js';
import { $, announce, bytes, plural, setText, show } from './dom.js';
import { FieldError, choiceField, seedField } from './fields.js';
import { lookup, makeForm } from './form.js';
import { START, TemplateList, smallJob, templateRequest } from './template.js';

const COMMON = {
  dataset: { title: 'Dataset' },
  from: { title: 'Start from' },
  model: { title: 'Config of the new network', rows: 10 },
  name: { title: 'Name' },
  steps: { title: 'Steps' },
  batch_size: { title: 'Batch size' },
  'optimizer.lr': { title: 'Learning rate' },
  'lr_schedule.kind': { title: 'Learning-rate schedule' },
  'lr_schedule.warmup_steps': { title: 'Warm-up' },
  'objective.prediction': { title: 'Prediction' },
  'objective.label_dropout': { title: 'Label dropout' },
  precision: { title: 'Precision' },
  'ema.decay': { title: 'EMA decay' },
  train_share: { title: 'Share while requests wait', slider: [0, 1, 0.05] },
  'eval.fraction': { title: 'Held-out share' },
  'eval.every_steps': { title: 'Evaluate every' },
  'preview.every_steps': { title: 'Preview every' },
  'preview.labels': { title: 'Preview labels', none: 'the null label' },
  seed: { title: 'Seed' },
};

const newKey = () => [...crypto.getRandomValues(new Uint32Array(4))].map((word) => word.toString(16)).join('-');

// accepted(job) with the answer.
export function makeNewJob(spec, accepted) {
  const choice = (path, _, look) => choiceField(path, look);
  const form = makeForm(spec, 'JobRequest', { id: 'j', common: COMMON, kinds: { dataset: choice, from: choice, seed: seedField },
    places: { common: $('new-common'), rest: $('new-rest'), error: $('new-error') } });
  const [dataset, from, model, name] = ['dataset', 'from', 'model', 'name'].map((path) => form.byPath.get(path));
  const templates = new TemplateList();
  let datasets = new Map(); // by what the field says
  let models = []; // names
  let suggested = '';
  let drafted = ''; // the config that was made for a dataset, as long as it stands in the form

  let key = newKey(); // of what is asked for: asked again after a lost answer it is the same job

  const applyFrom = () => show(model.node, !from.read());

  // The name is the dataset's until somebody gives another, and the network is one for the dataset.
  function applyDataset() {
    const said = name.read();
    const chosen = datasets.get(dataset.read());
    if (said === undefined || said === suggested)
      name.write(suggested = chosen?.name ?? '');
    if (chosen && !from.read() && model.input.value === drafted)
      draft(smallJob(chosen));
  }

  function draft(job) {
    for (const path of ['model', 'objective.label_dropout', 'preview.labels'])
      form.byPath.get(path).write(lookup(job, path));
    drafted = model.input.value;
  }

  // The newest of a name is meant by the name alone.
  function setDatasets(list) {
    const names = new Set();
    datasets = new Map(list.map((d) => {
      const said = names.has(d.name) ? `${d.name}@${d.hash.slice(0, 12)}` : d.name;
      names.add(d.name);
      return [said, d];
    }));
    dataset.setOptions(list.length ? [...datasets.keys()].map((said) => [said, said]) : [['', 'none yet: upload one']]);
    applyDataset();
  }

  // One that has just come is what the next job is for.
  function useDataset({ name: of, hash }) {
    const said = datasetOf(`${of}@${hash}`);
    if (!said)
      return;
    dataset.write(said);
    applyDataset();
    countMore();
  }

  // Names of models, and the version that a template named: it may not be the live one.
  function setStarts(wanted = from.read()) {
    const all = wanted && !models.includes(wanted) ? [...models, wanted] : models;
    from.setOptions([['', 'A new network'], ...all.map((each) => [each, each])]);
    from.write(wanted);
    applyFrom();
  }

  function setModels(cards) {
    models = cards.map((c) => c.name);
    setStarts();
    templates.set({ models: cards });
  }

  // How much stands where it is not seen.
  function countMore() {
    const said = form.fields.filter((f) => f.node.closest('#new-rest') && f.input.value.trim() !== '').length;
    setText($('new-more').firstElementChild, said ? `More (${plural(said, 'field')} filled in)` : 'More');
  }

  // ---- templates ----

  // Of a job's own dataset the choice that means it.
  const datasetOf = (ref) => [...datasets].find(([, d]) => `${d.name}@${d.hash}` === ref)?.[0];

  function write(request, small) {
    key = newKey();
    const said = datasetOf(request.dataset) ?? dataset.read();
    setStarts(request.from ?? '');
    form.fill({ ...request, dataset: said, name: request.name ?? name.read() }, true);
    drafted = small ? model.input.value : null;
    applyFrom();
    applyDataset();
    countMore();
    return !request.dataset || datasetOf(request.dataset) ? 'It can be changed before training begins.'
      : `Its dataset ${request.dataset.split('@')[0]} is here no more: choose another.`;
  }

  async function fillIn() {
    const { value, selectedOptions: [{ textContent: words }] } = $('new-template');
    const error = (text) => {
      setText($('new-template-error'), text);
      show($('new-template-error'), text);
    };
    error('');
    setText($('new-template-text'), '');
    if (value === 'small:' && !dataset.read()) {
      error('A network for which dataset? Upload one.');
      return;
    }
    $('new-fill').setAttribute('aria-busy', 'true');
    try {
      const request = await templateRequest(value, datasets.get(dataset.read()));
      form.clearErrors();
      setText($('new-template-text'), `Filled in: ${words}. ${write(request, value === 'small:')}`);
    } catch (e) {
      if (e.status === undefined)
        throw e;
      error(e.message);
    } finally {
      $('new-fill').removeAttribute('aria-busy');
    }
  }

  function useJob(job) {
    const value = `job:${job.id}`;
    if (!templates.jobs.some((j) => j.id === job.id))
      templates.set({ jobs: [job, ...templates.jobs] });
    $('new-template').value = value;
    $('new-template').focus();
    return fillIn();
  }

  async function submit(e) {
    e.preventDefault();
    form.clearErrors();
    setText($('new-text'), 'Planning …');
    $('new-submit').disabled = true;
    let again = null;
    try {
      const job = await json('jobs', { method: 'POST', body: form.read(), key });
      announce(`${job.name} is accepted, ${bytes(job.plan.total)} of memory planned.`);
      accepted(job);
    } catch (error) {
      if (!(error instanceof FieldError) && error.status === undefined)
        throw error;
      form.showError(error);
      if (error.status === 0)
        again = key;
    } finally {
      key = again ?? newKey();
      setText($('new-text'), '');
      $('new-submit').disabled = false;
    }
  }

  $('new-form').addEventListener('submit', submit);
  $('new-form').addEventListener('input', () => {
    key = newKey();
    countMore();
  });
  $('new-fill').addEventListener('click', fillIn);
  dataset.input.addEventListener('change', applyDataset);
  from.input.addEventListener('change', applyFrom);
  form.fill(START);
  setDatasets([]);
  setModels([]);
  countMore();
  return { setDatasets, setModels, useDataset, setJobs: (jobs) => templates.set({ jobs }), useJob, focus: () => $('new-template').focus() };
}

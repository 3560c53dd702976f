// newjob.js - the form of POST /jobs.
import { json } from './api.js';
import { $, announce, bytes, el, setText, show } from './dom.js';
import { FieldError, choiceField, fieldOf, seedField } from './fields.js';
import { makeForm } from './form.js';

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
const START = { steps: 2000, batch_size: 32, eval: { fraction: 0.05, every_steps: 200 }, preview: { every_steps: 200 } };

// A network that learns small pictures in minutes: something to begin with, in the form to be changed.
function smallUnet({ channels, height_min: height, width_min: width, n_classes: classes }) {
  const side = Math.max(8, 4 * Math.round(Math.min(height, width) / 4)); // halved twice
  return {
    _class_name: 'UNet2DModel', sample_size: side, in_channels: channels, out_channels: channels, layers_per_block: 1,
    block_out_channels: [32, 64, 64], down_block_types: ['DownBlock2D', 'AttnDownBlock2D', 'AttnDownBlock2D'],
    up_block_types: ['AttnUpBlock2D', 'AttnUpBlock2D', 'UpBlock2D'], norm_num_groups: 8, attention_head_dim: 8,
    ...(classes ? { num_class_embeds: classes + 1 } : {}),
  };
}

function modelField(path, schema, look) {
  const field = fieldOf(path, schema, look);
  return { ...field, content: [...field.content, el('button', { type: 'button', class: 'small', id: 'new-unet' }, 'Write a small U-Net for the dataset')] };
}

const newKey = () => [...crypto.getRandomValues(new Uint32Array(4))].map((word) => word.toString(16)).join('-');

// accepted(job) with the answer.
export function makeNewJob(spec, accepted) {
  const choice = (path, _, look) => choiceField(path, look);
  const form = makeForm(spec, 'JobRequest', { id: 'j', common: COMMON, kinds: { dataset: choice, from: choice, model: modelField, seed: seedField },
    places: { common: $('new-common'), rest: $('new-rest'), error: $('new-error') } });
  const [dataset, from, model, name] = ['dataset', 'from', 'model', 'name'].map((path) => form.byPath.get(path));
  let datasets = new Map(); // by what the field says
  let suggested = '';

  let key = newKey(); // of what is asked for: asked again after a lost answer it is the same job

  const applyFrom = () => show(model.node, !from.read());

  // The name is the dataset's until somebody gives another.
  function applyDataset() {
    const said = name.read();
    if (said === undefined || said === suggested)
      name.write(suggested = datasets.get(dataset.read())?.name ?? '');
    $('new-unet').disabled = !dataset.read();
  }

  function writeUnet() {
    key = newKey();
    const d = datasets.get(dataset.read());
    model.write(smallUnet(d));
    form.byPath.get('objective.label_dropout').write(d.n_classes ? 0.1 : undefined); // else nothing is learned without a label
    form.byPath.get('preview.labels').write(d.n_classes ? 'all' : undefined);
    announce('The config is written.');
    model.input.setSelectionRange(0, 0);
    model.input.focus();
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

  function setModels(cards) {
    from.setOptions([['', 'A new network'], ...cards.map((c) => [c.name, c.name])]);
    applyFrom();
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
  $('new-form').addEventListener('input', () => { key = newKey(); });
  $('new-unet').addEventListener('click', writeUnet);
  dataset.input.addEventListener('change', applyDataset);
  from.input.addEventListener('change', applyFrom);
  form.fill(START);
  setDatasets([]);
  setModels([]);
  return { setDatasets, setModels, focus: () => dataset.input.focus() };
}

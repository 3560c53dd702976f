// template.js - what a new job can begin with: a small network for the dataset, a model's weights or its config, an earlier job.
//
// Each gives a whole request, which the form shows for changing; nothing is sent to train by it.
import { json } from './api.js';
import { $, el } from './dom.js';

export const START = { steps: 2000, batch_size: 32, eval: { fraction: 0.05, every_steps: 200 }, preview: { every_steps: 200 } };
const PREVIEWS_MAX = 64; // pictures of one preview

// A network that learns small pictures in minutes.
function smallUnet({ channels, height_min: height, width_min: width, n_classes: classes }) {
  const side = Math.max(8, 4 * Math.round(Math.min(height, width) / 4)); // halved twice
  return {
    _class_name: 'UNet2DModel', sample_size: side, in_channels: channels, out_channels: channels, layers_per_block: 1,
    block_out_channels: [32, 64, 64], down_block_types: ['DownBlock2D', 'AttnDownBlock2D', 'AttnDownBlock2D'],
    up_block_types: ['AttnUpBlock2D', 'AttnUpBlock2D', 'UpBlock2D'], norm_num_groups: 8, attention_head_dim: 8,
    ...(classes ? { num_class_embeds: classes + 1 } : {}),
  };
}

// The network and its dataset decide how labels are used; guidance needs some steps without one.
function fresh(network, dataset, rest) {
  const classes = dataset?.n_classes ?? 0;
  const rows = network.num_class_embeds ?? 0;
  const labels = rows && classes && classes <= PREVIEWS_MAX ? 'all' : undefined;
  const dropout = rows > classes && classes ? 0.1 : undefined;
  return { ...START, ...rest, objective: { ...rest.objective, label_dropout: dropout }, preview: { ...START.preview, labels } };
}

// What the form has until somebody changes it.
export function smallJob(dataset) {
  const model = smallUnet(dataset);
  return fresh(model, dataset, { model });
}

const recipeOf = (name) => json(`models/${encodeURIComponent(name)}/config`);

const kinds = {
  small: (_, dataset) => smallJob(dataset),
  async further(name, dataset) {
    const { model, objective } = await recipeOf(name);
    return fresh(model, dataset, { from: name, objective });
  },
  async like(name, dataset) {
    const { model, schedule, objective } = await recipeOf(name);
    delete model._diffusers_version;
    return fresh(model, dataset, { model, objective, schedule: Object.keys(schedule).length ? schedule : undefined });
  },
  async job(id) {
    return (await json(`jobs/${encodeURIComponent(id)}`)).request;
  },
};

// { kind, of } of an option's value; a name or an id may have any character but those of the kind.
const parts = (value) => ({ kind: value.split(':', 1)[0], of: value.slice(value.indexOf(':') + 1) });

// The request of a template, `dataset` (or undefined) being what the form has at present.
export function templateRequest(value, dataset) {
  const { kind, of } = parts(value);
  return kinds[kind](of, dataset);
}

const dateOf = (seconds) => new Date(seconds * 1000).toLocaleString([], { dateStyle: 'medium', timeStyle: 'short' });

// The choices, in groups; a list that is open stays open while nothing changes.
export class TemplateList {
  constructor() {
    Object.assign(this, { models: [], jobs: [], shown: null });
    this.draw();
  }

  set(what) {
    Object.assign(this, what);
    this.draw();
  }

  draw() {
    const groups = [
      ['Bundled', [['small:', 'A small U-Net for the dataset']]],
      ['Weights of a model', this.models.map((m) => [`further:${m.name}`, `Train ${m.name} further`])],
      ['Config of a model', this.models.map((m) => [`like:${m.name}`, `A new network like ${m.name}`])],
      ['An earlier job', this.jobs.map((j) => [`job:${j.id}`, `${j.name}, ${j.steps} steps, ${dateOf(j.created_at)}`])],
    ].filter(([, options]) => options.length);
    const select = $('new-template');
    if (JSON.stringify(groups) === this.shown)
      return;
    this.shown = JSON.stringify(groups);
    const before = select.value;
    select.replaceChildren(...groups.map(([label, options]) =>
      el('optgroup', { label }, ...options.map(([value, text]) => el('option', { value }, text)))));
    select.value = [...select.options].some((o) => o.value === before) ? before : 'small:';
  }
}

// datasets.js - the stored datasets: the list, deleting one, and the upload of a new one.
import { json, request } from './api.js';
import { $, announce, bytes, el, keyed, plural, setText, show, sleep } from './dom.js';
import { tarOf } from './tar.js';

let datasets = []; // newest first, as the server lists them
const listeners = [];
let asks = 0;
let again = 0; // the timer that looks again while something is on its way
let stored = null; // what has been uploaded since the list was read

const LOOK_AGAIN_MS = 1000;

const refOf = (d) => `${encodeURIComponent(d.name)}@${d.hash}`;

function sizeOf(d) {
  const least = `${d.height_min}×${d.width_min}`;
  const most = `${d.height_max}×${d.width_max}`;
  return least === most ? least : `${least} to ${most}`;
}

function facts(d) {
  const classes = d.n_classes ? plural(d.n_classes, 'class', 'classes') : 'no labels';
  return `${plural(d.images, 'picture')} · ${sizeOf(d)} · ${classes} · ${bytes(d.bytes)}`;
}

// Called with the list whenever it has been read again, and with what has just been uploaded.
export function onDatasets(listener) {
  listeners.push(listener);
}

export async function loadDatasets() {
  const ask = ++asks;
  try {
    const answer = await json('datasets');
    if (ask !== asks)
      return; // a later one is under way, or has answered
    datasets = answer.datasets;
    const coming = answer.imports.map((i) => ` · ${i.name} is on its way`).join('');
    setText($('datasets-text'), (datasets.length ? plural(datasets.length, 'dataset') : 'None yet.') + coming);
    clearTimeout(again);
    if (coming)
      again = setTimeout(loadDatasets, LOOK_AGAIN_MS);
    if (!datasets.length)
      $('upload-more').open = true;
    keyed($('datasets'), datasets, (d) => `${d.name}@${d.hash}`, makeItem, updateItem);
    listeners.forEach((listener) => listener(datasets, stored));
    stored = null;
  } catch (e) {
    setText($('datasets-text'), e.message);
  }
}

// ---- the list ----

// Deleting is asked for twice, and the first answer that offers itself is no.
function makeItem(d) {
  const error = el('p', { class: 'error', role: 'alert', hidden: true });
  const ask = (on) => {
    show(first, !on);
    show(sure, on);
    (on ? keep : first).focus();
  };
  const remove = async () => {
    show(error, false);
    try {
      await request(`datasets/${refOf(d)}`, { method: 'DELETE' });
      announce(`${d.name} is deleted.`);
      $('datasets-title').focus();
    } catch (e) {
      ask(false);
      setText(error, e.message);
      show(error, true);
    }
    loadDatasets();
  };
  const button = (text, onclick, props) => el('button', { type: 'button', class: 'small', onclick, ...props }, text);
  const first = button('Delete', () => ask(true), { 'aria-label': `Delete ${d.name}` });
  const keep = button('Keep', () => ask(false), { 'aria-label': `Keep ${d.name}` });
  const sure = el('span', { class: 'sure', hidden: true }, keep, button('Delete for good', remove, { class: 'small danger' }));
  return el('li', {}, el('span', { class: 'dataset-name' }, d.name), first, el('p', { class: 'hint' }), sure, error);
}

function updateItem(node, d) {
  const used = d.pinned_by ? ` · used by ${plural(d.pinned_by, 'job')}` : '';
  const older = datasets.find((other) => other.name === d.name) === d ? '' : ` · an older one, ${d.hash.slice(0, 8)}`;
  setText(node.querySelector('.hint'), facts(d) + used + older);
  node.title = (d.classes ?? []).join(', ');
}

// ---- what is chosen to be uploaded ----

let chosen = []; // { path, file }

const suggestion = (path) => path.split('/').pop().toLowerCase().replace(/(.)\.[^/]*$/, '$1').replace(/[^a-z0-9._-]+/g, '-').replace(/^[^a-z0-9]+/, '');

// `from` is what the name comes from if none is given yet: a file or a folder.
function choose(entries, from) {
  chosen = entries;
  const size = chosen.reduce((sum, { file }) => sum + file.size, 0);
  const what = chosen.length === 1 ? chosen[0].path : plural(chosen.length, 'file');
  setText($('upload-chosen'), chosen.length ? `${what}, ${bytes(size)}` : '');
  if (chosen.length && !$('upload-name').value)
    $('upload-name').value = suggestion(from);
  clearErrors();
  show($('upload-report'), false);
}

function onPicked({ target }) {
  const entries = [...target.files].map((file) => ({ path: file.webkitRelativePath || file.name, file }));
  choose(entries, entries[0]?.path.split('/')[0] ?? '');
  target.value = ''; // the same again is a change again
}

// The files of a dropped file or folder, folders within it too.
async function filesOf(entry) {
  if (entry.isFile)
    return [{ path: entry.fullPath.slice(1), file: await new Promise((resolve, reject) => entry.file(resolve, reject)) }];
  const reader = entry.createReader();
  const out = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length)
      return out;
    for (const each of some)
      out.push(...await filesOf(each));
  }
}

const hasFiles = (e) => e.dataTransfer.types.includes('Files');

async function onDrop(e) {
  if (!hasFiles(e))
    return;
  e.preventDefault();
  $('upload-drop').classList.remove('over');
  if (controller)
    return;
  $('upload-more').open = true;
  const entries = [...e.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean); // before the event is over
  try {
    choose((await Promise.all(entries.map(filesOf))).flat(), entries[0]?.name ?? '');
  } catch (error) {
    refuse('files', error.message);
  }
}

// ---- the upload ----

const ASK_AGAIN_MS = 200;

let controller = null; // of the one under way; what is chosen stays as it is meanwhile
let sending = null; // { name, whole }: whole is true when all of it has left
let stopping = false;

function clearErrors() {
  for (const field of ['files', 'name']) {
    show($(`upload-${field}-error`), false);
    $(`upload-${field}`).removeAttribute('aria-invalid');
  }
}

function refuse(field, message) {
  setText($(`upload-${field}-error`), message);
  show($(`upload-${field}-error`), true);
  $(`upload-${field}`).setAttribute('aria-invalid', 'true');
  $(`upload-${field}`).focus();
}

function busy(on) {
  show($('upload-progress'), on);
  show($('upload-cancel'), on);
  if (on && document.activeElement === $('upload-send'))
    $('upload-text').focus();
  for (const control of ['send', 'files', 'folder', 'skip', 'name'])
    $(`upload-${control}`).disabled = on;
  $('upload-cancel').disabled = false;
}

function progress(sent, total) {
  const bar = $('upload-bar');
  sending.whole = sent >= total;
  if (!sending.whole) {
    bar.max = total;
    bar.value = sent;
    setText($('upload-text'), `${bytes(sent)} of ${bytes(total)}`);
    return;
  }
  bar.removeAttribute('value'); // how long that takes nobody knows
  if (!stopping)
    setText($('upload-text'), 'Sent. The server reads the pictures …');
}

function report(d, fresh) {
  const broken = d.broken ?? [];
  const more = (d.n_broken ?? 0) - broken.length;
  const late = stopping ? 'Too late to be cancelled. ' : '';
  const head = `${late}${d.name}${fresh ? '' : ' was there already'}: ${facts(d)}.`;
  $('upload-report').replaceChildren(
    el('p', {}, head),
    ...(d.classes?.length ? [el('p', { class: 'hint' }, `Classes: ${d.classes.join(', ')}`)] : []),
    ...(d.n_broken ? [el('p', {}, `${plural(d.n_broken, 'file')} left out:`),
      el('ul', { class: 'broken' }, ...broken.map((b) => el('li', {}, `${b.file}: ${b.why}`)), more > 0 ? el('li', {}, `and ${more} more`) : null)] : []));
  show($('upload-report'), true);
  $('upload-report').focus();
  announce(head);
}

function done({ card, fresh }) {
  choose([], '');
  $('upload-name').value = '';
  report(card, fresh);
  stored = card;
  loadDatasets();
}

function cancelled() {
  announce('The upload is cancelled.');
  $('upload-send').focus();
}

// What has not left yet ends with the connection. An import does not: the server is asked to stop it, as often as it takes until
// it has begun, and the upload's own answer says what became of it.
async function cancel() {
  if (!sending.whole) {
    controller.abort();
    return;
  }
  const mine = controller;
  stopping = true;
  setText($('upload-text'), 'Asking the server to stop …');
  announce('Asking the server to stop.');
  $('upload-text').focus();
  $('upload-cancel').disabled = true;
  while (controller === mine) {
    try {
      await request(`datasets/${encodeURIComponent(sending.name)}?importing=true`, { method: 'DELETE' });
      return;
    } catch (e) {
      if (e.status !== 404) { // too late, or the server cannot be asked
        setText($('upload-text'), e.message);
        $('upload-cancel').disabled = controller === mine && e.status === 409;
        return;
      }
    }
    await sleep(ASK_AGAIN_MS, mine.signal);
  }
}

async function send(file) {
  const name = $('upload-name').value.trim();
  const query = $('upload-skip').checked ? '?skip_broken=true' : '';
  let failed = null;
  let answer = null;
  controller = new AbortController();
  sending = { name, whole: false };
  stopping = false;
  busy(true);
  progress(0, file.size);
  try {
    const options = { file, signal: controller.signal, sent: (n) => progress(n, file.size) };
    const response = await request(`datasets/${encodeURIComponent(name)}${query}`, options);
    answer = { card: await response.json(), fresh: response.status === 201 };
  } catch (e) {
    failed = e;
  }
  controller = null;
  busy(false);
  if (answer)
    done(answer);
  else if (failed.name === 'AbortError' || failed.code === 'cancelled')
    cancelled();
  else
    refuse(failed.param === 'name' ? 'name' : 'files', failed.message);
}

function upload(e) {
  e.preventDefault();
  if (controller)
    return;
  clearErrors();
  show($('upload-report'), false);
  if (!chosen.length) {
    refuse('files', 'Choose what to upload.');
  } else if (!$('upload-name').value.trim()) {
    refuse('name', 'It needs a name.');
  } else {
    try {
      send(chosen.length === 1 && !chosen[0].path.includes('/') ? chosen[0].file : tarOf(chosen));
    } catch (error) {
      refuse('files', error.message);
    }
  }
}

export function setUpDatasets() {
  const view = $('training'); // anywhere in it: a file that misses would replace the page
  const over = (on) => $('upload-drop').classList.toggle('over', on);
  $('upload').addEventListener('submit', upload);
  $('upload-cancel').addEventListener('click', cancel);
  $('upload-files').addEventListener('change', onPicked);
  $('upload-folder').addEventListener('change', onPicked);
  view.addEventListener('dragover', (e) => {
    if (!hasFiles(e))
      return;
    e.preventDefault();
    over(true);
  });
  view.addEventListener('dragleave', () => over(false));
  view.addEventListener('drop', onDrop);
}

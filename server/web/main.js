// main.js - joins the parts: form to request, request to pictures, /status to the board, the Training view beside them.
import { ApiError, hasToken, json, onUnauthorized, request } from './api.js';
import { makeAsk } from './ask.js';
import { drawStatus, lost } from './board.js';
import { $, announce, setText, show } from './dom.js';
import { FieldError } from './fields.js';
import { events } from './sse.js';
import { makeTraining, watchTraining } from './training.js';
import { Run, addRun, drawNoise, drawRecent, isMine, removeRun, runningRuns } from './view.js';

const RUNS_MAX = 3; // streams at once: a browser opens six connections to a server, two are /status and a job's events
let form = null;
let training = null;

// ---- token ----

let answer = null;

onUnauthorized((why) => new Promise((resolve) => {
  answer = (token) => {
    answer = null;
    $('token').value = '';
    $('token-dialog').close();
    resolve(token);
  };
  setText($('token-why'), why);
  $('token-dialog').showModal();
  $('token').focus();
}));

$('token-form').addEventListener('submit', (e) => {
  e.preventDefault();
  const token = $('token').value.trim();
  // A header can carry nothing else, and no token of the daemon has anything else.
  if (/^[\x21-\x7e]+$/.test(token))
    answer?.(token);
  else
    setText($('token-why'), 'A token is made of visible ASCII characters.');
});
$('token-cancel').addEventListener('click', () => answer?.(null));
$('token-dialog').addEventListener('close', () => answer?.(null)); // Escape
$('unlock').addEventListener('click', () => start());

function banner(text) {
  show($('banner'), text);
  setText($('banner'), text ?? '');
}

// ---- status ----

let states = ''; // of the models, as last seen
let watching = null;

async function loadModels() {
  const { models } = await json('models');
  form.setModels(models);
  training.setModels(models);
}

function onStatus(status) {
  drawStatus(status, isMine, actOnModel);
  banner(status.draining ? 'The server is stopping: it finishes what runs and takes nothing new.' : null);
  const now = status.models.map((m) => `${m.name} ${m.state}`).join();
  if (now !== states) {
    states = now;
    loadModels().catch((e) => banner(e.message));
  }
}

async function actOnModel(name, action) {
  show($('models-error'), false);
  try {
    await request(`models/${encodeURIComponent(name)}/${action}`, { method: 'POST' });
  } catch (e) {
    setText($('models-error'), e.message);
    show($('models-error'), true);
  }
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// Until the page is hidden or the token is refused; a lost connection is tried again, more and more patiently.
async function watch(signal) {
  for (let wait = 500; !signal.aborted; wait = Math.min(wait * 2, 15000)) {
    try {
      const response = await request('status', { accept: 'text/event-stream', signal });
      show($('unlock'), false);
      for await (const { event, data } of events(response)) {
        wait = 500;
        if (event === 'status')
          onStatus(data);
      }
    } catch (e) {
      if (signal.aborted)
        return;
      if (e.status === 401) {
        lost('locked');
        show($('unlock'), true);
        return;
      }
      lost(e instanceof ApiError && e.status ? e.message : 'no connection, trying again');
    }
    await pause(wait);
  }
}

function startWatching() {
  watching?.abort();
  watching = new AbortController();
  watch(watching.signal);
}

document.addEventListener('visibilitychange', () => {
  watchTraining();
  if (document.hidden)
    watching?.abort();
  else if (form && $('unlock').hidden)
    startWatching();
});

// A page that is left may be kept by the browser, with its connections open: the server shall know that nobody looks.
addEventListener('pagehide', () => {
  watching?.abort();
  watchTraining(false);
  runningRuns().forEach((run) => run.controller.abort());
});

// ---- generating ----

function refused(error) {
  form.showError(error);
  announce(error.message);
}

function readForm() {
  form.clearErrors();
  try {
    return form.read();
  } catch (e) {
    if (!(e instanceof FieldError))
      throw e;
    refused(e);
    return null;
  }
}

async function follow(run, response) {
  for await (const { event, data } of events(response)) {
    if (event === 'error')
      throw new ApiError(response.status, data.error);
    if (['queued', 'progress', 'preview', 'image', 'done'].includes(event))
      run[event](data);
  }
  if (run.running)
    run.fail('The connection was lost before the end.');
}

async function generate() {
  const body = readForm();
  if (!body)
    return;
  if (runningRuns().length >= RUNS_MAX) {
    refused({ param: null, message: `${RUNS_MAX} requests of this page are running: wait for one, or cancel it.` });
    return;
  }
  const run = new Run(body, form.card(body.model), { cancel, reuse });
  run.controller = new AbortController();
  addRun(run);
  try {
    const options = { method: 'POST', accept: 'text/event-stream', body: { ...body, stream: true }, signal: run.controller.signal };
    await follow(run, await request('generate', options));
  } catch (e) {
    onFailure(run, e);
  }
  drawRecent(reuse);
}

function onFailure(run, e) {
  if (e.name === 'AbortError' || e.code === 'cancelled') {
    run.fail('Cancelled.', 'cancelled');
  } else if (!(e instanceof ApiError)) {
    run.fail('The connection was lost before the end.');
  } else if (run.id) {
    run.fail(e.message);
  } else {
    removeRun(run);
    refused(e);
  }
}

// The server is asked, so that it answers how it ended; when it cannot be, leaving cancels as well.
async function cancel(run) {
  run.cancelButton.disabled = true;
  const asked = run.id && request(`requests/${encodeURIComponent(run.id)}`, { method: 'DELETE' });
  if (!(await asked?.catch(() => null)))
    run.controller.abort();
}

function reuse(body) {
  form.clearErrors();
  form.fill(body);
  announce(`The form has the request of seed ${body.seed}.`);
  $('make').focus();
  $('ask').scrollIntoView({ block: 'nearest' });
}

// ---- curl ----

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;

// The same request without the page's previews; one PNG is written to a file.
function curlOf({ preview_every: _, ...body }) {
  const url = new URL('generate', document.baseURI).href;
  const { n, output } = { ...form.card(body.model)?.defaults, ...body };
  const one = (n ?? 1) === 1 && !output;
  const lines = [`curl ${quote(url)}`, `-H 'Content-Type: application/json'`];
  if (hasToken())
    lines.push(`-H "Authorization: Bearer $DENOISED_TOKEN"`);
  if (one)
    lines.push(`-H 'Accept: image/png'`, '-o picture.png');
  lines.push(`-d ${quote(JSON.stringify(body))}`);
  return lines.join(' \\\n  ');
}

async function copyCurl() {
  const body = readForm();
  if (!body)
    return;
  const text = curlOf(body);
  $('curl-text').textContent = text;
  show($('curl-text'), true);
  try {
    await navigator.clipboard.writeText(text);
    setText($('curl'), 'Copied');
    announce('Copied.');
  } catch {
    $('curl-text').focus(); // no clipboard without https: it can be taken from there
    getSelection().selectAllChildren($('curl-text'));
  }
  setTimeout(() => setText($('curl'), 'Copy as curl'), 2000);
}

// ---- start ----

$('form').addEventListener('submit', (e) => {
  e.preventDefault();
  if (!$('make').disabled)
    generate();
});
$('form').addEventListener('keydown', (e) => {
  if (e.key === 'Enter' && (e.ctrlKey || e.metaKey)) {
    e.preventDefault();
    $('form').requestSubmit();
  }
});
$('form').addEventListener('input', () => show($('curl-text'), false));
$('curl').addEventListener('click', copyCurl);

async function build() {
  if (form)
    return;
  const spec = await json('openapi.json');
  form = makeAsk(spec, { common: $('common'), rest: $('rest'), error: $('form-error') });
  training = makeTraining(spec);
}

async function start() {
  try {
    await build();
    await loadModels();
    $('make').disabled = false;
    banner(null);
    startWatching();
    watchTraining(false); // it gave up if it was refused
    watchTraining();
  } catch (e) {
    lost(e.status === 401 ? 'locked' : 'no connection');
    show($('unlock'), e.status === 401);
    if (e.status !== 401) {
      banner(`${e.message} Trying again …`);
      setTimeout(start, 3000);
    }
  }
}

drawNoise($('noise'), 20260);
drawRecent(reuse);
start();

// api.js - requests to the daemon: the bearer token, and refusals as ApiError.
//
// The token lives in sessionStorage only. A 401 asks for one (onUnauthorized), once for all requests that wait for it.

const TOKEN = 'denoised.token';

export class ApiError extends Error {
  constructor(status, error) {
    super(error.message);
    this.status = status;
    this.code = error.code;
    this.param = error.param;
  }
}

let asking = null;
let prompt = async () => null;

export function onUnauthorized(ask) {
  prompt = ask;
}

export const hasToken = () => sessionStorage.getItem(TOKEN) !== null;

async function askToken(why) {
  asking ??= prompt(why).finally(() => {
    asking = null;
  });
  const token = await asking;
  if (token === null)
    return false;
  sessionStorage.setItem(TOKEN, token);
  return true;
}

async function refusal(response) {
  try {
    const { error } = await response.json();
    return new ApiError(response.status, error);
  } catch {
    return new ApiError(response.status, { message: `The server answered ${response.status}.`, code: 'unreadable', param: null });
  }
}

const unreachable = (message) => new ApiError(0, { message, code: 'unreachable', param: null });

async function send(path, { method = 'GET', accept = 'application/json', body, signal, lastId, key }, token) {
  const headers = { Accept: accept };
  if (token !== null)
    headers.Authorization = `Bearer ${token}`;
  if (lastId)
    headers['Last-Event-ID'] = lastId;
  if (key)
    headers['Idempotency-Key'] = key;
  if (body !== undefined)
    headers['Content-Type'] = 'application/json';
  try {
    return await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), signal, cache: 'no-store' });
  } catch (e) {
    throw e.name === 'AbortError' ? e : unreachable('The server does not answer.');
  }
}

// A PUT of a Blob over XMLHttpRequest, which alone tells how much of it is sent: sent(bytes).
function sendFile(path, { file, sent, signal }, token) {
  return new Promise((resolve, reject) => {
    const xhr = new XMLHttpRequest();
    xhr.open('PUT', path);
    xhr.responseType = 'blob';
    xhr.setRequestHeader('Accept', 'application/json');
    xhr.setRequestHeader('Content-Type', 'application/octet-stream');
    if (token !== null)
      xhr.setRequestHeader('Authorization', `Bearer ${token}`);
    xhr.upload.addEventListener('progress', (e) => sent(e.loaded));
    xhr.addEventListener('load', () => resolve(new Response(xhr.response, { status: xhr.status })));
    xhr.addEventListener('error', () => reject(unreachable('The connection was lost, or a file cannot be read any more.')));
    xhr.addEventListener('abort', () => reject(new DOMException('cancelled', 'AbortError')));
    signal.addEventListener('abort', () => xhr.abort(), { once: true });
    xhr.send(file);
  });
}

// A response with an OK status; everything else is thrown as ApiError (or AbortError).
export async function request(path, options = {}) {
  for (;;) {
    const token = sessionStorage.getItem(TOKEN);
    const response = await (options.file ? sendFile : send)(path, options, token);
    if (response.ok)
      return response;
    const error = await refusal(response);
    if (error.status !== 401)
      throw error;
    // another request may have brought a newer token meanwhile
    const renewed = sessionStorage.getItem(TOKEN) !== token;
    if (!renewed && !(await askToken(error.message)))
      throw error;
  }
}

export async function json(path, options) {
  return (await request(path, options)).json();
}

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

async function send(path, { method = 'GET', accept = 'application/json', body, signal, lastId }, token) {
  const headers = { Accept: accept };
  if (token !== null)
    headers.Authorization = `Bearer ${token}`;
  if (lastId)
    headers['Last-Event-ID'] = lastId;
  if (body !== undefined)
    headers['Content-Type'] = 'application/json';
  try {
    return await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), signal, cache: 'no-store' });
  } catch (e) {
    if (e.name === 'AbortError')
      throw e;
    throw new ApiError(0, { message: 'The server does not answer.', code: 'unreachable', param: null });
  }
}

// A response with an OK status; everything else is thrown as ApiError (or AbortError).
export async function request(path, options = {}) {
  for (;;) {
    const token = sessionStorage.getItem(TOKEN);
    const response = await send(path, options, token);
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

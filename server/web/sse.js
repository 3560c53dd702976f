// sse.js - server-sent events over fetch, because EventSource cannot send a token.

// The lines of a text stream, without their ends.
async function* lines(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let parts = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done)
        return;
      let from = 0;
      for (let end; (end = value.indexOf('\n', from)) >= 0; from = end + 1) {
        parts.push(value.slice(from, end));
        const line = parts.join('');
        parts = [];
        yield line.endsWith('\r') ? line.slice(0, -1) : line;
      }
      parts.push(value.slice(from));
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// { event, data, id } of each event, data parsed as JSON; id is the last one that was seen. Comments (the server's pings) are skipped.
export async function* events(response) {
  let event = 'message';
  let id = null;
  let data = [];
  for await (const line of lines(response.body)) {
    if (line === '') {
      if (data.length)
        yield { event, data: JSON.parse(data.join('\n')), id };
      event = 'message';
      data = [];
      continue;
    }
    const colon = line.indexOf(':');
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '');
    if (name === 'event')
      event = value;
    else if (name === 'id')
      id = value;
    else if (name === 'data')
      data.push(value);
  }
}

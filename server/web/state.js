// state.js - what the page remembers: which request has which colour, and the recent pictures.

const COLOURS = 10; // .c0 to .c9 of page.css

// ---- a letter and a colour for each request that is seen ----

const seen = new Map(); // request id -> { letter, colour, used }
let clock = 0;

// The same as long as the request lives; a new request gets the colour that has been unused for longest.
export function tagOf(id) {
  let tag = seen.get(id);
  if (!tag) {
    const last = new Array(COLOURS).fill(-1);
    for (const t of seen.values())
      last[t.colour] = Math.max(last[t.colour], t.used);
    const colour = last.indexOf(Math.min(...last));
    tag = { colour, letter: String.fromCharCode(65 + colour) };
    seen.set(id, tag);
  }
  tag.used = clock++;
  if (seen.size > 500)
    seen.delete(seen.keys().next().value);
  return tag;
}

// ---- recent pictures, newest first: { request, seed, b64 } ----

const RECENT = 'denoised.recent';
const RECENT_MAX = 48;
const CHARS_MAX = 2e6; // of what survives a reload

let recent = [];
try {
  recent = JSON.parse(sessionStorage.getItem(RECENT)) ?? [];
} catch {
  sessionStorage.removeItem(RECENT);
}

export const recentPictures = () => recent;

// The pictures of one request, in its order.
export function remember(pictures) {
  const again = new Set(pictures.map((p) => p.b64));
  recent = [...pictures, ...recent.filter((p) => !again.has(p.b64))].slice(0, RECENT_MAX);
  let chars = 0;
  const kept = recent.filter((p) => (chars += p.b64.length) < CHARS_MAX);
  try {
    sessionStorage.setItem(RECENT, JSON.stringify(kept));
  } catch {
    sessionStorage.removeItem(RECENT); // the tab's quota: they are kept until a reload
  }
}

// The request that makes picture `index` of `request` alone: sample k has the seed seed + k.
export function single(request, image) {
  if (request.output?.layout === 'grid')
    return { ...request, seed: image.seed };
  const { class_label: label, ...one } = { ...request, n: 1, seed: image.seed };
  if (label !== undefined)
    one.class_label = Array.isArray(label) ? label[image.index] : label;
  return one;
}

// tar.js - several files as one tar archive: a Blob of headers and of the files themselves, which are read as they are sent.

const BLOCK = 512;
const NAME_MAX = 100; // bytes of the last part of a path, and of a path without folders
const FOLDERS_MAX = 155;
const SIZE_MAX = 8 ** 11;

// [folders, name]: ustar has two places for a path.
function halves(path) {
  const utf8 = (text) => new TextEncoder().encode(text);
  const whole = utf8(path);
  if (whole.length <= NAME_MAX)
    return [utf8(''), whole];
  const cut = path.lastIndexOf('/');
  const [folders, name] = [utf8(path.slice(0, Math.max(cut, 0))), utf8(path.slice(cut + 1))];
  if (cut < 0 || folders.length > FOLDERS_MAX || name.length > NAME_MAX)
    throw new Error(`${path}: the name is too long`);
  return [folders, name];
}

function header(path, size) {
  const block = new Uint8Array(BLOCK);
  const text = (at, value) => block.set(new TextEncoder().encode(value), at);
  const octal = (at, digits, value) => text(at, value.toString(8).padStart(digits, '0'));
  const [folders, name] = halves(path);
  if (size >= SIZE_MAX)
    throw new Error(`${path}: the file is too large to be packed; upload an archive`);
  block.set(name, 0);
  octal(100, 7, 0o644);
  octal(108, 7, 0);
  octal(116, 7, 0);
  octal(124, 11, size);
  octal(136, 11, 0);
  text(148, '        '); // the checksum is of these
  text(156, '0');
  text(257, 'ustar\0' + '00');
  block.set(folders, 345);
  octal(148, 6, block.reduce((sum, byte) => sum + byte, 0));
  block[154] = 0;
  return block;
}

// entries: { path, file } in the order of the archive.
export function tarOf(entries) {
  const padding = (size) => new Uint8Array((BLOCK - (size % BLOCK)) % BLOCK);
  return new Blob([...entries.flatMap(({ path, file }) => [header(path, file.size), file, padding(file.size)]), new Uint8Array(2 * BLOCK)]);
}

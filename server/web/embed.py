#!/usr/bin/env python3
"""Turn files into one C table of dn_asset: embed.py NAME OUT.c FILE...

index.html is served as /, every other file by its name. The ETag is a hash of the bytes, so a new build is a new page."""
import hashlib
import os
import sys

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
}


def array(name, data):
    lines = [", ".join(str(b) for b in data[i:i + 24]) for i in range(0, len(data), 24)]
    return "static const unsigned char %s[] = {\n    %s\n};\n" % (name, ",\n    ".join(lines) or "0")


def main():
    prefix, out, files = sys.argv[1], sys.argv[2], sys.argv[3:]
    arrays, rows = [], []
    for i, path in enumerate(files):
        base = os.path.basename(path)
        with open(path, "rb") as f:
            data = f.read()
        kind = TYPES[os.path.splitext(base)[1]]
        url = "/" if base == "index.html" else "/" + base
        etag = hashlib.sha256(data).hexdigest()[:16]
        arrays.append(array("file%d" % i, data))
        rows.append('    { "%s", "%s", "\\"%s\\"", file%d, %d },\n' % (url, kind, etag, i, len(data)))
    with open(out, "w") as f:
        f.write('#include <http.h>\n\nextern const dn_asset %s_assets[];\nextern const size_t %s_n_assets;\n\n' %
                (prefix, prefix))
        f.write("\n".join(arrays))
        f.write("\nconst dn_asset %s_assets[] = {\n%s};\n" % (prefix, "".join(rows) or "    { 0 },\n"))
        f.write("const size_t %s_n_assets = %d;\n" % (prefix, len(files)))


main()

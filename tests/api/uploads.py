"""Uploads that take long, for tests of what happens meanwhile."""
import contextlib
import io
import os
import tarfile
import threading
import time

from serving import PATIENCE, png_write


FORM = {"Content-Type": 'multipart/form-data; boundary="--- a file"'}


def form(files, field="file"):
    """A multipart body of FORM's boundary."""
    body = b""
    for name, data in files:
        body += b'----- a file\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\n' % (field.encode(), name.encode())
        body += b"Content-Type: application/octet-stream\r\n\r\n" + data + b"\r\n"
    return body + b"----- a file--\r\n"


def slow_tar(n, side=1024):
    """A few megabytes that take seconds to import."""
    out, data = io.BytesIO(), png_write(side, side, 1, bytes(side * side))
    with tarfile.open(fileobj=out, mode="w") as t:
        for k in range(n):
            info = tarfile.TarInfo("%04d.png" % k)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return out.getvalue()


class Importing(threading.Thread):
    """PUT of a dataset that takes seconds, in a thread of its own."""

    def __init__(self, daemon, name, n=1900):
        super().__init__()
        self.d, self.name, self.n, self.answer = daemon, name, n, None

    def run(self):
        with contextlib.suppress(OSError, AssertionError):  # the daemon may be killed
            self.answer = self.d.ask("PUT", "/datasets/" + self.name, slow_tar(self.n), {"Content-Type": "application/x-tar"})

    def begun(self, state):
        """Until its pictures are being read."""
        self.start()
        end = time.monotonic() + PATIENCE
        while not any(".import-" in name for name in os.listdir(os.path.join(state, "incoming"))):
            assert time.monotonic() < end and self.is_alive(), self.answer
            time.sleep(0.005)
        return self

"""Daemons, one after the other, on one state folder: what a test of durability needs."""
import signal
import sqlite3
import time

from serving import BINARY, PATIENCE, Serving


class Box:
    """Daemons, one after the other, on one state folder."""

    def __init__(self, models, state, env=None):
        self.models, self.state, self.env, self.d = str(models), str(state), env, None

    def start(self, *args, wait=True):
        self.d = Serving(BINARY, ["--listen", "127.0.0.1:0", "--models", self.models, "--state", self.state,
                                  "--max-queue-ms", "86400000", "--drain-ms", "200", "--step-ms", "10000", *args],
                         self.env).started()
        end = time.monotonic() + PATIENCE
        while wait and self.d.ask("GET", "/readyz").status != 200:
            assert time.monotonic() < end
            time.sleep(0.01)
        return self.d

    def kill(self):
        self.d.stop(want=-signal.SIGKILL, sig=signal.SIGKILL)

    def stop(self):
        if self.d and self.d.proc.poll() is None:
            self.d.stop()

    def again(self, *args):
        self.stop()
        return self.start(*args)

    def sql(self, text, *values):
        db = sqlite3.connect(self.state + "/denoised.db")
        try:
            with db:
                return db.execute(text, values).fetchall()
        finally:
            db.close()

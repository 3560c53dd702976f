#!/usr/bin/env python3
"""`make bench`: the network and the training step beside their peers, then the daemon as a server."""
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
BUILD = os.path.join(os.path.dirname(os.path.dirname(HERE)), "build")

for script in ("forward.py", "training.py", "serving.py", "beside_job.py"):
    if subprocess.run([sys.executable, os.path.join(HERE, script), BUILD]).returncode:
        sys.exit(script + " failed")

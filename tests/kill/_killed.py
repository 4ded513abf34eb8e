"""A script that is killed in the midst of its work."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def killed(script: str, folder: Path, after_s: float) -> None:
    """Runs a script on a folder and kills it with `kill -9`, so long after it has printed a line."""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, start_new_session=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(after_s)
        os.killpg(child.pid, signal.SIGKILL)

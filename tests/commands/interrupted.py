"""Ctrl-C in the middle of a command, and the same command again."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def interrupted_and_again(words: Sequence[str], folder: Path, seen: str) -> str:
    """What `soatfast words` prints when it is run again, after an interruption at the line with `seen`."""
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "soatfast", *words]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=folder,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    try:
        for line in process.stdout:
            if seen in line:
                process.send_signal(signal.SIGINT)
                break
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, error
    assert error == "interrupted; the same command (without --fresh) resumes\n"
    again = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=120)
    assert again.returncode == 0, again.stderr
    return again.stdout

"""Peak memory of a model in ONNX Runtime, measured in a fresh process that holds nothing else.

The figure is the peak resident set after loading the file and running it twice, minus the resident set once
numpy, onnxruntime and the feeds were in place. It includes the runtime's transient copies while it reads and
packs weights.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from fxcompress.runtime.session import Feeds, SessionError

_PROBE = Path(__file__).with_name("memory_probe.py")


def peak_memory(model: bytes, feeds: Feeds, threads: int = 1, *, timeout: float = 120.0) -> int:
    """Peak resident bytes that loading and running `model` adds to a fresh interpreter.

    Raises:
        SessionError: the model or the feeds are refused, the run takes longer than `timeout` seconds, or the
            probe cannot be started.
    """
    with tempfile.TemporaryDirectory() as folder:
        model_path, feeds_path = Path(folder, "model.onnx"), Path(folder, "feeds.npz")
        model_path.write_bytes(model)
        names = list(feeds)  # savez has keywords of its own, which inputs may be called
        np.savez(feeds_path, *(feeds[name] for name in names), allow_pickle=False)
        command = [sys.executable, "-I", str(_PROBE), str(model_path), str(feeds_path), str(threads)]
        command.append(json.dumps(names))
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired as error:
            raise SessionError(f"the memory probe did not finish in {timeout:g} s") from error
        except OSError as error:
            raise SessionError(f"the memory probe could not be started: {error.strerror}") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SessionError(f"the memory probe could not run the model: {last[:500]}")
    return int(done.stdout.strip())

"""Run one ONNX file in this process and print the peak resident memory it added, in bytes.

Started by path in a fresh interpreter by `fxcompress.runtime.memory`, never imported: it must import numpy
and onnxruntime only, so that torch and the caller's arrays are not in the figure.

Usage: python -I memory_probe.py MODEL.onnx FEEDS.npz THREADS NAMES

NAMES is the JSON list of the inputs, in the order of the arrays.
"""

from __future__ import annotations

import json
import resource
import sys

import numpy as np
import onnxruntime as ort


def _status(field: str) -> int | None:
    """A memory field of /proc/self/status in bytes, or None where there is no /proc."""
    try:
        with open("/proc/self/status") as lines:
            return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), None)
    except OSError:
        return None


def _peak() -> int:
    """Peak resident bytes: VmHWM, since `ru_maxrss` survives exec on Linux and would report the parent's
    peak.
    """
    peak = _status("VmHWM")
    if peak is not None:
        return peak
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024


def _forget_peak() -> None:
    """Start the peak afresh where the kernel allows it: importing peaks above what stays resident."""
    try:
        with open("/proc/self/clear_refs", "w") as control:
            control.write("5")
    except OSError:
        pass


def _main(model: str, feeds: str, threads: str, names: str) -> int:
    with np.load(feeds, allow_pickle=False) as archive:
        arrays = {name: archive[f"arr_{index}"] for index, name in enumerate(json.loads(names))}
    _forget_peak()
    before = _status("VmRSS") or _peak()
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(threads)
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    for _ in range(2):
        session.run(None, arrays)
    return max(0, _peak() - before)


if __name__ == "__main__":
    sys.stdout.write(f"{_main(*sys.argv[1:5])}\n")

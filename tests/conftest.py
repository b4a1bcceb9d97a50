"""Settings every test runs under: one thread, fixed seeds, hypothesis derandomized in CI."""

from __future__ import annotations

import os
import random

import pytest
import torch
from hypothesis import HealthCheck, settings

# Two workers share two cores; more threads than that make timings and run times worse. The variables reach
# the subprocesses that tests start.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
torch.set_num_threads(1)

settings.register_profile(
    "local", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("ci", settings.get_profile("local"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Each test starts from the same state, whatever ran before it in this worker."""
    random.seed(0)
    torch.manual_seed(0)

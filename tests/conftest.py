import os

import pytest
import torch

# What tests start, too: with as many threads each as there are cores, they mostly wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _one_thread():
    """Exact comparisons need the same number of intra-op threads everywhere, worker processes included."""
    torch.set_num_threads(1)

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """Exact comparisons need the same number of intra-op threads everywhere, worker processes included."""
    torch.set_num_threads(1)

import os
import sys

import pytest
import torch

# What tests start, too: with as many threads each as there are cores, they mostly wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.modules.setdefault("rfc3987_syntax", None)  # as in workflow/common.py

# Files that start many processes, longest first: begun last, one of them would leave the other cores idle at the end.
LONGEST = [
    "batch",
    "cluster",
    "workers",
    "experiments",
    "guides",
    "scouting",
    "data",
    "neighbours",
    "readme",
    "distributed",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(autouse=True)
def _one_thread():
    """Exact comparisons need the same number of intra-op threads everywhere, worker processes included."""
    torch.set_num_threads(1)

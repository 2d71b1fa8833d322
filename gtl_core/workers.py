"""One process per core, one thread per process: the fastest and the reproducible way to train many small networks."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence

import loky
import torch
from tqdm.auto import tqdm


def single_thread() -> None:
    """Give torch one intra-op thread: results depend on the number of threads, and small networks lose by more.

    Also lets glibc, where there is one, keep freed memory: it would otherwise return activations to the kernel after
    every training step and fault them in again (measured 1.0 to 1.5x per step).
    """
    torch.set_num_threads(1)
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, 1 << 30)


def die_with_parent() -> None:
    """Have this process killed when its parent dies, so that a killed batch leaves nothing running (Linux only)."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def parallel(function: Callable, jobs: Sequence, workers: int, description: str) -> list:
    """``[function(job) for job in jobs]`` over ``workers`` processes (0: one per core), with a progress bar."""
    single_thread()  # the results must be the same wherever the jobs run
    workers = min(workers or loky.cpu_count(), len(jobs))
    if workers <= 1:
        return list(_watched(map(function, jobs), jobs, description))
    executor = loky.get_reusable_executor(workers, initializer=_start_worker)
    return list(_watched(executor.map(function, jobs), jobs, description))


def _watched(results: Iterable, jobs: Sequence, description: str) -> Iterable:
    quiet = "TQDM_DISABLE" in os.environ  # tqdm itself overlooks its variable when it draws in a notebook
    return tqdm(results, description, total=len(jobs), leave=False, disable=quiet)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits for the workers, and ends them
    die_with_parent()
    single_thread()

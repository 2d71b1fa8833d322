"""One process per core, one thread per process: the fastest and the reproducible way to train many small networks."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path

import loky
import torch
from loky.process_executor import TerminatedWorkerError
from tqdm.auto import tqdm

import experiments
import gtl_core

DASK_TIMEOUT = 10  # seconds within which a cluster must answer
# Loky takes memory that is kept (see `single_thread`) for a leak, from 300 MB on, and would start new processes for it.
LOKY = {"LOKY_MAX_MEMORY_LEAK_SIZE": "2e9"}
IDLE = 300  # seconds until a worker without a job ends, as in joblib; loky's own 10 are short where a core is shared


class WorkerError(RuntimeError):
    """The processes that should do the work cannot be had, or are gone: why, in one line."""

    def _render_traceback_(self) -> list[str]:
        return [f"WorkerError: {self}"]  # what Jupyter shows


def single_thread() -> None:
    """Give torch one intra-op thread: results depend on the number of threads, and small networks lose by more.

    Also lets glibc, where there is one, keep freed memory: it would otherwise return activations to the kernel after
    every training step and fault them in again (measured 1.0 to 1.5x per step).
    """
    torch.set_num_threads(1)
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for threshold in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            libc.mallopt(threshold, 1 << 30)


def peak_memory() -> int:
    """The most memory that this process has held so far, in bytes."""
    if sys.platform == "linux":  # where `getrusage` counts in what a process inherits from its parent
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def parallel(function: Callable, jobs: Sequence, workers: int, description: str, dask_scheduler: str = "") -> list:
    """``[function(job) for job in jobs]`` over ``workers`` processes (0: one per core), with a progress bar.

    dask_scheduler: address of a Dask cluster that does the work instead, with all its workers. The results are the same
    wherever they are made. A job goes to whoever is free; function, jobs and results must be picklable. Raises
    WorkerError if a worker is killed (Dask runs its jobs again) or the cluster cannot be reached. Whatever ends the
    call early, Ctrl-C included, ends the workers of this machine.
    """
    single_thread()  # the results must be the same wherever the jobs run
    if dask_scheduler:
        with _cluster(dask_scheduler) as executor:
            return _send(executor, partial(_on_cluster, function, _code()), jobs, description)
    workers = min(workers or loky.cpu_count(), len(jobs))
    if workers <= 1:
        return _watched(map(function, jobs), len(jobs), description)
    start = {"initializer": _start_worker, "initargs": (os.getpid(),), "env": LOKY}
    executor = loky.get_reusable_executor(workers, timeout=IDLE, **start)
    try:
        return _send(executor, function, jobs, description)
    except BaseException as error:  # nobody waits for the other jobs any more, which could take hours
        executor.shutdown(kill_workers=True)
        if isinstance(error, TerminatedWorkerError):
            raise WorkerError("a worker process was killed (out of memory?)") from None
        raise


@contextmanager
def _cluster(address: str) -> Iterator[Executor]:
    """An executor on the Dask scheduler at ``address`` (``tcp://host:8786``); WorkerError if none is there, or goes."""
    try:
        from distributed import Client
    except ImportError:
        raise WorkerError("dask_scheduler needs Dask: pip install -c requirements.lock -e '.[cluster]'") from None

    class PunctualClient(Client):
        def start(self, **kwargs) -> None:  # its own timeout does not cover a peer that accepts and is silent
            try:
                super().start(callback_timeout=DASK_TIMEOUT, **kwargs)
            except BaseException:
                # Or the garbage collector does it, maybe while another client holds the lock that closing takes.
                with suppress(TimeoutError):
                    self.close(timeout=1)
                raise

    try:
        client = PunctualClient(address, timeout=DASK_TIMEOUT, set_as_default=False)
    except Exception as error:  # of any kind, if something other than Dask answers
        raise WorkerError(f"dask_scheduler = {address!r}: no Dask scheduler answers ({error})") from None
    with client:
        try:
            client.wait_for_workers(1, timeout=DASK_TIMEOUT)
        except TimeoutError:
            raise WorkerError(f"dask_scheduler = {address!r}: no worker has joined it") from None
        except OSError as error:  # it answered before
            raise WorkerError(f"dask_scheduler = {address!r}: no Dask scheduler answers ({error})") from None
        try:
            yield client.get_executor(pure=False)
        except CancelledError:
            raise WorkerError(f"dask_scheduler = {address!r}: lost in the middle of the work; run it again") from None


def _send(executor: Executor, function: Callable, jobs: Sequence, description: str) -> list:
    # Not `executor.map`: left early, it cancels its futures, over which loky stumbles before it has killed its workers.
    futures = [executor.submit(function, job) for job in jobs]
    return _watched((future.result() for future in futures), len(jobs), description)


def _watched(results: Iterable, n: int, description: str) -> list:
    quiet = "TQDM_DISABLE" in os.environ  # tqdm itself overlooks its variable when it draws in a notebook
    return list(tqdm(results, description, total=n, leave=False, disable=quiet))


def _on_cluster(function: Callable, code: str, job: object) -> object:
    if _code() != code:
        raise WorkerError("the Dask workers have loaded another gtl_core, experiments or torch: start them again")
    single_thread()
    return function(job)


@cache
def _code() -> str:
    """Digest of what this process computes with. Workers live long and would go on with the code of yesterday."""
    digest = hashlib.sha256(torch.__version__.encode())
    for package in map(Path, (gtl_core.__path__[0], experiments.__path__[0])):
        for path in sorted([*package.rglob("*.py"), *package.rglob("*.[ch]")]):
            digest.update(f"{package.name}/{path.relative_to(package)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _start_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits for the workers, and ends them
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a killed batch leaves nothing running
    if os.getppid() != parent:  # it was killed while this process started
        os._exit(1)
    single_thread()

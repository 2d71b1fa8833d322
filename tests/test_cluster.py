"""A real Dask cluster on this machine: bit for bit what is computed here, even when it loses a worker."""

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from distributed import Client
from jobs import draw, linger, train_one, wait_for
from test_scouting import network

from experiments import workers
from experiments.e02_xor import run as xor
from experiments.parameters import ParameterError
from experiments.workers import WorkerError, parallel
from gtl_core import scout

ROOT = Path(__file__).resolve().parent.parent
XOR = dict(
    seed=0, networks=["2-2-1 tanh"], n_inits=4, n_tuning_inits=2, steps=400, learning_rates=[10],
    scout_learning_rate=1, results="x", prepared="", workers=1,
)  # fmt: skip


class Cluster:
    def __init__(self, folder: Path):
        self.folder, self.address, self.started = folder, "", []

    def start(self, command: str, *arguments: object) -> int:
        """Runs in a process group of its own, and finds gtl_core and the tests as it must on every machine."""
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
        command = [sys.executable, "-m", f"distributed.cli.dask_{command}", "--no-dashboard", *map(str, arguments)]
        with open(self.folder / f"log.{len(self.started)}", "w") as log:
            process = subprocess.Popen(command, env=environment, start_new_session=True, stdout=log, stderr=log)
        self.started.append(process)
        return process.pid

    def start_scheduler(self, port: str = "0") -> None:
        file, self.address = self.folder / "scheduler.json", ""
        file.unlink(missing_ok=True)
        self.start("scheduler", "--host", "127.0.0.1", "--port", port, "--scheduler-file", file)
        until = time.monotonic() + 30
        while not self.address:
            assert time.monotonic() < until, (self.folder / "log.0").read_text()
            time.sleep(0.05)
            if file.exists() and (text := file.read_text()).endswith("}"):
                self.address = json.loads(text)["address"]

    def start_worker(self) -> None:
        name = len(self.started)
        self.start("worker", self.address, "--nthreads", 1, "--name", name, "--local-directory", self.folder / "w")

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("dask"))
    try:
        cluster.start_scheduler()
        cluster.start_worker()
        cluster.start_worker()
        with Client(cluster.address, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
        yield cluster
    finally:
        cluster.close()


@contextmanager
def a_busy_worker_is_killed(cluster: Cluster) -> Iterator[None]:
    """``kill -9`` of the first worker that is seen computing; fails if there was none. Its nanny starts it again."""
    killed, over = [], threading.Event()

    def watch() -> None:
        with Client(cluster.address, set_as_default=False) as client:
            pids = client.run(os.getpid)
            while not over.is_set() and not killed:
                killed.extend(pids[worker] for worker, tasks in client.processing().items() if tasks)
            for pid in killed[:1]:
                os.kill(pid, signal.SIGKILL)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    assert killed, "nobody was computing"


def test_scouts_on_a_cluster(cluster):
    here = scout(network(), range(20), train_one)
    with Client(cluster.address, set_as_default=False) as client:
        there = scout(network(), range(20), train_one, executor=client.get_executor())
    assert here.count == there.count == 20
    one, other = here.guide(), there.guide()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_experiment_on_a_cluster_that_loses_a_worker(cluster):
    here = xor.run(xor.XorParameters.parse(XOR))
    with a_busy_worker_is_killed(cluster):
        there = xor.run(xor.XorParameters.parse(XOR | {"dask_scheduler": cluster.address}))
    assert here.equals(there)


def test_every_job_has_one_thread(cluster):
    assert parallel(draw, range(6), 1, "draw", cluster.address) == parallel(draw, range(6), 1, "draw")


def test_workers_with_other_code_are_refused(cluster, monkeypatch):
    monkeypatch.setattr(workers, "_code", lambda: "edited since the workers were started")
    with pytest.raises(WorkerError, match=r"^the Dask workers have loaded another gtl_core, experiments or torch"):
        parallel(abs, [1, 2], 1, "abs", cluster.address)


def test_a_failed_job_is_reported_as_it_is_here(cluster):
    with pytest.raises(ZeroDivisionError):
        parallel(partial(divmod, 1), [1, 0], 1, "divide", cluster.address)


def test_nobody_waits_for_a_cluster_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "DASK_TIMEOUT", 1)
    with pytest.raises(WorkerError, match=r"^dask_scheduler = 'tcp://127.0.0.1:1': no Dask scheduler answers") as error:
        parallel(abs, [1, 2], 1, "abs", "tcp://127.0.0.1:1")
    assert "\n" not in str(error.value)

    cluster = Cluster(tmp_path)
    try:
        cluster.start_scheduler()
        with pytest.raises(WorkerError, match=r"no worker has joined it$"):
            parallel(abs, [1, 2], 1, "abs", cluster.address)
        os.kill(cluster.started[0].pid, signal.SIGSTOP)  # accepts connections and is silent
        with pytest.raises(WorkerError, match="no Dask scheduler answers"):
            parallel(abs, [1, 2], 1, "abs", cluster.address)
        # One left open is closed by the garbage collector, maybe in the middle of another one's start: for ever.
        assert {client.status for client in gc.get_objects() if issubclass(type(client), Client)} <= {"closed"}
    finally:
        cluster.close()


def test_an_address_has_a_protocol_and_a_port():
    with pytest.raises(ParameterError, match=r"^dask_scheduler = 'host:8786': "):
        xor.XorParameters.parse(XOR | {"dask_scheduler": "host:8786"})


def test_a_scheduler_that_is_killed_and_started_again(tmp_path, monkeypatch):
    """It takes the jobs of the call with it, and its workers: the call says so, and the next one does the work."""
    monkeypatch.setattr(workers, "DASK_TIMEOUT", 4)
    cluster, begun = Cluster(tmp_path), tmp_path / "begun"
    begun.mkdir()

    def kill() -> None:
        wait_for(begun)
        os.killpg(cluster.started[0].pid, signal.SIGKILL)

    try:
        cluster.start_scheduler()
        cluster.start_worker()
        with Client(cluster.address, set_as_default=False) as client:
            client.wait_for_workers(1, timeout=60)
        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(WorkerError, match="lost in the middle of the work; run it again") as error:
            parallel(partial(linger, begun), range(3), 1, "linger", cluster.address)
        assert "\n" not in str(error.value)
        killer.join()
        cluster.start_scheduler(cluster.address.rpartition(":")[2])
        cluster.start_worker()
        with Client(cluster.address, set_as_default=False) as client:
            client.wait_for_workers(1, timeout=60)
        assert parallel(abs, [-1, 2], 1, "abs", cluster.address) == [1, 2]
    finally:
        cluster.close()

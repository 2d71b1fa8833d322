"""Work spread over processes: the same results from any number of them, and nothing left behind however it ends."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from jobs import draw, end, first_waits_for_last, wait_for

from experiments.workers import WorkerError, parallel

ROOT = Path(__file__).resolve().parent.parent


def processes_of(session: int, command: str = "") -> list[int]:
    """Those of the session that still run, orphans included, with these words in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, own = (path / "stat").read_text().rpartition(")")[2].split()[:4]
            words = (path / "cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(own) == session and state != "Z" and command in words:
            found.append(int(path.name))
    return found


def workers_of(pid: int) -> list[int]:
    """Its loky workers that still run: they keep the session that it started."""
    return processes_of(pid, "popen_loky")


def gone(pid: int) -> bool:
    until = time.monotonic() + 10
    while workers_of(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not workers_of(pid)


def test_results_do_not_depend_on_the_number_of_workers():
    one, two = (parallel(draw, range(7), n, "draw") for n in (1, 2))
    assert one == two
    assert {threads for threads, _ in one} == {1}


def test_jobs_go_to_whoever_is_free(tmp_path):
    """With jobs dealt beforehand, those behind the first would wait for it, and it for them."""
    n = 9
    pids = parallel(partial(first_waits_for_last, tmp_path, n), range(n), 2, "deal")
    assert set(pids[1:]) - {pids[0]} == {pids[-1]} and os.getpid() not in pids


@pytest.mark.parametrize(
    ("how", "error", "said"),
    [
        ("killed", WorkerError, r"a worker process was killed \(out of memory\?\)"),
        ("failed", ValueError, "no such rate"),
    ],
)
def test_a_lost_job_ends_the_others_and_the_next_call_works(how, error, said):
    others = os.getsid(0)
    before = set(workers_of(others))
    begin = time.monotonic()
    with pytest.raises(error, match=f"^{said}$"):
        parallel(partial(end, how), [2, 0, 1], 2, "end")
    assert time.monotonic() - begin < 30, "the others would take a minute"
    assert not set(workers_of(others)) - before
    assert parallel(draw, range(2), 2, "again") == parallel(draw, range(2), 1, "again")


START = """
import jobs, signal, sys
from functools import partial
from pathlib import Path
from experiments.workers import parallel

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
parallel(partial(jobs.linger, Path(sys.argv[1])), range(9), 2, "linger")
"""


@pytest.mark.parametrize("how", ["interrupted", "killed", "killed while workers start"])
def test_nothing_is_left_of_an_ended_process(tmp_path, how):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "TQDM_DISABLE": "1"}
    command = [sys.executable, "-c", START, tmp_path]
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        if how.endswith("start"):
            while len(workers_of(process.pid)) < 2:
                assert process.poll() is None, process.communicate()
        else:
            wait_for(tmp_path, 2)
        if how == "interrupted":
            os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C does
        else:
            process.kill()
        output, _ = process.communicate(timeout=30)  # returns when nothing holds its output any more
        assert gone(process.pid)
        if how == "interrupted":
            assert output.strip().endswith("KeyboardInterrupt") and output.count("Traceback") == 1, output
    finally:
        process.kill()
        for pid in workers_of(process.pid):
            os.kill(pid, signal.SIGKILL)

"""Whatever is killed, damaged or lacking, and whenever: a right result, or one line that says what to do, and the next
run ends as if nothing had been. On a small profile of a real experiment; ``make test-faults``.
"""

import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import pytest
import yaml
from test_workers import processes_of

ROOT = Path(__file__).resolve().parent.parent
N = int(os.environ.get("FAULTS", "0"))
SMALL = {  # what differs from the quick profile, of an experiment with preparations and workers
    "07_forgetting_neighbours": {
        "n_streams": 2, "n_tuning_streams": 1, "pretraining_epochs": 1, "n_scouts": 4, "scout_epochs": 5,
    },
}  # fmt: skip
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not N or sys.platform != "linux", reason="make test-faults tries them, on Linux"),
]


class Checkout:
    """A copy of the project, without its history, with a small profile, and a temporary folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root, self.temporary = root, Path(f"/tmp/gtl-faults-{os.getpid()}")
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir()
        files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        others = [*ROOT.glob("gtl_core/_engine/*.so"), *ROOT.glob("data/glyphs.safetensors")]
        for path in [*(ROOT / name for name in files.split("\0")[:-1]), *others]:
            if (name := path.relative_to(ROOT)).parts[0] != "results":
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, root / name)
        profile = yaml.safe_load((ROOT / "config/quick.yaml").read_text())
        chosen = {name: (profile["notebooks"][name] or {}) | changes for name, changes in SMALL.items()}
        (root / "config/quick.yaml").write_text(yaml.safe_dump({"threads": 2, "notebooks": chosen}))

    def start(self, *before: str, cores: int = 2, **settings: str) -> subprocess.Popen:
        environment = os.environ | {"TMPDIR": str(self.temporary), "PYTHONPATH": ""} | settings
        environment = {name: value for name, value in environment.items() if value != "unset"}
        command = [*before, sys.executable, "workflow/launch.py", "quick", "--cores", str(cores)]
        return subprocess.Popen(
            command, cwd=self.root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip

    def results(self) -> dict[str, str]:
        """Digests of all tables and figures; seconds and times are in other files."""
        found = {}
        for path in sorted((self.root / "results/quick").rglob("*")):
            if path.suffix in (".csv", ".png") and "cost" not in path.name:
                found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found

    def ends_right(self, expected: dict[str, str]) -> str:
        """What the next run says, which must end with the right results and leave nothing else."""
        again = self.start()
        output, _ = again.communicate(timeout=600)
        assert again.returncode == 0, output
        assert "Traceback" not in output
        assert self.results() == expected
        hidden = [path for path in (self.root / "results").rglob(".*") if path.is_file()]
        assert [*hidden, *self.temporary.iterdir()] == []
        return output


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to: where, its results, and how long it took."""
    checkout, begin = Checkout(tmp_path_factory.mktemp("whole") / "project"), time.monotonic()
    run = checkout.start()
    output, _ = run.communicate(timeout=600)
    assert run.returncode == 0, output
    assert len(checkout.results()) >= 2
    return checkout.root, checkout.results(), time.monotonic() - begin


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path / "mein Ordner" / "проект 项目 'x'")


@pytest.fixture
def finished(whole, tmp_path):
    """A copy of the run that nothing happened to, in which all there is belongs to the future."""
    shutil.copytree(whole[0], tmp_path / "project", symlinks=True)
    checkout = Checkout(tmp_path / "project")
    tomorrow = time.time() + 86400
    for path in (checkout.root / "results").rglob("*"):
        os.utime(path, (tomorrow, tomorrow))
    return checkout


@pytest.mark.parametrize("seed", range(N))
@pytest.mark.parametrize("how", ["kill the group", "kill the launcher", "kill one process", "SIGINT", "SIGTERM"])
def test_a_run_that_is_ended_at_a_random_moment(checkout, whole, how, seed):
    _, expected, seconds = whole
    chance = random.Random(f"{how} {seed}")
    run = checkout.start()
    time.sleep(chance.uniform(0, seconds))
    if run.poll() is not None:
        pytest.skip("it had ended by itself")
    with suppress(ProcessLookupError):  # one that has just ended
        if how == "kill one process":
            os.kill(chance.choice(processes_of(run.pid)), signal.SIGKILL)
        elif how == "kill the launcher":
            run.kill()
        else:
            os.killpg(run.pid, {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM}.get(how, signal.SIGKILL))
    output, _ = run.communicate(timeout=300)
    assert "Traceback" not in output, output
    until = time.monotonic() + 5
    while processes_of(run.pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert processes_of(run.pid) == [], f"{how}: still running after 5 s"
    checkout.ends_right(expected)


@contextmanager
def disk(folder: Path, options: str) -> Iterator[None]:
    """Another one in place of the folder."""
    kept = list(folder.iterdir()) if folder.is_dir() else []
    folder.mkdir(parents=True, exist_ok=True)
    texts = {path.name: path.read_bytes() for path in kept if path.suffix == ".md"}
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True).returncode:
        pytest.skip("no right to mount a disk here")
    try:
        for name, text in texts.items():
            (folder / name).write_bytes(text)
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def memory(megabytes: int) -> Iterator[list[str]]:
    """What to start a program with that gets no more."""
    group = Path(f"/sys/fs/cgroup/memory/gtl-faults-{os.getpid()}")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(f"{megabytes}M")
    except OSError:
        pytest.skip("no right to limit memory here")
    try:
        yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
    finally:
        until = time.monotonic() + 10
        while (group / "cgroup.procs").read_text() and time.monotonic() < until:  # the last ones are ending
            time.sleep(0.05)
        group.rmdir()


WITHOUT_RIGHTS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]


@pytest.mark.parametrize(
    ("settings", "before"),
    [
        ({"HOME": "unset"}, []),
        ({"HOME": "/proc"}, []),  # where nothing can be written
        ({"cores": 1}, []),
        ({"cores": 8}, []),
        ({"LC_ALL": "C", "LANG": "unset"}, []),
        ({"PATH": "/nowhere"}, []),  # neither git nor a shell's tools
        pytest.param({}, WITHOUT_RIGHTS, marks=pytest.mark.skipif(os.geteuid() != 0, reason="has no rights to lose")),
    ],
    ids=str,
)
def test_where_things_are_lacking_results_are_the_same(checkout, whole, settings, before):
    run = checkout.start(*map(lambda name: shutil.which(name) or name, before), **settings)
    output, _ = run.communicate(timeout=600)
    assert run.returncode == 0, output
    assert checkout.results() == whole[1]


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ("64 open files", "(Errno 24|Too many open files|out of memory|Resource)"),
        ("2000 MB of memory", "out of memory"),
        ("600 MB of memory", r"(out of memory|was killed|Not everything succeeded)"),
        ("results on a full disk", "No space left on device"),
        ("results that are read only", r"^cannot write to .*results/quick \(Read-only"),
        ("data on a full disk", r"cannot write .*glyphs.safetensors \(.*free space"),
        ("temporary files on a full disk", "(No space left|no usable temporary)"),
    ],
)
def test_what_is_too_little_ends_right_or_in_a_line(checkout, whole, lacking, said, capsys):
    amount = lacking.partition(" ")[0]
    place = {"results": checkout.root / "results", "data": checkout.root / "data"}.get(amount, checkout.temporary)
    if "open files" in lacking:
        around = nullcontext([shutil.which("prlimit"), f"--nofile={amount}"])
    elif "memory" in lacking:
        around = memory(int(amount))
    else:
        around = disk(place, "ro" if "read only" in lacking else "size=64k")
    with around as before:
        run = checkout.start(*(before or []))
        output, _ = run.communicate(timeout=300)
        found = checkout.results()
    with capsys.disabled():
        print(f"\n{lacking}: {run.returncode}: {output[-400:]}")
    if run.returncode:
        assert "Traceback" not in output
        # If the launcher itself was killed for its memory, nobody is left to say so.
        assert run.returncode == -signal.SIGKILL or re.search(said, output, re.MULTILINE), output
    else:
        assert found == whole[1]
    checkout.ends_right(whole[1])


def flip(place: float):
    def harm(content: bytes) -> bytes:
        at = int(place * len(content))
        return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]

    return harm


@pytest.mark.parametrize(
    "harm",
    [flip(0.0), flip(0.5), flip(0.999), lambda content: content[: len(content) // 2], lambda content: b""],
    ids=["a bit of the header", "a bit of the data", "a bit of the end", "half of it", "all of it"],
)
@pytest.mark.parametrize("what", ["prepared", "data"])
def test_a_damaged_file_is_made_anew(finished, whole, what, harm):
    where = {"prepared": "results/quick/prepared/*.safetensors", "data": "data/glyphs.safetensors"}[what]
    damaged = sorted(finished.root.glob(where))[0]
    before = damaged.read_bytes()
    damaged.write_bytes(harm(before))
    for table in (finished.root / "results/quick").glob("forgetting_neighbours*"):
        table.unlink()
    said = finished.ends_right(whole[1])
    assert damaged.read_bytes() == before
    assert (damaged.name in said) == (what == "prepared")  # a cache is nobody's loss


def test_a_table_that_was_cut_off_is_named(finished, whole):
    table = finished.root / "results/quick/forgetting_neighbours.csv"
    content = table.read_bytes()
    table.write_bytes(content[: len(content) // 2])
    output, _ = (run := finished.start()).communicate(timeout=300)
    assert run.returncode and "forgetting_neighbours.csv is not the table" in output and "Traceback" not in output
    table.unlink()
    finished.ends_right(whole[1])


def test_results_from_the_future_are_results(finished, whole):
    assert finished.ends_right(whole[1]).startswith("Nothing to do")


def test_a_second_run_at_the_same_time_is_told_so(checkout, whole):
    first = checkout.start()
    time.sleep(whole[2] / 3)
    output, _ = (second := checkout.start()).communicate(timeout=60)
    assert second.returncode and output.startswith("Another run is going on") and output.count("\n") == 1
    first.communicate(timeout=300)
    assert first.returncode == 0
    checkout.ends_right(whole[1])

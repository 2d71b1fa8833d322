"""Whatever is killed, and whenever: the next run ends as if nothing had been. On a small profile of real experiments.

Each fault takes a minute or two; ``make test-faults`` tries thirty, each at a moment of its own.
"""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from test_workers import processes_of

ROOT = Path(__file__).resolve().parent.parent
N = int(os.environ.get("FAULTS", "0"))
SMALL = {  # what differs from the quick profile; the last one has preparations, and workers
    "00_method": {"n_scouts": 5, "n_repeats": 5},
    "02_xor": {"n_inits": 8, "n_tuning_inits": 4, "steps": 400, "networks": ["2-2-1 tanh"], "learning_rates": [1, 10]},
    "10_paper_setting": {"n_sets": 2, "methods": ["frozen", "plain", "guided_network"], "pretraining_steps": 20},
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not N or sys.platform != "linux", reason="make test-faults tries them, on Linux"),
]


class Checkout:
    """A copy of the project with a small profile, and a temporary folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root, self.temporary = root / "project", Path(f"/tmp/gtl-faults-{os.getpid()}-{root.name[-9:]}")
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir()
        files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in files.split("\0")[:-1]:
            if not name.startswith("results/"):
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.root / name)
        for library in (ROOT / "gtl_core/_engine").glob("*.so"):
            shutil.copy(library, self.root / "gtl_core/_engine")
        profile = yaml.safe_load((ROOT / "config/quick.yaml").read_text())
        chosen = {name: (profile["notebooks"][name] or {}) | changes for name, changes in SMALL.items()}
        (self.root / "config/quick.yaml").write_text(yaml.safe_dump({"threads": 2, "notebooks": chosen}))

    def start(self) -> subprocess.Popen:
        environment = os.environ | {"TMPDIR": str(self.temporary), "PYTHONPATH": ""}
        command = [sys.executable, "workflow/launch.py", "quick", "--cores", "2"]
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

    def left_behind(self) -> list[str]:
        hidden = [path for path in (self.root / "results").rglob(".*") if path.is_file()]
        return [str(path) for path in [*hidden, *self.temporary.iterdir()]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The results of a run that nothing happened to, and how long it took."""
    checkout = Checkout(tmp_path_factory.mktemp("whole"))
    begin, run = time.monotonic(), checkout.start()
    output, _ = run.communicate(timeout=600)
    assert run.returncode == 0, output
    assert checkout.left_behind() == [] and len(checkout.results()) > 3
    return checkout.results(), time.monotonic() - begin


@pytest.mark.parametrize("seed", range(N))
@pytest.mark.parametrize("how", ["kill the group", "kill the launcher", "kill one process", "SIGINT", "SIGTERM"])
def test_the_next_run_ends_as_if_nothing_had_been(tmp_path, whole, how, seed):
    expected, seconds = whole
    chance = random.Random(f"{how} {seed}")
    checkout = Checkout(tmp_path)
    run = checkout.start()
    time.sleep(chance.uniform(0, seconds))
    if run.poll() is None:
        if how == "kill one process":
            os.kill(chance.choice(processes_of(run.pid)), signal.SIGKILL)
        elif how == "kill the launcher":
            run.kill()
        else:
            os.killpg(run.pid, {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM}.get(how, signal.SIGKILL))
    output, _ = run.communicate(timeout=300)
    until = time.monotonic() + 5
    while processes_of(run.pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert processes_of(run.pid) == [], f"{how}: still running after 5 s"
    again = checkout.start()
    output, _ = again.communicate(timeout=600)
    assert again.returncode == 0, output
    assert "Traceback" not in output
    assert checkout.results() == expected
    assert checkout.left_behind() == []
    checkout.temporary.rmdir()

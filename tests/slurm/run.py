"""The batch through a real Slurm of two nodes on this machine, one of which dies in the middle: ``make test-slurm``.

Runs a profile (default: quick) here and through Slurm, each in a copy of this checkout, kills a node that is computing,
and compares the tables. Needs root, and Debian's slurm-wlm and munge. Writes /etc/slurm/slurm.conf, because Snakemake's
plugin keeps SLURM_CONF from its jobs, removes it at the end, and so refuses to run where Slurm is set up.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONF = Path("/etc/slurm/slurm.conf")
MARK = "# of tests/slurm/run.py\n"
MUNGE = Path("/run/munge/munge.socket.2")
NODES = ("n1", "n2")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/ctld
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdTimeout=20
ReturnToService=2
MinJobAge=300
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=16000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=16000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """A controller and two nodes, each with process ids of its own. All that was started ends with it."""

    def __init__(self, folder: Path):
        self.folder, self.started = folder, {}

    def __enter__(self) -> Slurm:
        ports = free_ports(3)
        CONF.write_text(MARK + CONFIGURATION.format(folder=self.folder, host=socket.gethostname(), ports=ports))
        try:
            if not MUNGE.exists():
                MUNGE.parent.mkdir(exist_ok=True)
                shutil.chown(MUNGE.parent, "munge", "munge")
                self.start("munged", "setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "munged", "-F")
                wait(MUNGE.exists, "munged", 20)
            (self.folder / "ctld").mkdir()
            self.start("slurmctld", "slurmctld", "-D")
            for node in NODES:
                (self.folder / node).mkdir()
                # Step daemons leave slurmd's process group, but not its pid namespace, which ends with its first one.
                namespace = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
                self.start(node, *namespace, "slurmd", "-D", "-N", node)
            wait(lambda: slurm("sinfo", "-hN", "-o", "%T").split() == ["idle", "idle"], "two idle nodes", 60)
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self, name: str, *command: str) -> None:
        with open(self.folder / f"{name}.log", "w") as log:
            process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], stdout=log, stderr=log)
        self.started[name] = process

    def kill(self, name: str) -> None:
        self.started[name].kill()
        self.started[name].wait()

    def __exit__(self, *_) -> None:
        for name in reversed(self.started):
            self.kill(name)
        if "munged" in self.started:
            MUNGE.unlink(missing_ok=True)
        CONF.unlink()


def main() -> None:
    profile = sys.argv[1] if len(sys.argv) > 1 else "quick"
    if missing := [command for command in ("munged", "slurmctld", "slurmd") if not shutil.which(command)]:
        sys.exit(f"{missing[0]} is missing: apt-get install slurm-wlm munge")
    if os.geteuid() or (CONF.exists() and not CONF.read_text().startswith(MARK)):
        sys.exit(f"only root can start a Slurm, and only where there is none: {CONF}")
    with tempfile.TemporaryDirectory(prefix="gtl-slurm-") as folder:
        here, there = (checkout(Path(folder) / name) for name in ("here", "there"))
        say(f"{profile}, without Slurm")
        if subprocess.run([sys.executable, "workflow/launch.py", profile], cwd=here).returncode:
            sys.exit("failed without Slurm")
        say(f"{profile}, through Slurm")
        with Slurm(Path(folder)) as cluster:
            environment = os.environ | {"SNAKEMAKE_PROFILE": "workflow/profiles/slurm"}
            batch = subprocess.Popen([sys.executable, "workflow/launch.py", profile], cwd=there, env=environment)
            try:
                job, node = wait(lambda: running_notebook(there, profile, batch), "a notebook that runs on a node", 900)
                cluster.kill(node)
                say(f"killed node {node}, which ran job {job}")
                wait(lambda: "Restarts=1" in slurm("scontrol", "show", "job", job), "Slurm to start the job again", 300)
                say(f"Slurm has put job {job} back")
                if batch.wait(1800):
                    sys.exit("failed through Slurm")
            finally:
                if batch.poll() is None:
                    batch.terminate()
                    batch.wait(60)
            say(slurm("sinfo", "-N"))
            assert not slurm("squeue", "-h"), "no job is left"
        tables = {path.name for path in (here / "results" / profile).glob("*.csv")}
        holds_times = ("scaling.csv", "_cost.csv")
        tables = sorted(table for table in tables if not table.endswith(holds_times))
        assert tables, "there is nothing to compare"
        for table in tables:
            one, other = ((copy / "results" / profile / table).read_bytes() for copy in (here, there))
            assert one == other, f"{table} differs"
            say(f"{table}: the same {len(one)} bytes")


def checkout(target: Path) -> Path:
    """A copy without results, so that everything is made."""
    names = ("workflow", "config", "notebooks", "gtl_core", "experiments", "data")
    for name in names:
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def running_notebook(project: Path, profile: str, batch: subprocess.Popen) -> tuple[str, str] | None:
    """Job and node of a notebook that has executed its first cells."""
    if batch.poll() is not None:
        sys.exit(f"the batch ended with {batch.returncode} before a notebook was seen on a node")
    for line in slurm("squeue", "-h", "-t", "R", "-o", "%i %N %k").splitlines():
        job, node, comment = line.split(maxsplit=2)
        _, _, notebook = comment.partition("notebook_")
        if notebook and (project / f"results/{profile}/logs/{notebook.split('_wildcards')[0]}.ipynb").exists():
            return job, node
    return None


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def say(text: str) -> None:
    print(f"--- {text}", flush=True)


def wait(ready: Callable[[], object], what: str, seconds: float):
    until = time.monotonic() + seconds
    while not (result := ready()):
        if time.monotonic() > until:
            sys.exit(f"waited {seconds} s for {what}")
        time.sleep(0.2)
    return result


def free_ports(n: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


if __name__ == "__main__":
    main()

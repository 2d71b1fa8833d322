"""Run the batch of a profile: ``python workflow/launch.py quick``. All other arguments go to Snakemake.

One run at a time, held by a file lock that the system releases however the run ends. So Snakemake's own lock, which a
kill leaves behind, is not needed: after ``kill -9`` the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import common
import step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("profile", nargs="?", default="quick", help="config/<profile>.yaml (default: quick)")
    parser.add_argument("--cores", default="", help="how many to use (default: all)")
    args, others = parser.parse_known_args()
    if args.cores and not (args.cores == "all" or (args.cores.isdecimal() and int(args.cores))):
        sys.exit(f"--cores {args.cores}: must be a number from 1 on, or all")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # of numpy, which is imported for all steps at once
    state = common.ROOT / ".snakemake"
    try:  # to write where libraries keep caches and settings; what rights say, does not hold everywhere for root
        tempfile.TemporaryFile(dir=os.path.expanduser("~")).close()
    except OSError:
        os.environ["HOME"] = str(state / "home")
    try:
        common.plan(args.profile)
    except ValueError as error:
        sys.exit(str(error))

    for folder in (state, common.ROOT / "results" / args.profile):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            reason = "" if os.access(folder, os.W_OK) else "no right to"
        except OSError as error:
            reason = error.strerror
        if reason:
            sys.exit(f"cannot write to {folder} ({reason})")
    with open(state / "launch.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit("Another run is going on in this checkout; wait for it or stop it.")
        heal(args.profile)
        # A cluster's jobs are its own, with what it gave them, even those on this machine.
        elsewhere = "SNAKEMAKE_PROFILE" in os.environ or any(o.startswith(("--profile", "--executor")) for o in others)
        if elsewhere:
            sys.exit(run(args.profile, args.cores, others))
        common.alone = sys.platform == "linux"  # elsewhere, nothing tells them
        with temporary_folder(), step.ready(lock):
            sys.exit(run(args.profile, args.cores, others))


@contextmanager
def temporary_folder() -> Iterator[None]:
    """One for everything temporary of a run here. Of a run that was killed, the next one clears it."""
    mine = hashlib.sha256(str(common.ROOT).encode()).hexdigest()[:8]
    folder = Path(tempfile.gettempdir(), f"gtl-{os.getuid()}-{mine}")  # short, since sockets will be in it
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        sys.exit(f"{folder} belongs to somebody else: set TMPDIR")
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def heal(profile: str) -> None:
    """Delete prepared files that are not what was written: the batch makes anew what it needs.

    Results from the future, by a clock that was set back since, get today's date: Snakemake stops where what it has
    made now is older than what it was made from.
    """
    from gtl_core.files import read_safetensors

    results, now = common.ROOT / "results" / profile, time.time()
    for path in results.rglob("*"):
        if path.is_file() and path.stat().st_mtime > now:
            os.utime(path, (now, now))
    for path in sorted((results / "prepared").glob("*.safetensors")):
        try:
            read_safetensors(path)
        except ValueError as error:
            path.unlink()
            common.say(f"{error}: deleted, to be made anew")


def run(profile: str, cores: str, others: list[str]) -> int:
    from snakemake.cli import main as snakemake

    # Options that take any number of values come first: they would take targets given by the caller for theirs.
    arguments = ["--config", f"profile={profile}", "--nolock", "--rerun-incomplete", "--keep-going"]
    arguments += ["--keep-incomplete"]  # a failed verdict leaves the table it was about; the next run makes it again
    arguments += ["--snakefile", str(common.ROOT / "workflow/Snakefile"), "--directory", str(common.ROOT)]
    if cores or "SNAKEMAKE_PROFILE" not in os.environ:  # a cluster's profile says how much to use there
        arguments += ["--cores", cores or "all"]
    try:
        snakemake(["--quiet", "all", *arguments, *others])  # the steps speak for themselves
    except SystemExit as end:
        code = int(end.code or 0)
    if common.stopped:
        raise KeyboardInterrupt  # Snakemake keeps it to itself
    if not common.steps_ran and code:  # no step failed, so the workflow itself is at fault; let Snakemake say how
        os.execv(sys.executable, [sys.executable, "-m", "snakemake", *arguments, *others])
    if code and not common.told:
        print(f"Snakemake itself failed: {' '.join(common.errors) or 'it does not say why'}")
    if not code and not others and (wrong := edited_table(profile)):
        print(wrong)
        return 1
    if not common.steps_ran and not others:
        print(f"Nothing to do: results/{profile} is complete and up to date. Report: results/{profile}/report.html")
    return code


def edited_table(profile: str) -> str:
    """What is wrong with the first table that is not what its experiment wrote; empty if all are."""
    from experiments.records import read

    for about in sorted((common.ROOT / "results" / profile).glob("*.json")):
        table = about.with_suffix(".csv")
        try:
            if table.exists():
                read(table.parent, table.stem)
        except (KeyError, ValueError) as error:
            return str(error) if table.name in str(error) else f"{about} is damaged ({error}): make {table.name} anew"
    return ""


def stop(*_: object) -> NoReturn:
    common.stopped = True
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGINT, stop)
    try:
        main()
    except KeyboardInterrupt:
        common.say("Stopped. What is finished is kept, and the same command goes on from there.")
        sys.exit(128 + signal.SIGINT)

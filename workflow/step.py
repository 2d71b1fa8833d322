"""Run a step of the batch: ``python workflow/step.py prepare.py ...`` is ``python workflow/prepare.py ...``, sooner.

Most of a short step is the import of torch, pandas and matplotlib. So `launch.py` keeps a process that has imported
them, and where it is there (on Linux), a step is forked from it. A step ends when whoever waits for it does.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # before anything takes its time: until a step runs, Ctrl-C has nothing to tell
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import json
import os
import runpy
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, NoReturn

import common

STARTED = time.time()  # before this process imports what can be edited
SOCKET = ".snakemake/steps.socket"  # from the root, where steps are started: the path of a socket must be short
LATE = ("papermill", "nbformat", "ipykernel.kernelapp")  # what steps import, too, but not the launcher


def main() -> None:
    common.die_with_parent()
    name, *arguments = sys.argv[1:]
    code = _forked(name, arguments)
    if code is None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            _run(name, arguments)
        except KeyboardInterrupt:
            code = 128 + signal.SIGINT
    sys.exit(code)


def _run(name: str, arguments: list[str]) -> None:
    """Run a script of this folder, or another module, as if python had been started with it."""
    sys.argv = [name, *arguments]
    if name.endswith(".py"):
        runpy.run_path(str(common.ROOT / "workflow" / name), run_name="__main__")
    else:
        runpy.run_module(name, run_name="__main__", alter_sys=True)


def _forked(name: str, arguments: list[str]) -> int | None:
    """The exit code of a step that the launcher's process runs; None if it does not."""
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.connect(SOCKET)
        except OSError:  # nobody is there
            return None
        answers = server.makefile("rw")
        print(json.dumps([name, arguments, dict(os.environ)]), file=answers, flush=True)
        if not answers.readline():
            return None
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the step hears Ctrl-C itself
        return int(answers.readline() or 128 + signal.SIGKILL)  # it was killed, if there is no answer


@contextmanager
def ready(lock: IO) -> Iterator[None]:
    """For this long, fork steps from what this process has imported. Its ``lock`` stays its own.

    It must not have started threads yet.
    """
    if sys.platform != "linux":  # elsewhere, a library's threads do not survive it
        yield
        return
    os.chdir(common.ROOT)
    socket_file = Path(SOCKET)
    socket_file.unlink(missing_ok=True)  # left by one that was killed
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(SOCKET)
        socket_file.chmod(0o600)
        listener.listen()
        launcher = os.getpid()
        sys.stdout.flush()
        if os.fork() == 0:
            lock.close()
            _serve(listener, launcher)
    try:
        yield
    finally:
        socket_file.unlink(missing_ok=True)


def _serve(listener: socket.socket, launcher: int) -> NoReturn:
    try:
        common.die_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the launcher
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who waits for a step is told by the step itself
        while os.getppid() == launcher:
            _answer(listener.accept()[0])
    finally:
        os._exit(1)


def _answer(connection: socket.socket) -> None:
    """Fork the step that is asked for; hang up if it would run code that is no longer in the files."""
    with connection, connection.makefile() as asked:
        request = asked.readline()
        if not request or _edited():
            return
        # The latter by optimizers, which takes as long as torch itself, and by what draws.
        for name in (*LATE, *["torch._dynamo", "seaborn"] * ("torch" in sys.modules)):
            import_module(name)
        if "pandas" in sys.modules:
            sys.modules["pandas"].options.display.max_columns = 20  # as if it had been imported by a notebook
        if os.fork() == 0:
            _be_the_step(connection, *json.loads(request))


def _edited() -> bool:
    folders = (common.ROOT / name for name in (*common.PACKAGES, "workflow"))
    files = (path for folder in folders for path in folder.rglob("*.*") if path.parent.name != "__pycache__")
    return any(path.stat().st_mtime > STARTED for path in files)


def _be_the_step(connection: socket.socket, name: str, arguments: list[str], environment: dict[str, str]) -> NoReturn:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    code = 1
    try:
        connection.sendall(b"forked\n")
        threading.Thread(target=_end_with, args=[connection], daemon=True).start()
        os.environ.clear()
        os.environ.update(environment)
        tempfile.tempdir = None  # as if it had not been asked for yet
        if "torch" in sys.modules and "OMP_NUM_THREADS" in environment:
            sys.modules["torch"].set_num_threads(int(environment["OMP_NUM_THREADS"]))
        _run(name, arguments)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.sendall(f"{code}\n".encode())
        os._exit(code)


def _end_with(connection: socket.socket) -> None:
    connection.recv(1)  # nothing more is sent: this returns when the other side is gone
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()

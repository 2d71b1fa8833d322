"""What the project never does: run what a file says, ask the network unasked, write where nobody said."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_packaging import sources

from experiments.data import mnist, omniglot

ROOT = Path(__file__).resolve().parent.parent
RUNS_WHAT_IT_READS = r"(pickle|cloudpickle|marshal|dill|joblib)\.loads?|pickle\.Unpickler|shelve\.open"
RUNS_WHAT_IT_READS += r"|(torch|np|numpy)\.load|(pd|pandas)\.read_pickle|yaml\.(unsafe_|full_)?load|eval|exec"
FROM_ITS_OWN_PROCESSES = {"gtl_core/scouting.py": ["pickle.loads"]}  # of an executor, what scouts are sent by
WATCH = """
import os, sys
def watch(event, arguments):
    if event.startswith("socket.") and event not in ("socket.__new__", "socket.bind"):
        sys.exit(f"{event} {arguments}")
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        if arguments[0] != os.devnull:
            sys.exit(f"wrote {arguments[0]}")
sys.addaudithook(watch)
"""


def dotted(node: ast.expr) -> str:
    """``a.b.c`` of an expression that is a name with attributes."""
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else getattr(node, "id", "")


@pytest.mark.parametrize("folder", ["gtl_core", "experiments", "workflow", "notebooks"])
def test_no_file_is_read_in_a_way_that_runs_it(folder):
    for name, source in sources(folder).items():
        nodes = list(ast.walk(ast.parse("\n".join(line for line in source.split("\n") if not line.startswith("%")))))
        used = {dotted(node) for node in nodes if isinstance(node, ast.Attribute | ast.Name)}
        froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
        imported = {f"{node.module}.{alias.name}" for node in froms for alias in node.names}
        found = [words for words in used | imported if re.fullmatch(RUNS_WHAT_IT_READS, words)]
        assert found == FROM_ITS_OWN_PROCESSES.get(name, []), name


def test_importing_the_core_opens_no_connection_and_writes_no_file(tmp_path):
    modules = [name.removesuffix(".py").replace("/", ".") for name in sources("gtl_core")]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", f"{WATCH}\nimport {', '.join(modules)}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    connect = "import socket; socket.create_connection(('127.0.0.1', 9))"
    for forbidden, said in ((connect, "socket."), ("open('x', 'w')", "wrote x")):
        command = [sys.executable, "-c", f"{WATCH}\n{forbidden}"]
        assert subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stderr.startswith(said)


def test_what_is_downloaded_comes_encrypted_and_has_a_digest():
    for source in (omniglot, mnist):
        assert source.URL.startswith("https://")
        assert all(re.fullmatch("[0-9a-f]{32}", md5) for md5, _ in source.ARCHIVES.values())
        assert all(re.fullmatch("([0-9a-f]{32}){1,2}", content) for _, content in source.ARCHIVES.values())


@pytest.mark.parametrize("path", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=lambda path: path.stem)
def test_workflows_have_no_more_rights_than_they_need_and_call_what_exists(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"} and "secrets." not in path.read_text()
    assert all(job.get("permissions", {}).get("contents", "read") == "read" for job in workflow["jobs"].values())
    matrix = [job.get("strategy", {}).get("matrix", {}) for job in workflow["jobs"].values()]
    targets = [target for names in matrix for target in names.get("check", [])]
    targets += re.findall(r"run: make ([a-z-]+)", path.read_text())
    known = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(targets) <= set(known)

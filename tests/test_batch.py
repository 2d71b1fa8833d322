"""The batch, run for real on a toy project: the real workflow and validation of parameters, tiny notebooks."""

import asyncio
import fcntl
import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import yaml
import zmq.asyncio

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "workflow"))

# The same interface as the real package, over two experiments: alpha shares a prepared step with beta.
PACKAGES = {
    "gtl_core/__init__.py": "from gtl_core.gathered import GATHERED\nfrom gtl_core.neighbour import NEIGHBOUR",
    "gtl_core/gathered.py": "GATHERED = 1",
    "gtl_core/neighbour.py": "NEIGHBOUR = 1",
    "gtl_core/shared.py": "",
    "gtl_core/shared.c": "",
    "gtl_core/files.py": """
        def read_safetensors(path):
            if not path.read_text().endswith("."):
                raise ValueError(f"{path.name} is damaged")
    """,
    "experiments/__init__.py": "",
    "experiments/data.py": """
        class DataError(RuntimeError): ...

        def ensure(name):
            if name != "glyphs":
                raise DataError(f"no {name} here")
    """,
    "experiments/workers.py": "def single_thread(): ...",
    "experiments/records.py": "def read(folder, name): return (folder / f'{name}.csv').read_text()",
    "experiments/style.py": """
        def save(figure, path):
            path.parent.mkdir(exist_ok=True)
            path.write_text(figure)
    """,
    "experiments/e01_alpha/__init__.py": "",
    "experiments/e01_alpha/run.py": "import gtl_core.shared\nfrom gtl_core import GATHERED as SCALE",
    "experiments/e01_alpha/figures.py": "def draw(frame): return f'alpha of {frame}'",
    "experiments/e02_beta/__init__.py": "",
    "experiments/e02_beta/run.py": "from gtl_core import shared\nSCALE = 2",
    "experiments/e02_beta/figures.py": "def draw(frame): return f'beta of {frame}'",
    "experiments/catalogue.py": """
        from typing import Literal
        from experiments.e01_alpha import figures as alpha
        from experiments.e02_beta import figures as beta
        from experiments.experiment import Experiment
        from experiments.parameters import NotebookParameters, ParameterError
        from experiments.preparations.toy import ToyStep

        class ToyParameters(NotebookParameters):
            dataset: Literal["glyphs", "omniglot"]
            rate: float
            fail: bool

            def preparations(self):
                return [ToyStep(seed=self.seed)]

        EXPERIMENTS = {
            "01_alpha": Experiment("alpha", "01_alpha", ToyParameters, {"alpha_1": alpha.draw, "alpha_2": alpha.draw}),
            "02_beta": Experiment("beta", "02_beta", ToyParameters, {"beta": beta.draw}),
        }
    """,
    "experiments/preparations/__init__.py": "",
    "experiments/preparations/steps.py": """
        from importlib import import_module
        from experiments.parameters import Parameters

        class Step(Parameters):
            def needs(self):
                return []

            def command(self):
                return f"{type(self).__module__}:{type(self).__name__} {self.canonical()}"

        def from_command(text):
            where, fields = text.split(" ", 1)
            module, name = where.split(":")
            return getattr(import_module(module), name).model_validate_json(fields)
    """,
    "experiments/preparations/toy.py": """
        from experiments.preparations.steps import Step

        class ToyStep(Step):
            kind: str = "step"
            seed: int

            def make(self, folder):
                (folder / f"{self.key}.safetensors").write_text(f"step of seed {self.seed}.")
    """,
}
PARAMETERS = """
    seed: int = 1  # of everything
    dataset: str = "glyphs"
    rate: float = 0.5
    fail: bool = False
    results: str = "results/here"
    prepared: str = ""
    workers: int = 0
    dask_scheduler: str = ""
"""
RUN = """
    import os, sys, time
    from pathlib import Path
    from experiments.FOLDER import run as NAME
    print("working in", os.getcwd())
    print("a warning", file=sys.stderr)
    (Path(results) / "NAME.json").write_text(str(os.getpid()))
    (Path(results) / "NAME.where").write_text(f"{workers} {dask_scheduler}")
    while Path("hold.NAME").exists():
        time.sleep(0.1)
"""
WRITE = """
    if fail: raise ValueError("rate is too high\\nsecond line")
    shared = [path.read_text() for path in sorted(Path(prepared).glob("*.safetensors"))]
    _ = (Path(results) / "NAME.csv").write_text(f"{NAME.SCALE * rate},{shared}")
"""


def dedent(text: str) -> str:
    lines = [line for line in text.split("\n") if line.strip()]
    indent = min((len(line) - len(line.lstrip()) for line in lines), default=0)
    return "\n".join(line[indent:] for line in lines) + "\n"


class Project:
    """A toy project in a temporary folder, and its launcher."""

    def __init__(self, root: Path):
        self.root, self.started = root, []
        shutil.copytree(ROOT / "workflow", root / "workflow", ignore=shutil.ignore_patterns("__pycache__"))
        for path, source in PACKAGES.items():
            self.write(path, dedent(source))
        for name in ("experiments/parameters.py", "experiments/experiment.py"):
            shutil.copy(ROOT / name, root / name)
        for stem, name in (("01_alpha", "alpha"), ("02_beta", "beta")):
            sources = [cell.replace("NAME", name).replace("FOLDER", f"e{stem}") for cell in (PARAMETERS, RUN, WRITE)]
            cells = [nbformat.v4.new_code_cell(dedent(source)) for source in sources]
            cells[0].metadata["tags"] = ["parameters"]
            title = nbformat.v4.new_markdown_cell(f"# The {name} experiment")
            metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
            self.write(
                f"notebooks/{stem}.ipynb",
                nbformat.writes(nbformat.v4.new_notebook(cells=[title, *cells], metadata=metadata)),
            )
        self.configure()

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def configure(
        self, alpha: dict | None = None, beta: dict | None = None, threads: int | None = None, **others: dict
    ) -> None:
        notebooks = {"01_alpha": alpha or {}, "02_beta": beta or {}} | others
        self.write("config/quick.yaml", yaml.safe_dump({"threads": threads, "notebooks": notebooks}))

    def start(self, *arguments: str, **settings: str) -> subprocess.Popen:
        # From another folder, with none of the caller's settings: paths must come from the project.
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "SNAKEMAKE", "JUPYTER"))}
        environment |= settings
        command = [sys.executable, self.root / "workflow/launch.py", *arguments]
        process = subprocess.Popen(
            command, cwd="/", env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.started.append(process)
        return process

    def launch(self, *arguments: str, **settings: str) -> tuple[int, str]:
        process = self.start(*arguments, **settings)
        output, _ = process.communicate(timeout=300)
        return process.returncode, output

    def planned(self) -> set[str]:
        """The rules that a run would execute now, apart from the one that collects everything."""
        code, output = self.launch("quick", "--dry-run", "--quiet", "rules", "host", "reason")
        assert code == 0, output
        words = [re.sub("prepare_[0-9a-f]+", "prepare", line).split() for line in output.splitlines()]
        return {line[0] for line in words if len(line) == 2 and line[1].isdigit()} - {"all", "total"}

    def read(self, path: str) -> str:
        return (self.root / path).read_text()

    def wait_for(self, path: str) -> str:
        until = time.monotonic() + 30
        while not ((self.root / path).exists() and self.read(path)):
            assert time.monotonic() < until, f"{path} did not appear"
            time.sleep(0.05)
        return self.read(path)


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Project:
    """A project after one complete run, for which a cluster and a number of cores were named; tests leave it so."""
    project = Project(tmp_path_factory.mktemp("done"))
    project.configure(beta={"dask_scheduler": "tcp://host:8786"})
    code, project.output = project.launch("quick", "--cores", "3")
    assert code == 0, project.output
    project.configure()
    return project


@pytest.fixture
def project(tmp_path) -> Iterator[Project]:
    project = Project(tmp_path)
    yield project
    for process in project.started:  # what a failed test left behind
        process.kill()
        process.communicate()


def test_a_run_makes_everything(done):
    assert done.read("results/quick/alpha.csv") == "0.5,['step of seed 1.']"
    assert done.read("results/quick/beta.csv") == "1.0,['step of seed 1.']"
    figures = sorted(path.name for path in (done.root / "results/quick/figures").iterdir())
    assert figures == ["alpha_1.png", "alpha_2.png", "beta.png"]
    assert done.output.count("step, seed 1") == 1, "what two notebooks share is made once"
    noise = [
        line for line in done.output.splitlines() if not re.match(r"[\w ,]+: (started|done in \d+ s)|results/", line)
    ]
    assert noise == ["Report: results/quick/report.html"]


def test_progress_says_how_many_what_runs_and_what_is_left(done, tmp_path):
    """One of two steps took 60 s when it last ran, the other 120 s; the first has just been done, in no time."""
    import logging

    from progress import Progress

    (tmp_path / "seconds.json").write_text('{"one": 60, "other": 120}')
    progress = Progress({"one": "the first", "other": "the second"}, tmp_path / "seconds.json")

    def tell(**fields):
        progress.emit(logging.makeLogRecord(fields))

    assert progress.words() == ("0 of 2 steps", "about 3 min left; ")
    tell(event="job_info", jobid=7, rule_name="one")
    assert progress.words() == ("0 of 2 steps", "about 3 min left; running: the first")
    tell(event="job_finished", job_id=7)
    tell(event="job_info", jobid=8, rule_name="other")
    assert progress.words()[0] == "1 of 2 steps" and progress.words()[1].endswith("running: the second")
    assert json.loads((tmp_path / "seconds.json").read_text())["one"] < 60  # what it took now
    assert set(json.loads(done.read("results/quick/logs/seconds.json"))) >= {"notebook_01_alpha", "report"}
    (tmp_path / "seconds.json").write_text('{"one": 6')  # cut off by a kill
    assert Progress({"one": "the first"}, tmp_path / "seconds.json").known == {}


def test_published_notebooks_hold_nothing_that_differs_between_runs(done):
    text = done.read("results/quick/notebooks/01_alpha.ipynb")
    for absent in (str(done.root), str(Path.home()), "duration", "start_time", "iopub"):
        assert absent not in text
    cells = json.loads(text)["cells"]
    outputs = [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]
    assert [output["text"] for output in outputs] == [["working in .\n"]], "without the warning"
    injected = cells[2]
    assert injected["id"] == "injected-parameters"
    assert 'results = "results/quick"\n' in injected["source"]


@pytest.mark.parametrize("channel", ["shell_channel_class", "iopub_channel_class"])
def test_a_message_of_which_nothing_told_is_read_all_the_same(channel, monkeypatch):
    """The socket says nothing the first time, as one does whose only sign was seen by somebody else."""
    from jupyter_client.channels import AsyncZMQSocketChannel
    from run_notebook import ASK_AGAIN, client

    asked = []

    async def get_msg(self, timeout=None):
        asked.append(timeout)
        if len(asked) < 3:
            raise queue.Empty
        return {"content": "answer"}

    monkeypatch.setattr(AsyncZMQSocketChannel, "get_msg", get_msg)
    with zmq.asyncio.Context() as context:
        waiting = getattr(client()(), channel)(context.socket(zmq.DEALER), None)
        assert asyncio.run(waiting.get_msg()) == {"content": "answer"} and asked == [ASK_AGAIN] * 3
        asked.clear()
        with pytest.raises(queue.Empty):
            asyncio.run(waiting.get_msg(timeout=0.5))
        waiting.close()
    assert asked == [0.5]


def test_notebooks_are_run_by_it():
    from run_notebook import client, kernel_manager

    made = kernel_manager()().client()
    assert type(made).__qualname__ == client().__qualname__


def test_what_pandas_and_python_draw_anew_is_counted():
    from run_notebook import numbered

    one = r"<style>#T_4a1f0_row0 {}</style><table id=\"T_4a1f0\"> <Styler at 0x7f3a21> <table id=\"T_9b2c7\">"
    assert numbered(one) == (
        r"<style>#T_00000_row0 {}</style><table id=\"T_00000\"> <Styler at 0x0> <table id=\"T_00001\">"
    )
    for path in (ROOT / "results/paper/notebooks").glob("*.ipynb"):
        text = path.read_text()
        assert numbered(text) == text, f"{path.name} has something that the next run changes"


def test_report_is_one_file_that_loads_nothing(done):
    html = done.read("results/quick/report.html")
    assert '<a href="#01_alpha">The alpha experiment</a>' in html and '<a id="01_alpha">' in html
    for loads in ("<script src", "<link", "@import", "url(http", "src=http", 'src="http'):
        assert loads not in html, loads


def test_a_second_run_does_nothing_and_says_so(done):
    before = {path: path.stat().st_mtime_ns for path in (done.root / "results").rglob("*")}
    code, output = done.launch("quick")
    assert code == 0
    assert output.startswith("Nothing to do") and len(output.splitlines()) == 1
    assert before == {path: path.stat().st_mtime_ns for path in (done.root / "results").rglob("*")}


BOTH = {"notebook_01_alpha", "notebook_02_beta"}


@pytest.mark.parametrize(
    ("edited", "expected"),
    [
        ("experiments/e01_alpha/run.py", {"notebook_01_alpha", "figures_01_alpha", "report"}),
        ("experiments/e01_alpha/figures.py", {"figures_01_alpha"}),
        ("experiments/e02_beta/figures.py", {"figures_02_beta"}),
        ("gtl_core/shared.py", {*BOTH, "figures_01_alpha", "figures_02_beta", "report"}),
        ("gtl_core/shared.c", {*BOTH, "figures_01_alpha", "figures_02_beta", "report"}),
        ("experiments/preparations/toy.py", {*BOTH, "figures_01_alpha", "figures_02_beta", "report", "prepare"}),
        ("experiments/data.py", {*BOTH, "figures_01_alpha", "figures_02_beta", "report", "prepare"}),
        ("gtl_core/gathered.py", {"notebook_01_alpha", "figures_01_alpha", "report"}),
        ("gtl_core/neighbour.py", set()),
        ("experiments/catalogue.py", set()),
    ],
)
def test_an_edit_reruns_what_it_touches_and_nothing_else(done, edited, expected):
    """By its content: the file is older than the results, as one that was copied or restored with its time."""
    content = done.read(edited)
    try:
        done.write(edited, content + "\n# edited\n")
        os.utime(done.root / edited, (0, 0))
        assert done.planned() == expected
    finally:
        done.write(edited, content)


FOLDERS = sorted(path.name for path in (ROOT / "experiments").glob("e[0-9][0-9]_*"))


@pytest.fixture(scope="module")
def used():
    """For every notebook of the real project, the files that it and its figures depend on."""
    import common

    from experiments.catalogue import EXPERIMENTS

    files = {}
    for e in EXPERIMENTS.values():
        figures = common.uses(*(draw.__module__ for draw in e.figures.values()))
        files[e.notebook] = {*common.uses(f"notebooks/{e.notebook}.ipynb"), *figures}
    return files


@pytest.mark.parametrize("folder", FOLDERS)
def test_in_the_real_project_an_edit_of_an_experiment_reruns_its_notebook_only(used, folder):
    """Neither notebook nor figures of any other experiment use a file of this folder; its own notebook uses its run."""
    users = {name: {f for f in files if f.startswith(f"experiments/{folder}/")} for name, files in used.items()}
    own = next(notebook for notebook in users if notebook[:2] == folder[1:3])
    assert f"experiments/{folder}/run.py" in users.pop(own)
    assert not any(users.values()), {notebook: files for notebook, files in users.items() if files}
    assert len(users) == len(FOLDERS) - 1


def test_a_notebook_waits_for_the_datasets_that_it_names_and_no_other(done):
    try:
        done.configure(beta={"dataset": "omniglot", "seed": 2})  # which cannot be had
        target = "results/quick/notebooks/01_alpha.ipynb"
        _, output = done.launch("quick", "--dry-run", "--forceall", "--quiet", "rules", "--", target)
        assert re.search(r"^dataset +1$", output, re.MULTILINE), "the glyphs"
    finally:
        done.configure()


def test_a_changed_parameter_reruns_its_notebook_and_a_spelling_of_it_does_not(done):
    try:
        done.configure(beta={"rate": 0.25})
        assert done.planned() == {"notebook_02_beta", "figures_02_beta", "report"}
        done.configure(beta={"rate": "5e-1"})
        assert done.planned() == set()
    finally:
        done.configure()


def test_who_does_the_work_is_passed_on_and_neither_reruns_nor_shows(done):
    assert done.read("results/quick/alpha.where") == "3 "
    assert done.read("results/quick/beta.where") == "3 tcp://host:8786"
    assert done.read("results/quick/beta.csv") == "1.0,['step of seed 1.']"
    assert "tcp://host" not in done.read("results/quick/notebooks/02_beta.ipynb")
    assert done.planned() == set(), "though the profile no longer names the cluster"


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"alpha": {"rtae": 1}}, "config/quick.yaml: 01_alpha: unknown parameter rtae = 1: did you mean rate?"),
        ({"beta": {"rate": "high"}}, "config/quick.yaml: 02_beta: rate = 'high': "),
        ({"beta": {"results": "elsewhere"}}, "config/quick.yaml: 02_beta: results is set by the batch"),
        ({"threads": 0}, "config/quick.yaml: threads = 0: should be greater than or equal to 1"),
        ({"02_beat": {}}, "config/quick.yaml: unknown notebook '02_beat': did you mean 02_beta?"),
    ],
)
def test_a_wrong_profile_is_refused_in_one_line(project, parameters, said):
    project.configure(**parameters)
    code, output = project.launch("quick")
    assert code != 0
    assert output.startswith(said) and len(output.splitlines()) == 1
    assert not (project.root / "results").exists()


def test_the_runner_knows_the_notebooks_parameters(done):
    command = [
        sys.executable,
        "workflow/run_notebook.py",
        "notebooks/01_alpha.ipynb",
        "o.ipynb",
        "--partial",
        "p.ipynb",
    ]
    process = subprocess.run([*command, "--parameters", '{"rtae": 1}'], cwd=done.root, text=True, capture_output=True)
    assert process.returncode != 0
    assert "01_alpha: failed: no parameter 'rtae' in its parameters cell: did you mean rate?" in process.stderr
    assert not (done.root / "o.ipynb").exists()


def test_an_unknown_profile_is_refused_in_one_line(project):
    assert project.launch("quik") == (1, "unknown profile 'quik': did you mean quick?\n")


def test_snakemake_alone_validates_too(project):
    project.configure(alpha={"rtae": 1})
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--snakefile", project.root / "workflow/Snakefile"]
    process = subprocess.run(command, cwd=project.root, text=True, capture_output=True)
    assert process.returncode != 0
    assert "unknown parameter rtae" in process.stderr and "Traceback" not in process.stderr


def test_what_ends_snakemake_itself_is_told(project):
    broken = "\n\nonstart:\n    common.steps_ran = True\n    raise OSError('no such luck')\n"
    project.write("workflow/Snakefile", project.read("workflow/Snakefile") + broken)
    code, output = project.launch("quick")
    assert code == 1 and output.count("\n") == 1
    assert output.startswith("Snakemake itself failed: ") and "no such luck" in output


def test_a_failing_notebook_stays_readable_and_the_others_go_on(project):
    project.configure(alpha={"fail": True})
    code, output = project.launch("quick")
    assert code != 0
    assert "01_alpha: failed: ValueError: rate is too high (cell 4)\n01_alpha: read results/quick/logs/01" in output
    assert "Traceback" not in output
    partial = project.read("results/quick/logs/01_alpha.ipynb")
    assert "working in" in partial and "rate is too high" in partial
    assert not (project.root / "results/quick/notebooks/01_alpha.ipynb").exists()
    assert (project.root / "results/quick/notebooks/02_beta.ipynb").exists()
    assert (project.root / "results/quick/figures/beta.png").exists()


def test_kill_and_run_again(done, project):
    temporary = Path(tempfile.mkdtemp(dir="/tmp"))  # a short path, for sockets
    shutil.copytree(done.root, project.root, dirs_exist_ok=True)
    project.configure(alpha={"rate": 0.25}, threads=1)
    project.write("hold.alpha", "")
    for how in (signal.SIGTERM, signal.SIGKILL) if sys.platform == "linux" else (signal.SIGKILL,):
        (project.root / "results/quick/alpha.json").unlink()
        run = project.start("quick", "--cores", "2", TMPDIR=str(temporary))
        pid = int(project.wait_for("results/quick/alpha.json"))
        if sys.platform == "linux":
            assert "launch.py" in Path(f"/proc/{pid}/cmdline").read_text(), (
                "a step is forked from the launcher's process"
            )
        code, output = project.launch("quick")
        assert code != 0 and output == "Another run is going on in this checkout; wait for it or stop it.\n"
        run.send_signal(how)
        run.communicate(timeout=10)  # returns when no step of it is left
        until = time.monotonic() + 5
        while alive(pid) and time.monotonic() < until:
            time.sleep(0.02)
        assert not alive(pid), "the notebook's process must die with the batch"
        assert not (project.root / "results/quick/alpha.csv").exists()

    (project.root / "hold.alpha").unlink()
    assert len(list(temporary.iterdir())) == 1, "what it left"
    code, output = project.launch("quick", TMPDIR=str(temporary), HOME="/proc/nowhere")
    assert code == 0, output
    temporary.rmdir()  # is empty now
    assert "Another" not in output and "unlock" not in output and "beta" not in output
    assert project.read("results/quick/alpha.where") == "1 ", "as many threads as the profile names"
    assert project.read("results/quick/alpha.csv") == "0.25,['step of seed 1.']"
    assert project.read("results/quick/figures/alpha_1.png") == "alpha of 0.25,['step of seed 1.']"
    for path in ("beta.csv", "figures/beta.png"):
        assert project.read(f"results/quick/{path}") == done.read(f"results/quick/{path}")


def test_a_damaged_preparation_is_named_and_made_anew(done, project):
    shutil.copytree(done.root, project.root, dirs_exist_ok=True)
    (prepared,) = (project.root / "results/quick/prepared").glob("*.safetensors")
    prepared.write_text("step of se")
    project.configure(alpha={"rate": 0.25})
    code, output = project.launch("quick")
    assert code == 0, output
    assert output.startswith(f"{prepared.name} is damaged: deleted, to be made anew\n")
    assert prepared.read_text() == "step of seed 1."
    assert project.read("results/quick/alpha.csv") == "0.25,['step of seed 1.']"


def test_a_step_runs_what_the_files_say_when_it_begins(project):
    """Its process was made from what had been imported before: not if that has been edited since."""
    stems = {"alpha": "e01_alpha", "beta": "e02_beta"}
    for name in stems:
        project.write(f"hold.{name}", "")
    project.configure(threads=1)
    run = project.start("quick", "--cores", "1")
    begun = [project.root / f"results/quick/{name}.json" for name in stems]
    until = time.monotonic() + 30
    while not any(path.exists() for path in begun):
        assert time.monotonic() < until
        time.sleep(0.05)
    other = next(path.stem for path in begun if not path.exists())
    project.write(f"experiments/{stems[other]}/run.py", "import gtl_core.shared\nSCALE = 7")
    for name in stems:
        (project.root / f"hold.{name}").unlink()
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 0, output
    assert project.read(f"results/quick/{other}.csv") == "3.5,['step of seed 1.']"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_lock_is_the_systems(project):
    (project.root / ".snakemake").mkdir()
    with open(project.root / ".snakemake/launch.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert project.launch("quick")[0] == 1
    assert project.planned()


@pytest.mark.skipif(sys.platform != "linux", reason="steps are forked on Linux")
def test_a_step_that_waits_to_be_forked_says_nothing_of_ctrl_c(tmp_path):
    (tmp_path / ".snakemake").mkdir()
    command = [sys.executable, ROOT / "workflow/step.py", "prepare.py"]
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / ".snakemake/steps.socket"))
        server.listen()
        step = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        connection, _ = server.accept()
        with connection, connection.makefile() as asked:
            assert json.loads(asked.readline())[0] == "prepare.py"
            step.send_signal(signal.SIGINT)
            assert step.communicate(timeout=60)[1] == "" and step.returncode == -signal.SIGINT

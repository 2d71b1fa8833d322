"""Execute one notebook through papermill and publish it only if every cell succeeded."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from queue import Empty

import common

WIDGET = "application/vnd.jupyter.widget-view+json"
ASK_AGAIN = 5.0  # seconds
MAX_BYTES = 700_000  # published notebooks are committed


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once, and its kernel with it
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("output", type=Path, help="where to publish it, without anything that differs between runs")
    parser.add_argument("--partial", type=Path, required=True, help="where to execute it; stays as it is on failure")
    parser.add_argument("--parameters", type=json.loads, default={}, help="JSON object")
    parser.add_argument("--where", type=json.loads, default={"workers": 1}, help="those on which no result depends")
    args = parser.parse_args()
    name, begin = args.notebook.stem, time.monotonic()
    common.say(f"{name}: started")
    try:
        executed = execute(args.notebook, args.partial, args.parameters | args.where)
        publish(executed, args.output)
    except NotebookError as error:
        sys.exit(f"{name}: failed: {error}\n{name}: read {args.partial}")
    common.say(f"{name}: done in {time.monotonic() - begin:.0f} s")


class NotebookError(Exception):
    """What went wrong, in one line."""


def execute(notebook: Path, partial: Path, parameters: dict[str, object]):
    """The executed notebook, saved to ``partial`` after every cell."""
    import papermill
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    known = papermill.inspect_notebook(str(notebook))
    if unknown := sorted(set(parameters) - set(known)):  # papermill would only warn
        raise NotebookError(f"no parameter {unknown[0]!r} in its parameters cell: {common.hint(unknown[0], known)}")

    partial.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gtl-") as folder:
        # Sockets in a directory of this run's own: TCP ports are raced for. Its path must be short.
        config = Config(KernelManager={"transport": "ipc", "ip": f"{folder}/k"})
        os.environ |= {"JUPYTER_RUNTIME_DIR": folder, "IPYTHONDIR": folder}  # nor anything of the user's
        os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # Snakemake sets the step's number of cores
        os.environ["TQDM_DISABLE"] = "1"  # progress bars are for people who watch
        try:
            return papermill.execute_notebook(
                str(notebook),
                str(partial),
                parameters,
                kernel_name="python3",
                progress_bar=False,
                cwd=str(common.ROOT),
                kernel_manager_class=kernel_manager(),
                config=config,
            )
        except PapermillExecutionError as error:
            first_line = (error.evalue.strip().splitlines() or [""])[0]
            raise NotebookError(f"{error.ename}: {first_line} (cell {error.exec_count})") from None
        except RuntimeError as error:  # `DeadKernelError`, and a plain one if it has not even begun to answer
            said = "its kernel died" if "died" in str(error) else str(error)
            raise NotebookError(f"{said} (out of memory?)") from None


def kernel_manager() -> type:
    """Starts this very interpreter, whatever kernels the user has registered, and lets it die with this process."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from traitlets import Type

    step = str(common.ROOT / "workflow/step.py")

    class ThisInterpreter(AsyncKernelManager):
        kernel_spec = KernelSpec(
            # Its log would only tell that it was interrupted when it is shut down; errors of cells come as messages.
            argv=[sys.executable, step, "ipykernel_launcher", "-f", "{connection_file}", "--IPKernelApp.log_level=50"],
            display_name="Python 3",
            language="python",
        )
        client_factory = Type(client())

    return ThisInterpreter


def client() -> type:
    """Asks a socket again whether there is a message: once in many runs nothing tells that one has come (0MQ says so
    once, to whoever looks first), and a notebook waits for ever for a kernel that has answered."""
    from jupyter_client.asynchronous import AsyncKernelClient
    from jupyter_client.channels import AsyncZMQSocketChannel
    from traitlets import Type

    class AskingAgain(AsyncZMQSocketChannel):
        async def get_msg(self, timeout: float | None = None) -> dict:
            while timeout is None:
                with suppress(Empty):
                    return await super().get_msg(ASK_AGAIN)
            return await super().get_msg(timeout)

    class Client(AsyncKernelClient):
        shell_channel_class = Type(AskingAgain)
        iopub_channel_class = Type(AskingAgain)

    return Client


def publish(notebook, output: Path) -> None:
    """Write the notebook, without what differs between runs or machines (times, ids, paths, warnings)."""
    import nbformat

    notebook.metadata.pop("papermill", None)
    notebook.metadata.pop("widgets", None)  # they need a kernel, and so do their views below
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.id = "injected-parameters"
            lines = cell.source.splitlines()
            cell.source = "\n".join(line for line in lines if line.split(" = ")[0] not in common.WHERE)
        if cell.cell_type == "code":
            shown = [o for o in cell.outputs if o.get("name") != "stderr" and WIDGET not in o.get("data", {})]
            cell.outputs = merged([without_paths(o) for o in shown])
    text = numbered(nbformat.writes(notebook) + "\n")
    if len(text) > MAX_BYTES:
        raise NotebookError(f"{len(text) // 1000} kB executed, more than {MAX_BYTES // 1000} kB: draw or print less")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text)  # cut short by a kill, it is made again: Snakemake knows which steps came to their end


def numbered(text: str) -> str:
    """The notebook with what every run draws anew counted instead: names of styled tables, addresses of objects."""
    for pattern, counted in ((r'<table id=\\"(T_[0-9a-f]{5})\\"', "T_{:05x}"), (r" at (0x[0-9a-f]+)>", "0x{:x}")):
        for number, name in enumerate(dict.fromkeys(re.findall(pattern, text))):
            text = text.replace(name, counted.format(number))
    return text


def without_paths(output):
    """The output with paths relative to the project, and ~ for the user's home."""
    texts = output.get("data", {})
    if output.output_type == "stream":
        texts = output
    for key, text in texts.items():
        if isinstance(text, str) and key.startswith("text"):
            for path, short in ((f"{common.ROOT}/", ""), (str(common.ROOT), "."), (str(Path.home()), "~")):
                texts[key] = text = text.replace(path, short)
    return output


def merged(outputs: list) -> list:
    """Consecutive pieces of printed text as one: where it was cut depends on timing."""
    result: list = []
    for output in outputs:
        if result and output.output_type == result[-1].output_type == "stream":
            result[-1].text += output.text
        else:
            result.append(output)
    return result


if __name__ == "__main__":
    main()

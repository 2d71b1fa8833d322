"""How far the batch is, from the events that Snakemake logs: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Thread

from tqdm import tqdm

EVERY = 60  # seconds between two lines in a log


class Errors(logging.Handler):
    """Adds what every error of Snakemake's own says to a list, without the lines that tell where it came from."""

    def __init__(self, errors: list[str]):
        super().__init__()
        self.errors = errors

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "exception", None):
            lines = record.getMessage().strip().splitlines()
            said = (line for line in lines if line[:1].strip() and not line.startswith("Traceback"))
            self.errors.append(" ".join(said))


class Progress(logging.Handler):
    """Of the rules that are to run, with what each is called.

    seconds: a file with how long each one took when it last ran. What is left is estimated where it knows them all.
    """

    def __init__(self, planned: Mapping[str, str], seconds: Path):
        super().__init__()
        self.planned, self.file = planned, seconds
        self.known: dict[str, float] = {}
        with suppress(OSError, ValueError):  # none yet, or cut off by a kill: no loss
            self.known = json.loads(seconds.read_text())
        self.names: dict[int, str] = {}  # of jobs
        self.running: dict[str, float] = {}  # since when
        self.took: dict[str, float] = {}
        self.begin = time.monotonic()
        look = {"bar_format": "{desc} |{bar:20}| {elapsed}{postfix}", "leave": False}
        self.bar = tqdm(total=len(planned), disable=not sys.stderr.isatty(), **look)
        Thread(target=self._tell, daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        event, now = str(getattr(record, "event", "")), time.monotonic()
        if event == "job_info" and record.rule_name in self.planned:  # just before it starts
            self.names[record.jobid] = record.rule_name
            self.running[record.rule_name] = now
        elif event == "job_finished" and (name := self.names.get(record.job_id)) in self.running:
            self.took[name] = now - self.running.pop(name)
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(json.dumps(self.known | self.took))
        self._show()

    def words(self) -> tuple[str, str]:
        """How many steps are done, and what runs and is left."""
        there = ", ".join(self.planned[name] for name in list(self.running))  # copies: another thread tells of it
        left = self.left()
        about = f"about {max(1, round(left / 60))} min left; " if left is not None else ""
        return f"{len(self.took)} of {len(self.planned)} steps", f"{about}running: {there}" if there else about

    def left(self) -> float | None:
        """Seconds, or None if a step that is to run never ran before."""
        todo = [name for name in self.planned if name not in self.took]
        if any(name not in self.known for name in todo):
            return None
        before = sum(self.known.get(name, 0.0) for name in list(self.took))
        # Steps run side by side, or slower than then.
        pace = (time.monotonic() - self.begin) / before if before else 1.0
        return pace * sum(self.known[name] for name in todo)

    def _show(self) -> None:
        if not self.bar.disable:
            done, rest = self.words()
            self.bar.n = len(self.took)
            self.bar.set_description_str(done, refresh=False)
            self.bar.set_postfix_str(rest)

    def _tell(self) -> None:
        while True:
            time.sleep(1 if not self.bar.disable else EVERY)
            if self.bar.disable and len(self.took) < len(self.planned):
                print(
                    f"{', '.join(filter(None, self.words()))} ({(time.monotonic() - self.begin) / 60:.0f} min)",
                    flush=True,
                )
            self._show()

"""What `make study` prints while it works: one line a job, from the events of Snakemake."""

import logging
import sys
import time
from collections import deque
from pathlib import Path


class StudyProgress(logging.Handler):
    """A handler of Snakemake's log: how many jobs, a line when one ends or fails, other errors.

    logs: the folder where each job leaves what it wrote, as <job>.log.
    """

    def __init__(self, logs: Path) -> None:
        super().__init__()
        self.logs, self.start = logs, time.monotonic()
        self.jobs: dict[int, tuple[str, float]] = {}  # by id: name and start
        self.ended: deque[int] = deque()
        self.failures: dict[int, str] = {}  # by id: what was printed; a job may be tried again

    def emit(self, record: logging.LogRecord) -> None:
        """Print the line of an event, if it has one."""
        fields = vars(record)
        event = fields.get("event")
        if event == "run_info":
            self.show(f"jobs: {fields['stats']['total']}; a line for each that ends")
        elif event == "job_info":
            made = fields["output"]  # the rule `all` makes nothing itself
            name = Path(made[0]).stem if made else fields["rule_name"]
            self.jobs[fields["jobid"]] = (name, time.monotonic())
        elif event == "job_finished":
            self.ended.append(fields["job_id"])
            self.failures.pop(fields["job_id"], None)
        elif event == "progress":
            self.finished(fields["done"], fields["total"])
        elif event == "job_error":
            name, _ = self.jobs[fields["jobid"]]
            log = self.logs / f"{name}.log"
            lines = log.read_text(encoding="utf-8").split("\n") if log.exists() else []
            reason = [line for line in lines if line.strip()][-1:]
            self.failures[fields["jobid"]] = f"{name} failed; its log is {log}"
            self.show("\n".join([self.failures[fields["jobid"]], *reason]))
        elif record.levelno >= logging.ERROR and not self.failures:  # after them it is no news
            if "CalledProcessError" not in str(record.msg):  # the error of the job comes next
                self.show(str(record.msg))

    def finished(self, done: int, total: int) -> None:
        """Print a line for each job that has ended since the last call.

        The first jobs say too little about the others, so the time left comes with a third of them.
        """
        while self.ended:
            name, start = self.jobs[self.ended.popleft()]
            now = time.monotonic()
            left = (now - self.start) * (total - done) / done
            remaining = f"about {duration(left)} left" if 3 * done >= total else ""
            remaining = "all done" if done == total else remaining
            took = duration(now - start)
            line = f"[{done:>{len(str(total))}}/{total}] {name:<28} {took:>8}   {remaining}"
            self.show(line.rstrip())

    def show(self, text: str) -> None:
        """Print at once, also into a pipe."""
        print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """A duration in words: 8 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

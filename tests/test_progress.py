"""The lines that a study prints while it works."""

import logging

import pytest

from rolib.progress import StudyProgress, duration


def event(name, level=logging.INFO, message=None, **fields):
    record = logging.LogRecord("snakemake", level, __file__, 1, message, (), None)
    record.event = name
    vars(record).update(fields)
    return record


def started(number, output):
    return event("job_info", jobid=number, output=[output], rule_name="a-rule")


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [100.0]
    monkeypatch.setattr("rolib.progress.time.monotonic", lambda: now[0])
    return now


def test_a_finished_job_is_a_line_with_its_number_duration_and_time_left(tmp_path, clock, capsys):
    progress = StudyProgress(tmp_path)
    progress.emit(event("run_info", stats={"teacher": 11, "all": 1, "total": 12}))
    progress.emit(started(7, "runs/demo/notebooks/01-bert-cased.ipynb"))
    progress.emit(event("job_info", jobid=3, output=[], rule_name="all"))
    clock[0] += 30
    progress.emit(event("job_finished", job_id=7))
    progress.emit(event("progress", done=1, total=12))
    progress.emit(started(8, "x/01-bert-uncased.ipynb"))
    clock[0] += 10
    progress.emit(event("job_finished", job_id=8))
    progress.emit(event("progress", done=4, total=12))
    progress.emit(event("job_finished", job_id=3))
    progress.emit(event("progress", done=12, total=12))
    first, early, one, other = capsys.readouterr().err.splitlines()
    assert first == "jobs: 12; a line for each that ends"
    assert early.split() == "[ 1/12] 01-bert-cased 30 s".split()
    assert one.split() == "[ 4/12] 01-bert-uncased 10 s about 80 s left".split()  # 40 s for a third
    assert other.split() == "[12/12] all 40 s all done".split()


def test_a_failed_job_names_its_log_and_the_reason(tmp_path, capsys):
    progress = StudyProgress(tmp_path)
    progress.emit(started(1, "x/02-distil-multi.ipynb"))
    log = tmp_path / "02-distil-multi.log"
    log.write_text("bar\nerror: ConfigError: lower it\n\n", encoding="utf-8")
    progress.emit(event("job_error", logging.ERROR, "Error in rule", jobid=1))
    text = capsys.readouterr().err
    assert text == f"02-distil-multi failed; its log is {log}\nerror: ConfigError: lower it\n"
    assert list(progress.failures.values()) == [f"02-distil-multi failed; its log is {log}"]
    progress.emit(event("job_finished", job_id=1))  # in a second try
    assert not progress.failures


def test_other_errors_are_printed_and_other_messages_are_not(tmp_path, capsys):
    progress = StudyProgress(tmp_path)
    progress.emit(event(None, message="Select jobs to execute..."))
    progress.emit(event(None, logging.ERROR, "Directory cannot be locked."))
    assert capsys.readouterr().err == "Directory cannot be locked.\n"


def test_the_error_of_a_command_comes_once_and_that_of_a_rule_is_not_lost(tmp_path, capsys):
    wrong = "RuleException in rule teacher: NameError: The name 'foo' is unknown"
    StudyProgress(tmp_path).emit(event(None, logging.ERROR, wrong))
    assert capsys.readouterr().err == wrong + "\n"
    progress = StudyProgress(tmp_path)
    progress.emit(started(1, "x/02-distil-multi.ipynb"))
    progress.emit(event(None, logging.ERROR, "RuleException: CalledProcessError in line 70"))
    progress.emit(event("job_error", logging.ERROR, "Error in rule", jobid=1))
    progress.emit(event(None, logging.ERROR, "Exiting because a job execution failed."))
    assert capsys.readouterr().err.startswith("02-distil-multi failed; its log is ")
    progress.emit(event(None, logging.ERROR, "WorkflowError"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min")]
)
def test_durations_in_words(seconds, text):
    assert duration(seconds) == text
    assert duration(9000) == "2.5 h"

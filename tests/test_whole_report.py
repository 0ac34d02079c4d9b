"""Notebook 06 from its first table to its last, over a made-up study with unusual students."""

import json
import re
import shutil

import pandas as pd
import pytest
from cells import after_cells, code_cells
from test_results import SIZES, write_study

from rolib import figures
from rolib.analysis import agreement, study, tables
from rolib.config import AnalyseConfig

# Their values are given, or the notebook would read files that this study has not.
GIVEN = ["06-01", "06-02", "06-03", "06-03g"]
TASKS = ["upos", "sar", "sts"]


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A study whose teacher bert-cased has two students of its own, distil-cased and twin.

    Both have controls. Those of twin are `mlm` and random weights; it shares the others.
    """
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    folder = tmp_path / "toy"
    write_study(folder, seeds=(1, 2), sizes={task: SIZES[task] for task in TASKS})
    for kind in ("students", "evaluation"):
        shutil.copytree(folder / kind / "distil-multi", folder / kind / "twin")
        shutil.copytree(folder / kind / "distil-cased-mlm", folder / kind / "twin-mlm")
    shutil.copy(folder / "students/distil-cased/config.yaml", folder / "students/twin")
    random = folder / "evaluation/distil-cased-random"
    shutil.copytree(random, random.with_name("twin-random"))
    made = {"git_commit": "0" * 40, "duration_seconds": 1.0, "device": "CPU", "notes": []}
    made |= {"python": "3", "platform": "Linux", "cores": 2, "packages": {"torch": "2"}}
    made |= {"finished": "2026-01-01T00:00:00+0000"}
    for path in [*folder.glob("evaluation/*/*/seed-*"), *folder.glob("[st]*s/*")]:
        (path / "manifest.json").write_text(json.dumps(made))
    gate = {"held_out_mlm": 5.0, "frequency_baseline": 6.0, "left_plateau": True}
    for path in folder.glob("teachers/*"):
        (path / "gate.json").write_text(json.dumps(gate))
    return AnalyseConfig(profile="toy", seed=3, data="sample", resamples=200)


def speed_of(config):
    """A table of notebook 05, in which a student takes half the time of its teacher."""
    columns = ["model", "role", "teacher", "layers"]
    table = study.members(config).query("role in ('teacher', 'student')")[columns]
    table = table.assign(size_ratio=0.7, speed_up=2.0, parameters=1000, megabytes=4.0)
    table = table.assign(batch_size=32, device="CPU", tokens_per_second=9.0)
    for name, factor in (("latency_ms", 2.0), ("latency_q1_ms", 1.9), ("latency_q3_ms", 2.1)):
        table[name] = factor * table["layers"]
    return table


def test_two_students_of_one_teacher_have_a_place_in_every_table(config):
    found = agreement.loyalty_tables(config)
    tables.write_tables(config, found | {"speed": speed_of(config)})
    pieces = pd.DataFrame({"piece": ["legea", "un"], "probability": [0.5, 0.1]})
    known = {"config": config, "folder": config.folder / "figures", "made_by": "`make toy`"}
    known |= {"show": str, "fill_gap": lambda *_: pieces, "load_profile": lambda _: {}}
    figures.set_theme()
    names = [name for name in code_cells("06-report-results") if name not in GIVEN]
    report = after_cells("06-report-results", *names, **known)
    ours = ["distil-cased", "twin"]
    kinds = {role.removesuffix(" control") for role in study.CONTROLS}
    for name, own in zip(ours, (kinds, {"mlm", "random"}), strict=True):
        others = {f"{name}-{kind}" for kind in own} | {"bert-cased", "bag-of-words"}
        others |= {f"distil-cased-{kind}" for kind in kinds - own}
        assert set(report.comparisons.query("model == @name")["against"]) == others
    for table in (report.kept, report.points.set_index("model"), report.fills.T):
        assert set(ours) <= set(table.index)
    assert set(ours) <= set(report.verdicts["model"])
    against = report.comparisons.query("model == 'distil-multi' and role == 'student'")["against"]
    assert set(ours) <= set(against)
    text = (config.folder / "summary.txt").read_text(encoding="utf-8")
    assert all(re.search(rf"^ *{name} ", text, re.MULTILINE) for name in ours)
    assert (config.folder / "figures" / "contact-sheet.png").exists()

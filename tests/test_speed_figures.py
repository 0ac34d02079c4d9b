"""Speed measurements of a tiny model, and figures with labels and captions."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from transformers import AutoModel

from rolib import figures
from rolib.config import SpeedConfig
from rolib.distillation.models import init_student, save_model
from rolib.evaluation import speed


@pytest.fixture(autouse=True)
def closed_figures():
    with plt.rc_context():
        yield
    plt.close("all")


# --- speed ----------------------------------------------------------------------------------------


class Recorder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, input_ids, attention_mask):
        self.calls.append(
            (tuple(input_ids.shape), attention_mask.tolist(), torch.is_grad_enabled())
        )


def test_time_forward_is_one_pass_without_gradients(monkeypatch):
    ticks = iter([10.0, 12.5])
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(ticks))
    model = Recorder()
    assert speed.time_forward(model, torch.ones(2, 3, dtype=torch.long)) == 2.5
    assert model.calls == [((2, 3), [[1, 1, 1], [1, 1, 1]], False)]


def config():
    shape = {"sequence_length": 16, "batch_sizes": [1, 4], "warmup_runs": 1, "timed_runs": 5}
    return SpeedConfig(profile="toy", seed=1, data="sample", **shape)


def test_measure_takes_turns_and_leaves_the_warm_up_out(
    tmp_path, toy_bert, toy_tokenizer, monkeypatch
):
    teacher = toy_bert(layers=2)
    folders = {"teacher": tmp_path / "teacher", "student": tmp_path / "student"}
    save_model(teacher, toy_tokenizer, folders["teacher"], "")
    save_model(init_student(teacher, 1), toy_tokenizer, folders["student"], "")
    costs = {
        "bert": iter([9, 0.001, 0.002, 0.003, 0.004, 0.010] + [9] + [0.006] * 5),
        "distilbert": iter([9] + [0.001] * 11),
    }
    turns = []

    def fake(model, pieces):
        turns.append(model.config.model_type)
        return next(costs[turns[-1]])

    monkeypatch.setattr(speed, "time_forward", fake)
    rows = speed.measure(folders, config())
    assert turns == ["bert", "distilbert"] * 12  # 2 batch sizes, 1 + 5 runs
    layer = 4 * (32 * 32 + 32) + 2 * 32 * 64 + 64 + 32 + 4 * 32
    by_hand = {
        "teacher": (200 + 32 + 2 + 2) * 32 + 2 * layer + 32 * 32 + 32,
        "student": (200 + 32 + 2) * 32 + layer,
    }
    for row in rows:
        assert row["parameters"] == by_hand[row["model"]]
        assert row["parameters"] == sum(
            p.numel() for p in AutoModel.from_pretrained(folders[row["model"]]).parameters()
        )
        assert (
            row["megabytes"] == (folders[row["model"]] / "model.safetensors").stat().st_size / 1e6
        )
    assert [(row["model"], row["batch_size"]) for row in rows] == [
        ("teacher", 1),
        ("student", 1),
        ("teacher", 4),
        ("student", 4),
    ]
    assert (
        rows[0]["latency_q1_ms"],
        rows[0]["latency_ms"],
        rows[0]["latency_q3_ms"],
    ) == pytest.approx((2, 3, 4))
    assert rows[0]["tokens_per_second"] == pytest.approx(16 / 0.003)
    assert rows[2]["tokens_per_second"] == pytest.approx(4 * 16 / 0.006)


def test_measure_really_runs(tmp_path, toy_bert, toy_tokenizer):
    save_model(toy_bert(layers=2), toy_tokenizer, tmp_path, "")
    for row in speed.measure({"toy": tmp_path}, config()):
        assert 0 < row["latency_q1_ms"] <= row["latency_ms"] <= row["latency_q3_ms"] < 5000
        assert (row["peak_memory_mb"] is None) != torch.cuda.is_available()


# --- figures --------------------------------------------------------------------------------------


def drawing(x="steps", y="loss (nats)"):
    figures.set_theme()
    figure, axes = plt.subplots()
    axes.plot([1, 2, 3], [3, 2, 1])
    axes.set(xlabel=x, ylabel=y)
    return figure


def test_save_figure(tmp_path):
    path = figures.save_figure(drawing(), tmp_path / "figures", "loss", "Pierderea la fiecare pas.")
    assert path == tmp_path / "figures" / "loss.png"
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "loss.png",
        "loss.svg",
        "loss.txt",
    ]
    assert path.read_bytes().startswith(b"\x89PNG")
    svg = path.with_suffix(".svg").read_text(encoding="utf-8")
    assert "<svg" in svg and svg.rstrip().endswith("</svg>")
    assert path.with_suffix(".txt").read_text(encoding="utf-8") == "Pierderea la fiecare pas.\n"
    assert 600 < plt.imread(path).shape[1] < 2000  # pixels: 6 inches at 200 dpi


def test_the_same_figure_gives_the_same_files(tmp_path):
    first, second = (
        figures.save_figure(drawing(), tmp_path / name, "loss", "Loss.") for name in "ab"
    )
    for ending in (".png", ".svg"):
        assert first.with_suffix(ending).read_bytes() == second.with_suffix(ending).read_bytes()


@pytest.mark.parametrize(("x", "y"), [("", "loss (nats)"), ("steps", ""), ("", "")])
def test_a_figure_without_labels_is_refused(tmp_path, x, y):
    with pytest.raises(
        ValueError, match="figure loss: an axis has no label; name what it shows and its unit"
    ):
        figures.save_figure(drawing(x, y), tmp_path / "figures", "loss", "Loss.")
    assert not (tmp_path / "figures").exists()


def test_every_panel_needs_its_labels_and_a_colour_bar_none(tmp_path):
    figure, (left, right) = plt.subplots(1, 2)
    left.set(xlabel="a", ylabel="b")
    with pytest.raises(ValueError, match="no label"):
        figures.save_figure(figure, tmp_path, "panels", "")
    right.set(xlabel="c", ylabel="d")
    figure.colorbar(right.imshow([[0, 1], [2, 3]]), ax=right)
    assert figures.save_figure(figure, tmp_path, "panels", "").exists()


def test_roles_have_colours_of_their_own():
    assert len(set(figures.ROLES.values())) == len(figures.ROLES) >= 4


def test_intervals_stand_side_by_side():
    axes = plt.subplots()[1]
    row = {"role": "student", "value": 0.5, "low": 0.4, "high": 0.7}
    table = pd.DataFrame(
        [row | {"model": model, "task": task} for model in "ab" for task in ("x", "y")]
    )
    figures.plot_intervals(axes, table, "task", ["y", "x"])
    points = [line.get_xydata() for line in axes.get_lines() if len(line.get_xydata()) == 2]
    assert sorted(x for line in points for x, _ in line) == pytest.approx([-0.2, 0.2, 0.8, 1.2])
    [bar] = axes.collections[0].get_segments()[:1]
    assert bar[:, 1] == pytest.approx([0.4, 0.7]) and [
        label.get_text() for label in axes.get_xticklabels()
    ] == ["y", "x"]

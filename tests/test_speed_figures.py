"""Speed measurements of a tiny model; figures that say what they show."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from transformers import AutoModel

from rolib import figures, speed
from rolib.config import SpeedConfig
from rolib.models import init_student, save_model


@pytest.fixture(autouse=True)
def closed_figures():
    with plt.rc_context():
        yield
    plt.close("all")


# --- speed ----------------------------------------------------------------------------------------


class Counter(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, input_ids, attention_mask):
        self.calls.append((tuple(input_ids.shape), attention_mask.tolist(), torch.is_grad_enabled()))


def test_time_forward_counts_its_runs():
    model = Counter()
    seconds = speed.time_forward(model, torch.ones(2, 3, dtype=torch.long), warmup_runs=4, timed_runs=6)
    assert isinstance(seconds, np.ndarray) and seconds.shape == (6,) and (seconds > 0).all()
    assert model.calls == [((2, 3), [[1, 1, 1], [1, 1, 1]], False)] * 10


def test_time_forward_leaves_the_warm_up_out(monkeypatch):
    now, costs = [0.0], iter([50, 40, 1, 2])

    class Slow(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            now[0] += next(costs)

    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])
    assert speed.time_forward(Slow(), torch.ones(1, 1), warmup_runs=2, timed_runs=2).tolist() == [1, 2]


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_measure(kind, tmp_path, toy_bert, toy_tokenizer, monkeypatch):
    model = toy_bert(layers=2)
    if kind == "distilbert":
        model = init_student(model, 1)
    save_model(model, toy_tokenizer, tmp_path, "")
    times = {1: [0.001, 0.002, 0.003, 0.004, 0.010], 4: [0.006] * 5}
    monkeypatch.setattr(speed, "time_forward", lambda model, ids, warmup, timed: np.array(times[len(ids)]))
    rows = speed.measure(tmp_path, config())
    layer = 4 * (32 * 32 + 32) + 2 * 32 * 64 + 64 + 32 + 4 * 32
    by_hand = {
        "bert": (200 + 32 + 2 + 2) * 32 + 2 * layer + 32 * 32 + 32,  # embeddings, layers, pooler
        "distilbert": (200 + 32 + 2) * 32 + layer,
    }[kind]
    assert [row["parameters"] for row in rows] == [by_hand] * 2
    assert by_hand == sum(p.numel() for p in AutoModel.from_pretrained(tmp_path).parameters())
    size = (tmp_path / "model.safetensors").stat().st_size / 1e6
    assert [row["megabytes"] for row in rows] == [size] * 2
    assert [(row["batch_size"], row["sequence_length"]) for row in rows] == [(1, 16), (4, 16)]
    assert (rows[0]["latency_q1_ms"], rows[0]["latency_ms"], rows[0]["latency_q3_ms"]) == pytest.approx((2, 3, 4))
    assert rows[0]["tokens_per_second"] == pytest.approx(16 / 0.003)
    assert rows[1]["tokens_per_second"] == pytest.approx(4 * 16 / 0.006)


def config():
    shape = {"sequence_length": 16, "batch_sizes": [1, 4], "warmup_runs": 1, "timed_runs": 5}
    return SpeedConfig(profile="toy", seed=1, data="sample", **shape)


def test_measure_really_runs(tmp_path, toy_bert, toy_tokenizer):
    save_model(toy_bert(layers=2), toy_tokenizer, tmp_path, "")
    for row in speed.measure(tmp_path, config()):
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
    assert sorted(file.name for file in path.parent.iterdir()) == ["loss.png", "loss.svg", "loss.txt"]
    assert path.read_bytes().startswith(b"\x89PNG")
    svg = path.with_suffix(".svg").read_text(encoding="utf-8")
    assert "<svg" in svg and svg.rstrip().endswith("</svg>")
    assert path.with_suffix(".txt").read_text(encoding="utf-8") == "Pierderea la fiecare pas.\n"
    assert 600 < plt.imread(path).shape[1] < 2000  # pixels: 6 inches at 200 dpi


def test_the_same_figure_gives_the_same_files(tmp_path):
    first, second = (figures.save_figure(drawing(), tmp_path / name, "loss", "Loss.") for name in "ab")
    for ending in (".png", ".svg"):
        assert first.with_suffix(ending).read_bytes() == second.with_suffix(ending).read_bytes()


@pytest.mark.parametrize(("x", "y"), [("", "loss (nats)"), ("steps", ""), ("", "")])
def test_a_figure_without_labels_is_refused(tmp_path, x, y):
    with pytest.raises(ValueError, match="figure loss: an axis has no label; name what it shows and its unit"):
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

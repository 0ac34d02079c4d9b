"""Speed measurements of a tiny model, and figures with labels and captions."""

import math
import re
import subprocess
import sys

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from cells import functions_of
from matplotlib.colors import to_hex
from matplotlib.text import Text
from transformers.models.bert.modeling_bert import BertPooler

from rolib import figures
from rolib.config import SpeedConfig
from rolib.distillation.models import init_student, save_model
from rolib.evaluation import speed


@pytest.fixture(autouse=True)
def closed_figures():
    with plt.rc_context():
        figures.set_theme()
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
    common = {"profile": "toy", "seed": 1, "data": "sample", "precision": "float32"}
    return SpeedConfig(**common, **shape)


@pytest.mark.parametrize("pooled", [False, True])
def test_measure_takes_turns_and_leaves_the_warm_up_out(
    pooled, tmp_path, toy_bert, toy_tokenizer, monkeypatch
):
    """A pooler that no file holds would be random: it does not count."""
    teacher = toy_bert(layers=2)
    if pooled:
        teacher.bert.pooler = BertPooler(teacher.config)
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
        "teacher": (200 + 32 + 2 + 2) * 32 + 2 * layer + pooled * (32 * 32 + 32),
        "student": (200 + 32 + 2) * 32 + layer,
    }
    for row in rows:
        assert row["parameters"] == by_hand[row["model"]]
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


@pytest.mark.parametrize("name", ["speed", "finetune"])
def test_no_load_report_is_printed(name, tmp_path, toy_bert, toy_tokenizer):
    """The MLM head is not read, and transformers would report that and draw a progress bar."""
    save_model(toy_bert(layers=2), toy_tokenizer, tmp_path, "")
    load = f"import transformers; transformers.AutoModel.from_pretrained({str(tmp_path)!r})"
    command = [sys.executable, "-c", f"from rolib.evaluation import {name}; {load}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


# --- figures --------------------------------------------------------------------------------------


def drawing(x="steps", y="loss (nats)"):
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
    assert plt.imread(path).shape[1] == 300 * figures.COLUMN  # pixels: as wide as it is printed


def test_the_same_figure_gives_the_same_files(tmp_path):
    first, second = (
        figures.save_figure(drawing(), tmp_path / name, "loss", "Loss.") for name in "ab"
    )
    for ending in (".png", ".svg"):
        assert first.with_suffix(ending).read_bytes() == second.with_suffix(ending).read_bytes()


@pytest.mark.parametrize(("x", "y"), [("", "loss (nats)"), ("steps", ""), ("", "")])
def test_a_figure_without_labels_is_refused(tmp_path, x, y):
    with pytest.raises(
        ValueError, match="figure loss: an axis has no label: give it a name and a unit"
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


def test_roles_have_colours_and_markers_of_their_own():
    assert len(set(figures.ROLES.values())) == len(figures.ROLES) >= 4
    assert len(set(figures.MARKERS.values())) == len(figures.ROLES)


def test_figures_are_drawn_in_the_size_in_which_they_are_printed():
    assert plt.rcParams["figure.figsize"][0] == figures.COLUMN
    sizes = [
        value for key, value in plt.rcParams.items() if key.endswith(("font.size", "fontsize"))
    ]
    assert all(7 <= size <= 8.5 for size in sizes if isinstance(size, float))


ANALYSIS = functions_of("04-analyse-loyalty")  # with its plots
REPORT = functions_of("06-report-results")


def rows(models, tasks, **more):
    """A table for the plots: 0.5 (0.4 to 0.7) for every model (name: role) on every task."""
    interval = {"value": 0.5, "low": 0.4, "high": 0.7}
    return pd.DataFrame(
        [
            {"model": model, "role": role, "task": task} | interval | more
            for model, role in models.items()
            for task in tasks
        ]
    )


def ticks(labels):
    return [label.get_text() for label in labels]


def saved(figure, tmp_path):
    """A figure that passes `save_figure` has all its labels."""
    return figures.save_figure(figure, tmp_path, "figure", "Caption.").exists()


def ranges(axes, upright=False):
    """The lines of a plot in order: the level ones (intervals) or the upright ones (marks)."""
    found = [line for one in axes.collections for line in one.get_segments() if len(line)]
    found = [line for line in found if (line[0, 0] == line[1, 0]) == upright]
    return sorted(found, key=lambda line: (line[:, 1].mean(), line[0, 0]))


def points(axes):
    """The places of all markers of a plot, from the top line down."""
    found = [place for line in axes.get_lines() for place in line.get_xydata().tolist()]
    return sorted(map(tuple, found), key=lambda place: place[1])


def test_intervals_have_a_panel_a_measure_and_a_line_a_model(tmp_path):
    models = {"t": "teacher", "s": "student", "c": "mlm control", "u": "teacher"}
    table = rows(models, ["upos", "ner", "sar", "di", "sts"])
    table.loc[(table["model"] == "s") & (table["task"] == "ner"), "value"] = 0.6
    figure = figures.plot_intervals(table, ["sts", "ner", "di", "upos", "sar"], "percent")
    assert [axes.get_title() for axes in figure.axes] == ["STS", "NER", "DI", "UPOS", "SAR"]
    figure.canvas.draw()
    assert ticks(figure.axes[0].get_yticklabels()) == list(models)
    bottom, top = figure.axes[0].get_ylim()
    assert bottom > top  # the first model on top
    ner = figure.axes[1]
    assert points(ner) == [(0.5, 0), (0.6, 1), (0.5, 2), (0.5, 3)]
    assert [line[:, 0].tolist() for line in ranges(ner)] == [[0.4, 0.7]] * 4
    assert [line[0, 1] for line in ranges(ner)] == [0, 1, 2, 3] and not ranges(ner, upright=True)
    looks = {(line.get_color(), line.get_marker()) for line in ner.get_lines()}
    roles = set(models.values())
    assert looks == {(figures.ROLES[role], figures.MARKERS[role]) for role in roles}
    colours = {to_hex(colour) for one in ner.collections for colour in one.get_colors()}
    assert {to_hex(figures.ROLES[role]) for role in roles} < colours
    # a panel without one below it names its unit, and only the left column names the models
    shown = [axes.xaxis.label.get_visible() for axes in figure.axes]
    assert shown == [False, False, True, True, True]
    named = [axes.yaxis.get_tick_params()["labelleft"] for axes in figure.axes]
    assert named == [True, False, False, True, False]
    assert figure.get_figwidth() == figures.PAGE
    assert saved(figure, tmp_path)


def test_one_panel_is_as_wide_as_a_column():
    table = rows({"a": "student"}, ["ner", "di"])
    assert figures.plot_intervals(table, ["di"], "percent").get_figwidth() == figures.COLUMN


def test_chance_and_floor_stand_in_the_lines_of_their_models():
    table = rows({"a": "student", "b": "mlm control"}, ["ner", "di"], chance=0.1, floor=0.9)
    table.loc[table["model"] == "b", ["chance", "floor"]] = [0.2, math.nan]  # one seed, no floor
    ner, di = figures.plot_intervals(table, ["ner", "di"], "share").axes
    for axes in (ner, di):
        places = [(line[0, 0], line[:, 1].mean()) for line in ranges(axes, upright=True)]
        assert [place for place in places if not math.isnan(place[0])] == [
            *[(0.1, 0), (0.9, 0), (0.2, 1)]
        ]
    for model, names in {"a": {"chance": 0.1, "floor": 0.9}, "b": {"chance": 0.2}}.items():
        figure = plt.figure()
        ANALYSIS.name_marks(figure.subplots(), table[table["model"] == model].iloc[0])
        found = {text.get_text(): text.get_position()[0] for text in figure.axes[0].texts}
        assert found == names


def test_a_model_without_a_value_keeps_its_line_free():
    table = rows({"a": "student", "b": "student"}, ["ner", "di"])
    ner, di = figures.plot_intervals(table.drop(index=2), ["ner", "di"], "percent").axes
    assert points(ner) == [(0.5, 0)] and points(di) == [(0.5, 0), (0.5, 1)]


def test_a_gap_stands_beside_the_line_at_zero(tmp_path):
    gaps = rows({"s": "student"}, ["mean", "ner"], teacher="t", floor=0.9, chance=0.1)
    gaps[["floor_gap", "gap_low", "gap_high"]] = [-0.02, -0.03, 0.01]
    figure = ANALYSIS.plot_gaps(gaps)
    assert [axes.get_title() for axes in figure.axes] == ["NER", "MEAN"]
    for axes in figure.axes:
        dot, zero = axes.get_lines()
        assert (dot.get_xdata().tolist(), zero.get_xdata()) == ([-0.02], [0, 0])
        [interval] = ranges(axes)
        assert interval[:, 0].tolist() == [-0.03, 0.01] and not ranges(axes, upright=True)
    assert ticks(figure.axes[0].get_yticklabels()) == ["s to t"] and saved(figure, tmp_path)


def test_students_have_tints_of_their_colour_in_the_order_of_the_study():
    table = pd.DataFrame(
        [("t", "teacher"), ("a", "student"), ("b", "student"), ("c", "student"), ("a", "student")],
        columns=["model", "role"],
    )
    found = ANALYSIS.tints(table)
    for model, role in {"t": "teacher", "b": "student"}.items():  # alone, and in the middle
        assert found[model] == pytest.approx(figures.ROLES[role], abs=0.01)
    light = [sum(found[model]) for model in "abc"]
    assert light == sorted(light) and len(set(light)) == 3


def test_a_caption_names_the_colours_of_the_roles_that_are_shown():
    assert figures.key({"student", "teacher"}) == "Colours: teacher blue, student orange."
    assert "grey" in figures.key({"random control"})


@pytest.mark.parametrize("values", [[50.0] * 20, [70.0] * 10 + [50.0] * 3, [51, 50, 50, 90]])
def test_names_of_points_neither_overlap_nor_leave_the_axes(values):
    figure, axes = plt.subplots(figsize=(figures.PAGE, 4))
    axes.plot([1] * len(values), values, "o")
    axes.set(xlim=(0, 2), ylim=axes.get_ylim())
    names = [f"model-{number}" for number in range(len(values))]
    REPORT.name_points(axes, pd.DataFrame({"name": names, "x": 1.0, "y": values}), 1.2)
    figure.canvas.draw()
    boxes = {text.get_text(): Text.get_window_extent(text) for text in axes.texts}  # no lines
    assert sorted(boxes) == sorted(names)
    ordered = sorted(boxes.values(), key=lambda box: box.y0)
    assert all(one.y1 <= other.y0 for one, other in zip(ordered, ordered[1:], strict=False))
    inside = axes.get_window_extent()
    assert inside.y0 <= ordered[0].y0 and ordered[-1].y1 <= inside.y1
    heights = sorted((value, boxes[name].y0) for name, value in zip(names, values, strict=True))
    assert [height for _, height in heights] == sorted(height for _, height in heights)
    assert {text.get_text(): text.xy for text in axes.texts} == {
        name: (1.0, value) for name, value in zip(names, values, strict=True)
    }


def test_reliability_pools_seeds_and_leaves_small_bins_out(tmp_path):
    bins = pd.DataFrame(
        [(1, 0.5, 0.6, 0.5, 10), (2, 0.5, 0.5, 1.0, 30), (1, 0.9, 0.95, 1, 3), (2, 0.9, 0, 0, 0)],
        columns=["seed", "low", "confidence", "accuracy", "count"],
    ).assign(model="a", role="teacher", task="upos")
    figure = ANALYSIS.plot_reliability(ANALYSIS.pool_seeds(bins, least=4))
    line, diagonal = figure.axes[0].get_lines()
    assert line.get_xydata().tolist() == [pytest.approx([0.525, 0.875])]
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]
    both = ANALYSIS.plot_reliability(ANALYSIS.pool_seeds(bins, least=3))
    line = both.axes[0].get_lines()[0]
    assert line.get_xydata()[1] == pytest.approx([0.95, 1])
    assert saved(figure, tmp_path)


def test_a_model_has_one_marker_in_every_panel_and_its_place_in_the_legend():
    columns = ["model", "role", "task", "low", "confidence", "accuracy", "count"]
    bins = pd.DataFrame(
        [("a", "teacher", "upos", 0.5, 0.6, 0.5, 10)]
        + [(name, "student", "ner", 0.5, 0.6, 0.5, 10) for name in "bcdefghi"]
        + [("a", "teacher", "ner", 0.5, 0.6, 0.5, 10)],
        columns=columns,
    )
    figure = ANALYSIS.plot_reliability(ANALYSIS.pool_seeds(bins, least=1))
    upos, ner = ([line.get_marker() for line in axes.get_lines()[:-1]] for axes in figure.axes)
    assert len(upos) == 1 and len(ner) == 9 and upos[0] in ner
    assert ticks(figure.axes[0].get_legend().get_texts()) == list("abcdefghi")
    assert figure.axes[1].get_legend() is None


def test_heat_maps_share_one_scale(tmp_path):
    table = pd.DataFrame([[0.0, 5.0]], pd.Index(["a"], name="model"), ["upos", "ner"])
    names = ["lower", "upper", "cedilla", "original"]
    tables = {name: table.rename_axis(columns="measure") for name in names}
    figure = figures.plot_heat_maps(tables, 1, "points", vmin=-9, vmax=9, annot=True)
    *panels, bar = figure.axes
    assert [axes.get_title(loc="left") for axes in panels] == names
    assert {axes.collections[0].get_clim() for axes in panels} == {(-9, 9)}
    assert bar.get_ylabel() == "points"
    assert [axes.get_xlabel() for axes in panels] == ["measure"] * 4
    assert [axes.xaxis.label.get_visible() for axes in panels] == [False, False, True, True]
    assert [axes.yaxis.label.get_visible() for axes in panels] == [True, False, True, False]
    assert saved(figure, tmp_path)


def test_a_panel_above_an_empty_place_has_its_ticks_and_label():
    figure, panels = figures.panels(5, 3, 1, sharex=True, sharey=True)
    assert len(figure.axes) == len(panels) == 5
    shown = [axes.xaxis.get_tick_params()["labelbottom"] for axes in panels]
    assert shown == [axes.xaxis.label.get_visible() for axes in panels]
    assert shown == [False, False, True, True, True]


def test_contact_sheet_shows_every_picture_but_itself(tmp_path):
    for name in "abcde":
        figures.save_figure(drawing(), tmp_path, name, "Loss.")
    before = plt.get_fignums()
    for _ in range(2):  # the second time there is a sheet, which does not show itself
        assert REPORT.contact_sheet(tmp_path) == tmp_path / "contact-sheet.png"
        assert plt.imread(tmp_path / "contact-sheet.png").shape[:2] == (2 * 240, 1200)
    assert not list(tmp_path.glob(".*")) and plt.get_fignums() == before


def test_losses_are_drawn_as_recorded():
    records = [
        {"step": 5, "ce": 2.0, "cos_other": 0.5, "loss": 3.0, "tokens": 100},
        {"step": 10, "ce": 1.0, "cos_other": 0.25, "held_out_ce": 1.5, "loss": 2.0, "tokens": 100},
    ]
    ce, cos = figures.plot_losses(records).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in ce.get_lines()}
    assert lines == {"training": [[5, 2], [10, 1]], "held out": [[10, 1.5]]}
    assert cos.get_lines()[0].get_xydata().tolist() == [[5, 0.5], [10, 0.25]]
    assert cos.get_title() == "other" and ce.get_ylabel() == figures.TERMS["ce"]


def test_a_live_plot_is_one_picture_that_is_replaced(monkeypatch):
    shown, clock = [], iter([0, 0, 1, 5, 5])
    monkeypatch.setattr(figures, "display", lambda figure, **how: shown.append(how))
    monkeypatch.setattr(figures.time, "monotonic", lambda: next(clock))
    draw = figures.LivePlot()
    for step in (1, 2, 3):  # the second comes one second after the first: no time to draw
        draw({"step": step, "mlm": 1.0})
    assert [how["update"] for how in shown] == [False, True] and len(draw.records) == 3
    assert len({how["display_id"] for how in shown}) == 1 and not plt.get_fignums()


def test_names_and_their_headings_stand_to_the_left_and_numbers_do_not():
    table = pd.DataFrame({"value": [1.0], "model": ["a"], "note": ["b"]})
    neat = functions_of("06-report-results", NAMES=["model"], LONG=["note"]).neat
    page = neat(table).to_html(table_uuid="t")
    left = re.findall(r"#T_t (\w+\.col\d)(?=[^{]*\{\s*text-align: left)", page)
    assert sorted(left) == ["td.col1", "td.col2", "th.col1", "th.col2"]

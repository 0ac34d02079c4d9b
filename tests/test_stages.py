"""The stages of a study: the gate of a teacher, students and their controls."""

import copy
import math
from collections import Counter

import pytest
import torch
import yaml
from datasets import Dataset, DatasetDict
from transformers import AutoModelForMaskedLM, BertModel
from transformers.models.bert.modeling_bert import BertPooler

from rolib import stages
from rolib.config import ConfigError
from rolib.distillation import gate, models
from rolib.distillation.losses import IGNORE
from rolib.distillation.masking import MaskingCollator
from rolib.runs import read_json, read_metrics


def test_frequency_baseline_against_a_plain_loop(toy_blocks, toy_tokenizer):
    collator = MaskingCollator([toy_tokenizer], 0.3, seed=1)
    counts = Counter(
        piece for block in toy_blocks["train"] for piece in block["input_ids"][0][1:-1]
    )
    total = sum(counts.values()) + len(toy_tokenizer)
    labels = collator(list(toy_blocks["held_out"]))[0]["labels"]
    losses = [-math.log((counts[label] + 1) / total) for label in labels[labels != IGNORE].tolist()]
    assert gate.frequency_baseline(toy_blocks, collator) == pytest.approx(
        sum(losses) / len(losses), rel=1e-5
    )


@pytest.mark.parametrize(("held_out", "left"), [(5.9, True), (6.1, False), (7.5, False)])
def test_the_plateau_is_left_a_nat_below_the_baseline(
    held_out, left, teacher_config, toy_bert, toy_tokenizer, monkeypatch
):
    monkeypatch.setattr(gate, "held_out_losses", lambda *_: {"held_out_mlm": held_out})
    monkeypatch.setattr(gate, "frequency_baseline", lambda *_: 7.0)
    found = gate.leave_plateau(teacher_config(), toy_bert(), toy_tokenizer, {"held_out": None})
    assert found == {"held_out_mlm": held_out, "frequency_baseline": 7.0, "left_plateau": left}


def save_teacher(config, model, tokenizer, name="toy"):
    folder = config.folder / "teachers" / name
    models.save_model(model, tokenizer, folder, "")
    (folder / "manifest.json").write_text("{}", encoding="utf-8")


def test_a_padded_teacher_gives_a_student_without_padding(
    student_config, toy_bert, toy_tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    save_teacher(student_config(), toy_bert(vocab_size=208), toy_tokenizer)
    [teacher], [tokenizer] = stages.load_teachers(student_config())
    assert teacher.model.model.config.vocab_size == len(tokenizer) == 200


def test_blocks_longer_than_a_teacher_reads_stop_before_training(
    student_config, toy_bert, toy_tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    save_teacher(student_config(), toy_bert(positions=32), toy_tokenizer)
    stages.load_teachers(student_config(block_length=32))
    with pytest.raises(
        ConfigError, match=r"block_length .*33 is more than the 32 positions of toy"
    ):
        stages.load_teachers(student_config(block_length=33))


def test_the_frequency_baseline_needs_no_matrix(toy_blocks, toy_tokenizer, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "expand", lambda *_: pytest.fail("a (rows, V) matrix"))
    collator = MaskingCollator([toy_tokenizer], 0.3, seed=1)
    assert gate.frequency_baseline(toy_blocks, collator) > 0


def test_the_commit_of_a_hub_teacher_stands_in_its_manifest(
    teacher_config, toy_bert, toy_tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    model, commit = toy_bert(), "0123456789abcdef" + 24 * "0"
    model.name_or_path = f"/cache/models--some--model/snapshots/{commit}"
    monkeypatch.setattr(models, "load_teacher", lambda config: (model, toy_tokenizer))
    config = teacher_config(source="some/model", revision="main")
    folder = stages.prepare_teacher(config)
    manifest = read_json(folder / "manifest.json", "")
    assert manifest["source_commit"] == commit
    assert manifest["inputs"]["revision"] == "main" and len(manifest["inputs"]["corpus"]) == 64
    assert stages.prepare_teacher(config) == folder  # finished
    assert (folder / "gate.json").exists() and not (folder / "metrics.jsonl").exists()


def test_a_teacher_on_the_plateau_stops_the_study_and_stays(teacher_config, tmp_path, monkeypatch):
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    config = teacher_config(steps=1, block_length=24, require_gate=True)
    with pytest.raises(ConfigError, match="knows little more than frequencies .*more steps, "):
        stages.prepare_teacher(config)
    weights = config.folder / "teachers" / "toy" / "model.safetensors"
    made = weights.stat().st_mtime_ns
    with pytest.raises(ConfigError, match="require_gate: false"):  # finished, but not let through
        stages.prepare_teacher(config)
    assert stages.prepare_teacher(config.model_copy(update={"require_gate": False}))
    assert weights.stat().st_mtime_ns == made  # not trained again


def test_a_wrong_source_shows_before_the_corpus_is_read(teacher_config, tmp_path, monkeypatch):
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    monkeypatch.setattr(stages.corpus, "load_corpus", lambda *_: pytest.fail("read the corpus"))
    with pytest.raises(ConfigError, match="some/model"):
        stages.prepare_teacher(teacher_config(source="some/model", revision="main"))


def weights(model):
    return {name: value for name, value in model.state_dict().items() if "position_ids" not in name}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_controls_start_from_what_their_name_says(student_config, toy_bert):
    teacher = toy_bert()
    inherited = weights(models.init_student(teacher, student_config().num_layers))
    for objective in ("distill", "init-only", "truncated"):
        start = stages.start_model(student_config(objective=objective), teacher)
        assert same(weights(start), inherited)
    chosen = student_config(num_layers=1, layers=[1])
    last = stages.start_model(chosen, teacher).distilbert.transformer.layer[0].attention.q_lin
    assert torch.equal(last.weight, teacher.bert.encoder.layer[1].attention.self.query.weight)
    assert same(
        weights(stages.start_model(student_config(objective="longer"), teacher)), weights(teacher)
    )
    torch.manual_seed(1)
    random = weights(stages.start_model(student_config(objective="mlm"), teacher))
    shapes = {key: value.shape for key, value in random.items()}
    assert shapes == {key: value.shape for key, value in inherited.items()}
    matrices = [key for key, value in random.items() if value.ndim == 2]
    assert matrices and not any(torch.equal(random[key], inherited[key]) for key in matrices)


@pytest.mark.parametrize("objective", ["init-only", "truncated", "longer"])
def test_a_control_learns_nothing_from_a_teacher(
    objective, student_config, toy_bert, toy_tokenizer, toy_blocks, tmp_path, monkeypatch
):
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    config = student_config(objective=objective, steps=2, log_every=1, checkpoint_every=1)
    teacher = toy_bert()
    pooled = copy.deepcopy(teacher)  # as a teacher from the hub
    pooled.bert.pooler = BertPooler(teacher.config)
    save_teacher(config, pooled, toy_tokenizer)
    monkeypatch.setattr(stages, "data_root", lambda data: tmp_path)
    monkeypatch.setattr(stages.runs, "model_identity", lambda folder, command: "weights")
    monkeypatch.setattr(stages.corpus, "corpus_identity", lambda config, root: "corpus")
    monkeypatch.setattr(stages.corpus, "load_corpus", lambda config, root: None)
    monkeypatch.setattr(stages, "prepare_blocks", lambda *_: toy_blocks)
    folder = stages.distil_student(config)
    records = read_metrics(folder / "metrics.jsonl")
    known = {key for record in records for key in record}
    assert {"held_out_mlm"} == {key for key in known if key.startswith("held_out")}
    assert [record["step"] for record in records] == ([0] if objective == "truncated" else [1, 2])
    assert read_settings(folder)["freeze_positions"]
    trained = weights(AutoModelForMaskedLM.from_pretrained(folder))
    start = weights(stages.start_model(config, teacher))
    assert same(trained, start) == (objective == "truncated")
    if objective == "longer":  # the teacher's, since masked words do not train it
        saved = BertModel.from_pretrained(folder).pooler
        assert same(weights(saved), weights(pooled.bert.pooler))
    assert "(control)" in (folder / "README.md").read_text(encoding="utf-8")


def test_a_control_of_two_teachers_reads_what_its_student_reads(
    student_config, toy_bert, toy_tokenizer, lower_tokenizer, toy_documents, tmp_path, monkeypatch
):
    """The same blocks under the same masks: [MASK] where a student of one teacher reads words."""
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    monkeypatch.setattr(stages, "data_root", lambda data: tmp_path)
    monkeypatch.setattr(stages.runs, "model_identity", lambda folder, command: "weights")
    monkeypatch.setattr(stages.corpus, "corpus_identity", lambda config, root: "corpus")
    texts = {"train": toy_documents[:50], "held_out": toy_documents[50:]}
    texts = DatasetDict({name: Dataset.from_dict({"text": some}) for name, some in texts.items()})
    monkeypatch.setattr(stages.corpus, "load_corpus", lambda config, root: texts)
    read, call = {}, MaskingCollator.__call__

    def recording(self, blocks, epoch=0):
        batch = call(self, blocks, epoch)
        read.setdefault(name, []).append(batch[0]["input_ids"])
        return batch

    monkeypatch.setattr(MaskingCollator, "__call__", recording)
    config = student_config(teachers={"toy": 1.0, "lower": 1.0}, steps=3)
    save_teacher(config, toy_bert(), toy_tokenizer)
    save_teacher(config, toy_bert(vocab_size=len(lower_tokenizer)), lower_tokenizer, "lower")
    control = {"objective": "init-only"}
    students = {"both": {}, "control": control, "of-one": control | {"teachers": {"toy": 1.0}}}
    for name, changes in students.items():
        stages.distil_student(config.model_copy(update={"student": name} | changes))
    assert len(read["both"]) == len(read["control"]) > 3
    assert all(map(torch.equal, read["both"], read["control"]))
    assert not all(map(torch.equal, read["both"], read["of-one"]))


def read_settings(folder):
    return yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("objective", "trained_again"), [("mlm", False), ("init-only", True)])
def test_layers_matter_only_to_what_inherits_them(
    objective, trained_again, teacher_config, student_config, tmp_path, monkeypatch
):
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    teacher = teacher_config(steps=1, block_length=24, require_gate=False)
    stages.prepare_teacher(teacher)
    shape = {"teachers": {teacher.teacher: 1.0}, "num_layers": 1, "steps": 1, "block_length": 24}
    config = student_config(objective=objective, **shape)
    manifest = stages.distil_student(config) / "manifest.json"
    # Frozen are positions that a teacher trained; those of `mlm` are no teacher's.
    assert read_settings(manifest.parent)["freeze_positions"] == (objective != "mlm")
    made = manifest.stat().st_mtime_ns
    stages.distil_student(config.model_copy(update={"layers": [1]}))
    assert (manifest.stat().st_mtime_ns != made) == trained_again


def test_a_process_of_a_group_leaves_the_gate_to_who_started_it(
    teacher_config, tmp_path, monkeypatch
):
    """Else each of them would end with an error, in place of the one line of the gate."""
    file, judged = tmp_path / "teacher.yaml", []
    settings = stages.to_dict(teacher_config(require_gate=True))
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    monkeypatch.setattr(stages.sys, "argv", ["stages", "prepare_teacher", "folder", str(file)])
    monkeypatch.setattr(
        stages, "prepare_teacher", lambda config, folder: judged.append(config.require_gate)
    )
    stages.main()
    assert judged == [False]

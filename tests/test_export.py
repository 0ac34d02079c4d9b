"""ONNX files: equal to PyTorch or refused, small, and usable by their README alone."""

import copy
import json
import os
import re
import subprocess
import sys

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from cells import functions_of
from datasets import DatasetDict
from transformers import AutoTokenizer, BertForSequenceClassification

from rolib import stages
from rolib.config import ROOT, Config, ConfigError, EvaluateConfig, ExportConfig
from rolib.data.corpus import normalise
from rolib.data.tasks import SAMPLE, load_task
from rolib.distillation.models import init_student, save_model
from rolib.evaluation import export, heads
from rolib.measures import TASKS
from rolib.profiles import load_profile

CONFIG = Config(profile="toy", seed=1, data="sample")
PROTOCOL = {"ner": "strict", "sapn": "title+content", "sts": "bi-encoder"}  # one of each kind
TINY = ROOT / "params" / "tiny"
NOTEBOOK = functions_of("10-export-student")


@pytest.fixture(scope="module")
def few():
    def load(name, root=SAMPLE):
        parts = load_task(name, SAMPLE).items()
        return DatasetDict({split: data.select(range(20)) for split, data in parts})

    return load


@pytest.fixture(scope="module")
def study(tmp_path_factory, toy_bert, _toy_tokenizer, few):
    """A profile with a student, fine-tuned on PROTOCOL; ROLIB_RUNS names its folder."""
    root = tmp_path_factory.mktemp("runs")
    tasks = list(PROTOCOL)
    recipe = {"profile": "toy", "seed": 1, "data": "sample", "model": "small", "seeds": [1]}
    recipe |= {"tasks": tasks, "protocols": PROTOCOL, "keep_models": 1}
    recipe |= {"max_train_examples": 16, "max_length": 32, "batch_size": 8}
    recipe |= {"pooling": {"sapn": ["cls"], "sts": ["mean"]}}
    recipe |= {"warmup_share": 0.1, "weight_decay": 0.01}
    recipe |= {"epochs": dict.fromkeys(tasks, [1]), "learning_rates": dict.fromkeys(tasks, [1e-3])}
    student = root / "toy" / "students" / "small"
    save_model(init_student(toy_bert(), 2), copy.deepcopy(_toy_tokenizer), student, "")
    (student / "manifest.json").write_text("{}", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROLIB_RUNS", str(root))
        patch.setattr(stages, "load_task", few)
        stages.evaluate_model(EvaluateConfig(**recipe))
        yield root / "toy"


@pytest.fixture(scope="module")
def encoder(study):
    """The export of the bare student."""
    return export.export_model(CONFIG, study / "students" / "small", "small")


@pytest.fixture(scope="module")
def pair_bert(study, toy_bert, _toy_tokenizer):
    """A fine-tuned BERT, which reads segments, and its export."""
    shape = toy_bert(layers=1).config
    shape.num_labels = 3
    torch.manual_seed(0)
    model = BertForSequenceClassification(shape).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    save_model(model, copy.deepcopy(_toy_tokenizer), study / "bert", "")
    return study / "bert", export.export_model(CONFIG, study / "bert", "bert-pair")


# --- equal to PyTorch -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROTOCOL)
def test_the_files_predict_as_the_fine_tuned_model_does(name, study, few):
    run = study / "evaluation" / "small" / name / "seed-1"
    folder = export.export_model(CONFIG, run / "model", f"small-{name}")
    assert folder == study / "onnx" / f"small-{name}"
    stored = pd.read_parquet(run / "predictions.parquet")
    for file, allowed in {"model.onnx": 1e-5, "model-int8.onnx": 0.1}.items():
        table = NOTEBOOK.predict(run, few(name)["test"], folder / file)
        units = ["example", "position", "gold"]
        pd.testing.assert_frame_equal(table[units], stored[units], check_dtype=False)
        column = "predicted" if name == "sts" else "probabilities"
        found, expected = (np.stack(side[column]) for side in (table, stored))
        np.testing.assert_allclose(found, expected, atol=allowed)
    assert (found != expected).any()  # int8: so it was not PyTorch that answered


@pytest.mark.parametrize("shape", [(1, 1), (1, 32), (5, 2), (3, 17)])
def test_any_number_of_texts_and_pieces_with_padding_and_segments(shape, pair_bert):
    source, folder = pair_bert
    inputs = {"input_ids": torch.randint(5, 200, shape)}
    lengths = torch.randint(1, shape[1] + 1, (shape[0], 1))
    inputs["attention_mask"] = (torch.arange(shape[1]) < lengths).long()
    inputs["token_type_ids"] = torch.randint(2, shape)
    model = export.OnnxModel(folder / "model.onnx")
    with torch.no_grad():
        expected = BertForSequenceClassification.from_pretrained(source).eval()(**inputs).logits
        without = model(**inputs | {"token_type_ids": torch.zeros(shape, dtype=torch.long)}).logits
    assert torch.allclose(model(**inputs).logits, expected, atol=1e-5)
    del inputs["token_type_ids"]
    assert torch.equal(model(**inputs).logits, without)  # a missing input is zero


def test_a_bare_bert_gives_its_states_alone(toy_bert, toy_tokenizer, study):
    save_model(toy_bert(layers=1), toy_tokenizer, study / "teachers" / "bare", "")
    folder = export.export_model(CONFIG, study / "teachers" / "bare", "bare")
    (output,) = onnx.load(folder / "model.onnx").graph.output  # no pooler of random weights
    assert [each.dim_param or each.dim_value for each in output.type.tensor_type.shape.dim] == [
        "texts",
        "pieces",
        32,
    ]


def test_int8_holds_every_matrix_and_the_embeddings_in_8_bits(encoder):
    matrices = []
    for tensor in onnx.load(encoder / "model-int8.onnx").graph.initializer:
        if len(tensor.dims) == 2 and min(tensor.dims) > 1:
            matrices.append(tuple(tensor.dims))
            assert tensor.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8), tensor.name
    assert {(200, 32), (32, 32), (32, 64), (64, 32)} <= set(matrices)


@pytest.mark.parametrize("layers", [0, 1])
def test_a_head_that_reads_the_mean_is_exported_so(layers, toy_bert, toy_tokenizer, study):
    bert, task, place = toy_bert(layers=1), TASKS["sapn"], study / f"mean-{layers}"
    save_model(init_student(bert, layers) if layers else bert, toy_tokenizer, place, "")
    model = heads.load_for_task(place, task, ["no", "yes"], False, "mean").eval()
    model.save_pretrained(place)
    folder = export.export_model(CONFIG, place, place.name)
    inputs = {"input_ids": torch.randint(5, 200, (3, 9))}
    inputs["attention_mask"] = (torch.arange(9) < torch.tensor([[9], [2], [5]])).long()
    with torch.no_grad():
        expected = model(**inputs).logits
    found = export.OnnxModel(folder / "model.onnx")(**inputs).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_an_exported_bi_encoder_gives_the_score_by_its_readme_alone(study, few):
    """The recipe of the README, in NumPy."""
    run = study / "evaluation" / "small" / "sts" / "seed-1"
    folder = export.export_model(CONFIG, run / "model", "small-sts")
    assert "whitening.npz" in (folder / "README.md").read_text(encoding="utf-8")
    white, model = np.load(folder / "whitening.npz"), export.OnnxModel(folder / "model.onnx")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    stored = pd.read_parquet(run / "predictions.parquet").set_index("example")["predicted"]

    def vector(text):
        inputs = tokenizer([normalise(text)], truncation=True, max_length=32, return_tensors="pt")
        return (model(**inputs).logits.numpy()[0].mean(axis=0) - white["mean"]) @ white["matrix"]

    for row in few("sts")["test"]:
        one, two = vector(row["text"]), vector(row["text_pair"])
        cosine = one @ two / np.linalg.norm(one) / np.linalg.norm(two)
        assert 5 * cosine == pytest.approx(stored[row["id"]], abs=1e-3)


# --- refused --------------------------------------------------------------------------------------


class Careless(torch.nn.Module):
    """A model that reads the padding as if it were text."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=0 * attention_mask + 1)[0]


def test_a_lost_attention_mask_is_refused_and_nothing_is_kept(study, monkeypatch):
    real = torch.onnx.export

    def careless(model, *arguments, **options):
        return real(Careless(model), *arguments, **options)

    monkeypatch.setattr(torch.onnx, "export", careless)
    fault = r"model\.onnx: differs from PyTorch by .*, more than 0\.0001: do not use it, install "
    with pytest.raises(RuntimeError, match=fault + "requirements.txt"):
        export.export_model(CONFIG, study / "students" / "small", "careless")
    assert not (study / "onnx" / "careless").exists()


def test_difference_by_hand():
    class Fixed(torch.nn.Module):
        def __init__(self, *values):
            super().__init__()
            self.logits = torch.tensor(values)

        def forward(self, **inputs):
            return self if inputs else None

        def __getitem__(self, index):
            return (self.logits,)[index]

    inputs = {"input_ids": torch.ones(1, 1)}
    assert export.difference(Fixed(1.0, -4.0), Fixed(1.5, -3.0), inputs) == 0.25
    assert export.difference(Fixed(1.0, -4.0), Fixed(1.0, np.nan), inputs) == np.inf


def test_missing_packages_are_one_clear_error():
    code = "import sys; sys.modules['onnxruntime'] = None; import rolib.evaluation.export"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    last = done.stderr.strip().splitlines()[-1]
    assert last == "ImportError: onnxruntime is missing: run pip install -e '.[onnx]'"


@pytest.mark.parametrize("key, value", [("models", ["small"]), ("tasks", ["upos"])])
def test_unknown_models_and_measures_are_refused(key, value, tmp_path):
    tiny = tmp_path / "tiny"
    for file in TINY.rglob("*.yaml"):
        text = file.read_text(encoding="utf-8")
        if file.name == "export.yaml":
            text = re.sub(rf"^{key}: .*$", f"{key}: {json.dumps(value)}", text, flags=re.M)
        if file.name == "evaluate.yaml":
            text = text.replace("tasks: [upos, ", "tasks: [")
        if file.name == "robustness.yaml":
            text = text.replace("[upos, ", "[")
        target = tiny / file.relative_to(TINY)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    for name in ("ablation", "budget", "task"):  # they have upos, which nobody learns here
        (tiny / f"{name}.yaml").unlink()
    with pytest.raises(ConfigError, match=rf"^{key} \(.*export\.yaml\): no '{value[0]}' in this"):
        load_profile("tiny", tmp_path)


# --- whole, once, and usable alone ----------------------------------------------------------------


def test_a_finished_export_is_not_made_again(study, encoder, monkeypatch):
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: pytest.fail("exported again"))
    speed = {"sequence_length": 8, "batch_sizes": [1], "warmup_runs": 1, "timed_runs": 3}
    more = ExportConfig(**CONFIG.model_dump(), **speed, models=["small"], tasks=["ner"])
    assert export.export_model(more, study / "students" / "small", "small") == encoder
    other = CONFIG.model_copy(update={"seed": 2})
    with pytest.raises(pytest.fail.Exception, match="exported again"):
        export.export_model(other, study / "students" / "small", "small")


def test_the_manifest_names_the_origin(study, encoder):
    manifest = json.loads((encoder / "manifest.json").read_text(encoding="utf-8"))
    assert set(manifest["inputs"]) == {"model", "onnxruntime"}
    found = manifest["differences"]
    assert 0 < found["model.onnx"] <= 1e-4 < found["model-int8.onnx"] <= 0.5


@pytest.mark.parametrize("name", ["encoder", "pair_bert"])
def test_the_example_of_the_readme_runs_without_torch(name, study, encoder, pair_bert):
    """As it stands, and with the fp32 file; both answer as PyTorch does."""
    source, folder = (study / "students" / "small", encoder) if name == "encoder" else pair_bert
    text = (folder / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(re.split(r"\n(?! )", example.strip())) == 5  # lines, but for broken ones
    after = "import json, sys\nassert not {'torch', 'transformers'} & set(sys.modules)\n"
    after += "print(json.dumps(outputs.tolist()))"
    tokenizer = AutoTokenizer.from_pretrained(source)
    inputs = tokenizer(["Ana are mere și pere.", "Plouă."], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = export.load(source)(**inputs)[0].numpy()
    for file, allowed in {"model-int8.onnx": 0.1, "model.onnx": 1e-5}.items():
        code = example.replace("model-int8.onnx", file) + after
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0, done.stderr
        found = np.array(json.loads(done.stdout))
        np.testing.assert_allclose(found, expected, atol=allowed * np.abs(expected).max())


def test_long_texts_are_cut_and_batches_padded_by_the_tokenizer_file(encoder):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
    long, short = tokenizer.encode_batch(["Ana are mere. " * 40, "Da."])
    assert len(long.ids) == len(short.ids) == 32  # the positions of the model
    assert 2 < sum(short.attention_mask) < 32


# --- speed ----------------------------------------------------------------------------------------


def test_measure_uses_one_thread_and_all(study, encoder, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    speed = {"sequence_length": 8, "batch_sizes": [1, 3], "warmup_runs": 1, "timed_runs": 3}
    config = ExportConfig(**CONFIG.model_dump(), **speed, models=["small"], tasks=["ner"])
    places = {"student": study / "students" / "small", "int8": encoder / "model-int8.onnx"}
    before, seen = torch.get_num_threads(), []
    real = export.OnnxModel.forward

    def recording(self, **inputs):
        options = self.session.get_session_options()
        seen.append((options.intra_op_num_threads, torch.get_num_threads()))
        return real(self, **inputs)

    monkeypatch.setattr(export.OnnxModel, "forward", recording)
    rows = NOTEBOOK.measure(config, places)
    assert torch.get_num_threads() == before
    keys = rows[["threads", "batch_size", "model"]].to_records(index=False).tolist()
    assert keys == [(t, b, m) for t in (1, 2) for b in (1, 3) for m in places]
    assert seen[::8] == [(1, 1), (2, 2)] and len(seen) == 16  # 2 batch sizes, 1 + 3 runs each
    sizes = [(places["student"] / "model.safetensors"), places["int8"]]
    assert rows["megabytes"].tolist() == [file.stat().st_size / 1e6 for file in sizes] * 4
    assert (rows["latency_ms"] > 0).all()

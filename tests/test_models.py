"""Tokenizers, teachers, students: shapes, equal functions, plain folders, and what is refused."""

import copy
import json
import math
import os
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import BertNormalizer
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForPreTraining,
    BertModel,
    BertTokenizer,
    DistilBertModel,
    PreTrainedTokenizerFast,
)

from rolib.config import ConfigError
from rolib.distillation import models

PROBE = "Știință și viață"


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture
def batch(toy_tokenizer, toy_documents):
    return dict(
        toy_tokenizer(
            toy_documents[:4] + ["Scurt."], padding=True, truncation=True, return_tensors="pt"
        )
    )


@pytest.fixture
def words(batch):
    return batch["attention_mask"].bool()


def logits(model, batch, **more):
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **more)


# --- parameter counts, without memory -------------------------------------------------------------


def test_parameter_counts_of_the_paper():
    """Avram et al. 2022, table 1: teachers of 124 M, students of 81 M (cased) and 72 M (the smaller
    vocabulary)."""
    with torch.device("meta"):
        teacher = BertModel(BertConfig(vocab_size=50_000))
        # embeddings, 12 layers, pooler
        layer = 4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768
        by_hand = (50_000 + 512 + 2 + 2) * 768 + 12 * layer + 768 * 768 + 768
        assert teacher.num_parameters() == count(teacher) == by_hand == 124_441_344
        for vocabulary, expected in ((50_000, 81_321_984), (37_788, 71_943_168)):
            shape = models.student_shape(BertConfig(vocab_size=vocabulary), 6)
            assert DistilBertModel(shape).num_parameters() == expected


def test_tied_weights_count_once(toy_bert):
    bert = toy_bert()
    assert bert.cls.predictions.decoder.weight is bert.bert.embeddings.word_embeddings.weight
    assert bert.num_parameters() == sum(
        {p.data_ptr(): p.numel() for p in bert.parameters()}.values()
    )


# --- students -------------------------------------------------------------------------------------


def test_distilberts_layers():
    assert models.alternate_layers(12, 6) == [0, 2, 4, 7, 9, 11]


@given(st.integers(1, 48).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_alternate_layers(pair):
    teacher, student = pair
    chosen = models.alternate_layers(teacher, student)
    assert len(chosen) == student
    assert all(low < high for low, high in zip(chosen, chosen[1:], strict=False))
    assert chosen[0] == 0 and (chosen[-1] == teacher - 1 or student == 1)
    gaps = {high - low for low, high in zip(chosen, chosen[1:], strict=False)}
    assert not gaps or max(gaps) - min(gaps) <= 1  # evenly spaced
    assert models.alternate_layers(teacher, teacher) == list(range(teacher))


@pytest.mark.parametrize("student", [0, 5, -1])
def test_impossible_depths_are_refused(student):
    with pytest.raises(ValueError, match=f"num_layers {student} must lie between 1 and 4"):
        models.alternate_layers(4, student)


def test_a_student_with_all_layers_computes_its_teachers_function(toy_bert, batch, words):
    teacher = toy_bert(layers=3)
    assert teacher.bert.embeddings.token_type_embeddings.weight[0].abs().min() > 0
    student = models.init_student(teacher, 3).eval()
    ours, theirs = (logits(model, batch, output_hidden_states=True) for model in (student, teacher))
    torch.testing.assert_close(ours.logits[words], theirs.logits[words], atol=1e-5, rtol=0)
    for mine, yours in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(mine[words], yours[words], atol=1e-5, rtol=0)


def test_a_smaller_student_starts_from_alternate_layers(toy_bert):
    teacher = toy_bert(layers=4)
    student = models.init_student(teacher, 2)
    for mine, yours in ((0, 0), (1, 3)):
        layer, source = (
            student.distilbert.transformer.layer[mine],
            teacher.bert.encoder.layer[yours],
        )
        assert torch.equal(layer.ffn.lin1.weight, source.intermediate.dense.weight)
        assert torch.equal(layer.attention.v_lin.bias, source.attention.self.value.bias)
        assert torch.equal(layer.output_layer_norm.weight, source.output.LayerNorm.weight)
    assert student.vocab_projector.weight is student.distilbert.embeddings.word_embeddings.weight


def test_a_student_has_weights_of_its_own(toy_bert):
    teacher = toy_bert()
    before = copy.deepcopy(teacher.state_dict())
    student = models.init_student(teacher, 2)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_student_keeps_its_teachers_widths_and_dropout(toy_bert):
    shape = models.student_shape(toy_bert(dropout=0.25).config, 2)
    assert (shape.dim, shape.hidden_dim, shape.n_heads, shape.n_layers) == (32, 64, 4, 2)
    assert (shape.dropout, shape.attention_dropout, shape.max_position_embeddings) == (
        0.25,
        0.25,
        32,
    )


# --- MaskedLM -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_masked_lm_gives_the_models_own_logits_at_the_chosen_rows(kind, toy_bert, batch, words):
    model = toy_bert() if kind == "bert" else models.init_student(toy_bert(), 2).eval()
    rows = torch.rand(words.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    chosen = rows.flatten().nonzero()[:, 0]
    whole = logits(model, batch, output_hidden_states=True)
    with torch.no_grad():
        inputs = batch["input_ids"], batch["attention_mask"]
        some = models.MaskedLM(model)(*inputs, chosen, chosen[:3])
        none = models.MaskedLM(model)(*inputs, chosen[:0], chosen[:0])
    torch.testing.assert_close(some.decoder(some.head), whole.logits[rows], atol=1e-6, rtol=1e-5)
    states = whole.hidden_states[-1][rows][:3]
    torch.testing.assert_close(some.states, states, atol=1e-6, rtol=1e-5)
    assert none.decoder(none.head).shape == (0, 200) and none.states.shape == (0, 32)


# --- tokenizers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("lowercase", [False, True])
def test_train_tokenizer_is_deterministic(lowercase, toy_documents):
    first, *others = (
        models.train_tokenizer(iter(toy_documents), 180, lowercase, 32).get_vocab()
        for _ in range(4)
    )
    assert all(other == first for other in others)
    assert sorted(first.values()) == list(range(180))


def test_train_tokenizer_learns_frequent_words_and_keeps_every_letter(toy_documents, toy_tokenizer):
    vocabulary = toy_tokenizer.get_vocab()
    assert [toy_tokenizer.convert_ids_to_tokens(i) for i in range(5)] == [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
    ]
    letters = {letter for text in toy_documents for word in text.split() for letter in word}
    assert letters <= set(vocabulary) and {f"##{letter}" for letter in letters} <= set(vocabulary)
    assert toy_tokenizer.tokenize("la școală") == ["la", "școală"]
    assert all(
        toy_tokenizer.unk_token_id not in ids for ids in toy_tokenizer(toy_documents)["input_ids"]
    )
    assert toy_tokenizer.tokenize("漢") == ["[UNK]"]


@pytest.mark.parametrize("lowercase", [False, True])
def test_accents_are_kept(lowercase):
    tokenizer = models.train_tokenizer([PROBE] * 3, 150, lowercase, 32)
    assert tokenizer.tokenize(PROBE) == (PROBE.lower() if lowercase else PROBE).split()
    assert tokenizer.model_max_length == 32


def test_rare_letters_give_way():
    common = "abcdefghijklmnopqrstuvwxyz"
    rare = "".join(chr(0x4E00 + i) for i in range(200))
    tokenizer = models.train_tokenizer([*[common] * 3, " ".join(common), rare], 400, False, 32)
    letters = [piece for piece in tokenizer.get_vocab() if len(piece) == 1]
    assert len(letters) == 100 and set(common) <= set(letters)


def test_check_tokenizer_accepts_a_fitting_one(toy_bert, toy_tokenizer):
    models.check_tokenizer(toy_tokenizer, toy_bert(), False, "toy")
    models.check_tokenizer(
        toy_tokenizer, toy_bert(vocab_size=250), False, "toy"
    )  # padded embeddings are usual


def test_check_tokenizer_refuses_what_does_not_fit(toy_bert, toy_tokenizer):
    def refused(match, tokenizer=toy_tokenizer, model=None, lowercase=False):
        with pytest.raises(ConfigError, match=match) as error:
            models.check_tokenizer(tokenizer, model or toy_bert(layers=1), lowercase, "toy/name")
        assert str(error.value).startswith("toy/name: ") and "\n" not in str(error.value)

    refused("200 pieces and the model 199", model=toy_bert(layers=1, vocab_size=199))
    refused("reads 'Știință și viață' as 'Știință și viață'", lowercase=True)
    vocabulary = toy_tokenizer.get_vocab()
    refused(
        "as 'știință și viață'",
        BertTokenizer(vocab=vocabulary, do_lower_case=True, strip_accents=False),
    )
    stripping = BertTokenizer(vocab=vocabulary, do_lower_case=True, strip_accents=True)
    refused("as 'stiinta si viata'.*strip_accents to false", stripping, lowercase=True)
    other = Tokenizer(BPE({"a": 0}, []))
    other.normalizer = BertNormalizer(lowercase=False, strip_accents=False)
    refused("not a fast WordPiece", PreTrainedTokenizerFast(tokenizer_object=other))


# --- random weights that look at neighbours -------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_local_attention_looks_at_the_neighbours(kind, toy_bert):
    """With all other weights 0, each head's query meets the key of its neighbour best."""
    model = toy_bert(layers=1)
    if kind == "distilbert":
        model = models.init_student(model, 1)
    names = (".query", ".q_lin", ".key", ".k_lin")
    maps = [module for name, module in model.named_modules() if name.endswith(names)]
    with torch.no_grad():
        for linear in maps:
            linear.weight.zero_()
    models.init_local_attention(model)
    places = model.base_model.embeddings.position_embeddings.weight.detach()  # (32, 32)
    query, key = (
        (places @ linear.weight.detach().T).view(32, 4, 8).transpose(0, 1) for linear in maps
    )
    best = (query @ key.transpose(1, 2)).argmax(-1)  # (head, position)
    for head, distance in enumerate((-1, 1, -2, 2)):
        inside = range(2, 30)
        assert best[head, 2:30].tolist() == [place + distance for place in inside]


def test_local_attention_sinusoids(toy_bert):
    """Vaswani et al. 2017, section 3.5, times the amplitude."""
    model = models.init_local_attention(toy_bert(layers=1), position_scale=0.05)
    places = model.bert.embeddings.position_embeddings.weight
    for place in (0, 1, 17):
        for i in range(16):
            angle = place / 10_000 ** (2 * i / 32)
            assert places[place, 2 * i].item() == pytest.approx(0.05 * math.sin(angle), abs=1e-6)
            assert places[place, 2 * i + 1].item() == pytest.approx(
                0.05 * math.cos(angle), abs=1e-6
            )


def test_local_attention_adds_to_the_random_weights(toy_bert):
    plain, local = (
        toy_bert(layers=2, seed=3),
        models.init_local_attention(toy_bert(layers=2, seed=3)),
    )
    changed = {
        name
        for name, value in plain.state_dict().items()
        if not torch.equal(value, local.state_dict()[name])
    }
    maps = {
        f"bert.encoder.layer.{i}.attention.self.{name}.weight"
        for i in (0, 1)
        for name in ("query", "key")
    }
    assert changed == maps | {"bert.embeddings.position_embeddings.weight"}
    difference = (
        local.bert.encoder.layer[0].attention.self.key.weight
        - plain.bert.encoder.layer[0].attention.self.key.weight
    )
    torch.testing.assert_close(difference, 2.0 * torch.eye(8, 32).repeat(4, 1), atol=1e-6, rtol=0)


def test_build_teacher_has_the_shape_of_its_configuration(teacher_config, toy_tokenizer):
    shape = models.build_teacher(teacher_config(num_layers=3, dropout=0.2), toy_tokenizer).config
    assert (
        shape.num_hidden_layers,
        shape.hidden_size,
        shape.num_attention_heads,
        shape.intermediate_size,
    ) == (3, 32, 4, 128)
    assert (shape.vocab_size, shape.max_position_embeddings, shape.hidden_dropout_prob) == (
        200,
        32,
        0.2,
    )
    assert (
        shape.attention_probs_dropout_prob == 0.2
        and shape.pad_token_id == toy_tokenizer.pad_token_id
    )


# --- folders --------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, toy_bert, toy_tokenizer):
    """A saved teacher."""
    models.save_model(toy_bert(), toy_tokenizer, tmp_path / "teacher", "# Card\n")
    return tmp_path / "teacher"


@pytest.mark.parametrize("lowercase", [False, True])
@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_a_saved_folder_loads_without_rolib(kind, lowercase, tmp_path, toy_bert, toy_documents):
    tokenizer = models.train_tokenizer(toy_documents, 150, lowercase, 32)
    model = toy_bert(vocab_size=len(tokenizer))
    if kind == "distilbert":
        model = models.init_student(model, 2).eval()
    texts, options = (
        [PROBE, toy_documents[0]],
        {"padding": True, "truncation": True, "return_tensors": "pt"},
    )
    wanted = dict(tokenizer(texts, **options))
    models.save_model(model, tokenizer, tmp_path / "model", "# Știință\n")
    loaded, reader = (
        AutoModelForMaskedLM.from_pretrained(tmp_path / "model"),
        AutoTokenizer.from_pretrained(tmp_path / "model"),
    )
    read = dict(reader(texts, **options))
    assert torch.equal(read["input_ids"], wanted["input_ids"])
    assert reader.model_max_length == 32
    assert ("token_type_ids" in read) == (kind == "bert")  # DistilBERT has no segments
    with torch.no_grad():  # exactly what the tokenizer gives goes in
        assert torch.equal(loaded(**read).logits, logits(model, wanted).logits)
    assert (tmp_path / "model" / "README.md").read_text(encoding="utf-8") == "# Știință\n"


@pytest.fixture
def load(teacher_config):
    """Load a teacher with the parameters that fit the toy BERT; keyword arguments change them."""
    return lambda source, **changes: models.load_teacher(
        teacher_config(source=str(source), **({"num_layers": 4} | changes))
    )


@pytest.fixture
def refused(load):
    def refused(source, match, **changes):
        with pytest.raises(ConfigError, match=match) as error:
            load(source, **changes)
        assert str(source) in str(error.value)
        assert "\n" not in str(error.value)

    return refused


def test_load_teacher(folder, load, toy_bert, toy_tokenizer, batch):
    model, tokenizer = load(folder)
    assert not model.training
    assert tokenizer.get_vocab() == toy_tokenizer.get_vocab()
    assert tokenizer.tokenize(PROBE) == toy_tokenizer.tokenize(PROBE)
    assert torch.equal(logits(model, batch).logits, logits(toy_bert(), batch).logits)


def test_load_teacher_with_a_bare_vocabulary(folder, load, toy_tokenizer):
    """As the hub teachers come: vocab.txt and no tokenizer.json, where the library's default strips
    accents."""
    vocabulary = sorted(toy_tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "vocab.txt").write_text(
        "".join(piece + "\n" for piece, _ in vocabulary), encoding="utf-8"
    )
    _, tokenizer = load(folder)
    assert len(tokenizer) == 200
    assert tokenizer.tokenize(PROBE) == toy_tokenizer.tokenize(PROBE)


def test_load_teacher_from_a_missing_folder(tmp_path, refused):
    refused(
        tmp_path / "nowhere",
        "no such folder and no such hub model: correct source",
        revision="main",
    )
    with pytest.raises(ValueError, match="no folder: correct it, or set revision"):
        refused(tmp_path / "nowhere", "")


def test_saving_a_student_leaves_the_tokenizer_as_it_is(tmp_path, toy_bert, toy_tokenizer):
    models.save_model(models.init_student(toy_bert(), 2), toy_tokenizer, tmp_path / "student", "")
    assert "token_type_ids" in toy_tokenizer("Casa", "știrea")  # the teacher still reads pairs
    assert "token_type_ids" not in AutoTokenizer.from_pretrained(tmp_path / "student")(
        "Casa", "știrea"
    )


def test_load_teacher_with_an_unknown_hub_id(refused):
    refused("nobody/nothing", "not available from the hub", revision="main")


def test_load_teacher_refuses_a_distilbert(tmp_path, refused, toy_bert, toy_tokenizer):
    models.save_model(models.init_student(toy_bert(), 2), toy_tokenizer, tmp_path / "student", "")
    refused(tmp_path / "student", "is a distilbert model, not a BERT")


def test_load_teacher_refuses_a_folder_that_is_no_model(tmp_path, refused, toy_tokenizer):
    toy_tokenizer.save_pretrained(tmp_path / "words")
    refused(tmp_path / "words", "not a model folder")


def test_load_teacher_refuses_a_tokenizer_larger_than_the_model(folder, refused, toy_bert):
    toy_bert(vocab_size=150).save_pretrained(folder)
    refused(folder, "200 pieces and the model 150", vocab_size=150)


def test_load_teacher_refuses_a_folder_without_a_tokenizer(tmp_path, refused, toy_bert):
    """The library makes up a tokenizer that reads every word as [UNK]."""
    toy_bert().save_pretrained(tmp_path / "bare")
    refused(tmp_path / "bare", "tokenizer")


@pytest.mark.parametrize("trained", [False, True])
def test_load_teacher_refuses_the_wrong_case(
    trained, tmp_path, load, refused, toy_bert, toy_documents
):
    """A cased vocabulary read in lower case loses its capitals, an uncased one read as cased meets
    [UNK]."""
    tokenizer = models.train_tokenizer(toy_documents, 150, trained, 32)
    models.save_model(toy_bert(vocab_size=150), tokenizer, tmp_path / "teacher", "")
    assert len(load(tmp_path / "teacher", lowercase=trained, vocab_size=150)[1]) == 150
    refused(tmp_path / "teacher", "lowercase", lowercase=not trained, vocab_size=150)


@pytest.mark.parametrize(
    ("key", "wrong"),
    [("num_layers", 3), ("hidden_size", 64), ("num_heads", 2), ("vocab_size", 201)],
)
def test_load_teacher_refuses_another_shape_than_the_parameters_say(key, wrong, folder, refused):
    right = {"num_layers": 4, "hidden_size": 32, "num_heads": 4, "vocab_size": 200}[key]
    refused(
        folder, f"{key}: {wrong} in the parameters, but .* has {right}: correct it", **{key: wrong}
    )


# --- vocabularies padded above their tokenizer ----------------------------------------------------


def test_load_teacher_cuts_a_padded_vocabulary(folder, load, toy_bert, batch):
    padded = toy_bert(vocab_size=208)
    padded.save_pretrained(folder)
    model, tokenizer = load(folder)
    assert model.config.vocab_size == len(tokenizer) == 200
    assert torch.equal(logits(model, batch).logits, logits(padded, batch).logits[..., :200])
    student = models.init_student(model, 2)
    assert student.config.vocab_size == 200
    assert student.vocab_projector.weight is student.base_model.embeddings.word_embeddings.weight


def test_a_model_that_fits_stays_as_it_is(toy_bert, toy_tokenizer):
    model = toy_bert()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert models.fit_vocabulary(model, toy_tokenizer) is model
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_revision_goes_to_the_hub(teacher_config, monkeypatch):
    calls = []

    def fetch(source, **options):
        calls.append((source, options.get("revision")))
        raise OSError("no network")

    monkeypatch.setattr(models, "snapshot_download", fetch)
    config = teacher_config(source="some/model", revision="0123abc")
    with pytest.raises(ConfigError, match=r"'some/model': .*\(no network\): check the network"):
        models.load_teacher(config)
    assert calls == [("some/model", "0123abc")]


# --- what a source may have, or lack --------------------------------------------------------------


def change_weights(folder, change):
    """Rewrite the weights of a folder through `change`, a function of their dict."""
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def change_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_teacher_without_its_head_is_refused(folder, refused):
    """The library would give it a random one."""
    change_weights(folder, lambda old: {k: v for k, v in old.items() if not k.startswith("cls")})
    refused(folder, "no weights for cls.predictions.bias, .*transform.dense.weight")


def test_a_teacher_with_tied_weights_stored_twice_is_accepted(folder, load, toy_bert, batch):
    embeddings = "bert.embeddings.word_embeddings.weight"
    twice = {"cls.predictions.decoder.weight": embeddings}
    twice["cls.predictions.decoder.bias"] = "cls.predictions.bias"
    change_weights(folder, lambda old: old | {new: old[key].clone() for new, key in twice.items()})
    assert torch.equal(logits(load(folder)[0], batch).logits, logits(toy_bert(), batch).logits)


@pytest.mark.parametrize("said", [True, False])
def test_a_teacher_with_an_untied_decoder_is_refused(said, folder, refused):
    """Its student's embeddings would become the decoder."""
    decoder = torch.randn(200, 32, generator=torch.Generator().manual_seed(0))
    more = {"cls.predictions.decoder.weight": decoder}
    more["cls.predictions.decoder.bias"] = torch.zeros(200)
    change_weights(folder, lambda old: old | more)
    change_json(folder / "config.json", tie_word_embeddings=said)
    refused(folder, "its decoder is not tied to its embeddings")


def test_half_precision_is_read_as_float32(folder, load, toy_bert):
    toy_bert().half().save_pretrained(folder)
    model, _ = load(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_teacher_keeps_its_sources_pooler(tmp_path, folder, load, toy_tokenizer):
    torch.manual_seed(1)
    source = BertForPreTraining(BertConfig.from_pretrained(folder))
    source.save_pretrained(folder)
    model, tokenizer = load(folder)
    models.save_model(model, tokenizer, tmp_path / "saved", "")
    saved = BertModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(saved.pooler.dense.weight, source.bert.pooler.dense.weight)
    assert torch.equal(saved.pooler.dense.bias, source.bert.pooler.dense.bias)


def test_the_longest_text_is_what_the_model_can_read(tmp_path, folder, load):
    change_json(folder / "tokenizer_config.json", model_max_length=10**30)
    model, tokenizer = load(folder)
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 32
    models.save_model(model, tokenizer, tmp_path / "saved", "")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").model_max_length == 32


def test_no_code_of_a_source_is_run_or_copied(tmp_path, folder, load, refused, monkeypatch):
    """The library would ask on standard input whether it may."""
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n"
    (folder / "code.py").write_text(code)
    maps = {"AutoConfig": "code.Config", "AutoModelForMaskedLM": "code.Config"}
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on standard input"))
    change_json(folder / "config.json", auto_map=maps)
    models.save_model(*load(folder), tmp_path / "saved", "")
    assert "auto_map" not in (tmp_path / "saved" / "config.json").read_text()
    change_json(folder / "config.json", auto_map=maps, model_type="own")
    refused(folder, "not a model folder, or its files are damaged")
    assert not (tmp_path / "ran").exists()


class Hostile:
    """What runs a command when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("damage", ["hostile", "text", "empty", "cut"])
def test_a_hostile_or_damaged_pytorch_model_is_one_clear_error(damage, folder, refused, tmp_path):
    (folder / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(1000)}, tmp_path / "whole")
    content = {"hostile": pickle.dumps(Hostile(tmp_path / "ran")), "text": b"<html>no</html>"}
    content |= {"empty": b"", "cut": (tmp_path / "whole").read_bytes()[:2000]}
    (folder / "pytorch_model.bin").write_bytes(content[damage])
    refused(folder, "its files are damaged .*fetch it again")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("length", [0, 4, 3000])
def test_damaged_safetensors_are_one_clear_error(length, folder, refused):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:length])
    refused(folder, "its files are damaged .*fetch it again")


def test_a_damaged_configuration_is_one_clear_error(folder, refused):
    (folder / "config.json").write_text('{"model_type": "bert",')
    refused(folder, "its files are damaged")

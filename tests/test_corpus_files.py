"""Corpora of shards: .jsonl, .jsonl.gz, .jsonl.zst and .parquet; damaged files; stored blocks."""

import functools
import json
import os
import urllib.error

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from test_fuzz import mutated
from transformers import AutoTokenizer

from rolib.config import ConfigError
from rolib.data import corpus
from rolib.data.words import split_words, word_pieces

TEXTS = [f"Şcoala numărul {n} —\nare „elevi”." for n in range(40)]
CLEAN = [f"Școala numărul {n} — are „elevi”." for n in range(40)]


def write(path, texts):
    """Write texts in the format of the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), path, row_group_size=3)
        return
    lines = [json.dumps({"id": n, "text": text}) for n, text in enumerate(texts)]
    content = "\n\n".join(texts) if path.suffix == ".txt" else "\n".join(lines)
    compression = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
    with pa.output_stream(str(path), compression=compression) as stream:
        stream.write(content.encode())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path / "runs"))
    # `map` with several processes leaves a copy of os.environ in its place; this puts it back.
    monkeypatch.setattr(os, "environ", os.environ)
    return tmp_path / "corpus"


NAMES = ["a.txt", "b.jsonl", "c.jsonl.gz", "d.jsonl.zst", "e.parquet"]


@pytest.mark.parametrize("name", NAMES)
def test_each_format_gives_the_same_documents(folder, name):
    write(folder / name, TEXTS)
    assert list(corpus.read_documents(folder / name)) == CLEAN


def test_a_folder_of_shards(folder, teacher_config):
    """Every format and every text once; licences below the folder are no text."""
    for number, name in enumerate(NAMES):
        place = folder / name if number < 2 else folder / "web" / name
        write(place, TEXTS[number * 8 : number * 8 + 8])
    write(folder / "LICENSES" / "licence.txt", ["Licence."])
    config = functools.partial(teacher_config, corpus=str(folder))
    split = corpus.load_corpus(config(), folder)
    assert sorted(split["train"]["text"][:] + split["held_out"]["text"][:]) == sorted(CLEAN)
    # Three sources: two files and a folder. Each gives a document of 6 words.
    few = corpus.load_corpus(config(words_per_source=1), folder)
    found = sorted(CLEAN.index(text) // 8 for part in few.values() for text in part["text"])
    assert len(found) == 3 and found[:2] == [0, 1] and found[2] >= 2


def test_several_processes_read_the_shards_in_order(folder, teacher_config, monkeypatch):
    for number in range(4):
        write(folder / f"{number}.jsonl", TEXTS[number * 10 : number * 10 + 10])
    config = teacher_config(corpus=str(folder))
    alone = corpus.load_corpus(config, folder)
    monkeypatch.setenv("ROLIB_RUNS", str(folder.parent / "others"))
    monkeypatch.setattr(corpus, "_workers", lambda worth_it: 2)
    together = corpus.load_corpus(config, folder)
    for name, part in alone.items():
        assert together[name]["text"][:] == part["text"][:]
    write(folder / "2.jsonl", ["Bun."])
    (folder / "3.jsonl").write_text('{"text": "Bun."}\n{"text"', encoding="utf-8")
    with pytest.raises(ValueError, match=r"^\S*3\.jsonl: cannot be read after document 1"):
        corpus.load_corpus(config, folder)


FAULTS = {
    "half a line": (
        "x.jsonl",
        b'{"text": "Bun."}\n{"text": "Tot',
        "after document 1 .*Unterminated",
    ),
    "no text": ("x.jsonl", b'{"text": "Bun."}\n{"content": "Altul."}', "after document 1 .*'text'"),
    "null": ("x.jsonl", b'{"text": "Bun."}\n{"text": null}', "after document 1 .*its text is None"),
    "a list": ("x.jsonl", b"[1]\n", "after document 0 "),
    "deep": ("x.jsonl", b"[" * 10**6, "after document 0 "),
    "latin": ("x.jsonl", '{"text": "ă"}'.encode("iso8859_16"), "not UTF-8"),
    "not zstd": ("x.jsonl.zst", b"Bun.", "after document 0 .*ZSTD"),
    "not gzip": ("x.jsonl.gz", b"Bun.", "after document 0 .*zlib"),
    "not parquet": ("x.parquet", b"Bun.", "after document 0 .*Parquet"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_file_is_named(folder, teacher_config, fault):
    name, content, message = FAULTS[fault]
    folder.mkdir()
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^\S*{name}: .*{message}"):
        corpus.load_corpus(teacher_config(corpus=str(folder)), folder)


@pytest.mark.parametrize("name", ["x.jsonl.zst", "x.jsonl.gz", "x.parquet"])
def test_a_truncated_file_and_a_table_without_text_are_named(folder, name):
    write(folder / name, TEXTS * 50)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"{name}: cannot be read after document"):
        list(corpus.read_documents(folder / name))
    if name == "x.parquet":
        pq.write_table(pa.table({"content": ["Bun."]}), folder / name)
        with pytest.raises(ValueError, match=f"{name}: cannot be read .*KeyError.*text"):
            list(corpus.read_documents(folder / name))


@pytest.mark.parametrize("name", NAMES)
def test_mutated_files_give_documents_or_an_error_that_names_the_file(folder, name):
    write(folder / name, TEXTS[:8])
    failed = 0
    for content in mutated((folder / name).read_bytes(), name, 200):
        (folder / name).write_bytes(content)
        try:
            assert all(isinstance(text, str) for text in corpus.read_documents(folder / name))
        except ValueError as error:
            assert str(error).startswith(str(folder / name)), error
            failed += 1
    assert failed > 20


def test_half_a_surrogate_pair_is_dropped(folder, teacher_config):
    folder.mkdir()
    (folder / "x.jsonl").write_text('{"text": "a\\ud83d b"}\n{"text": "c"}')
    split = corpus.load_corpus(teacher_config(corpus=str(folder)), folder)
    assert sorted(split["train"]["text"][:] + split["held_out"]["text"][:]) == ["a b", "c"]


# --- stored data ----------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """How often texts are cut into words."""
    calls = []
    monkeypatch.setattr(corpus, "split_words", lambda text: calls.append(1) or split_words(text))
    return calls


def test_blocks_are_built_once_for_equal_tokenizers(
    folder, teacher_config, toy_tokenizer, counted, monkeypatch
):
    """Read from another folder, used before, with truncation and padding: all build the same."""
    write(folder / "a.txt", TEXTS)
    config = teacher_config(corpus=str(folder))
    for name in ("one", "two"):
        toy_tokenizer.save_pretrained(folder.parent / name)

    def build(name, used=False):
        tokenizer = AutoTokenizer.from_pretrained(folder.parent / name)
        if used:
            tokenizer(TEXTS, truncation=True, max_length=4, padding="max_length")
        texts = corpus.load_corpus(config, folder)
        return [corpus.build_blocks(part, [tokenizer], 16).to_list() for part in texts.values()]

    first = build("one")
    assert len(counted) == len(TEXTS)
    assert build("one", used=True) == build("two") == build("two", used=True) == first
    assert len(counted) == len(TEXTS)
    monkeypatch.setattr(corpus, "CODE", ["another"])  # as a changed corpus.py has
    assert build("one") == first and len(counted) == 2 * len(TEXTS)


def test_pieces_do_not_depend_on_the_tokenizers_truncation(toy_tokenizer):
    words = ["Copilul", "nemaipomenitdelungulcuvânt", "și", "Copilul", "\ufffd"]
    wanted = [
        toy_tokenizer.convert_tokens_to_ids(toy_tokenizer.tokenize(word))
        or [toy_tokenizer.unk_token_id]
        for word in words
    ]
    toy_tokenizer(words, truncation=True, max_length=3, padding="max_length")
    assert word_pieces(words, toy_tokenizer) == wanted


# --- the hub --------------------------------------------------------------------------------------


@pytest.mark.parametrize("revision", ["main", "a" * 40])
def test_a_hub_that_cannot_be_reached_is_one_line(folder, teacher_config, monkeypatch, revision):
    """It is known before the library begins to try again and again."""

    def refuse(*arguments, **options):
        raise urllib.error.URLError("Connection refused")

    monkeypatch.setattr(corpus.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("too late"))
    config = teacher_config(corpus="hub:some/set", corpus_revision=revision)
    message = r"^corpus hub:some/set: .*Connection refused.*: check its id and revision.*$"
    with pytest.raises(ConfigError, match=message):
        corpus.load_corpus(config, folder)
    if revision == "main":
        with pytest.raises(ConfigError, match=message):
            corpus.corpus_identity(config, folder)


def test_offline_a_hub_corpus_that_was_not_fetched_is_one_line(folder, teacher_config, monkeypatch):
    monkeypatch.setattr(corpus.constants, "HF_HUB_OFFLINE", True)
    config = teacher_config(corpus="hub:some/set", corpus_revision="a" * 40)
    with pytest.raises(ConfigError, match="^corpus hub:some/set: .*some/set.*HF_HUB_OFFLINE=1.*$"):
        corpus.load_corpus(config, folder)


def test_a_hub_corpus_whose_text_is_no_text(folder, teacher_config, monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: Dataset.from_dict({"text": [1]}))
    monkeypatch.setattr(corpus.constants, "HF_HUB_OFFLINE", True)
    config = teacher_config(corpus="hub:some/set", corpus_revision="a" * 40)
    with pytest.raises(ConfigError, match="corpus hub:some/set: its column `text` holds .*int64"):
        corpus.load_corpus(config, folder)


def test_a_folder_that_is_not_there_is_one_line(folder, teacher_config):
    config = teacher_config(corpus=str(folder))
    for read in (corpus.corpus_identity, corpus.load_corpus):
        with pytest.raises(FileNotFoundError, match="corpus: no such folder; set `corpus`"):
            read(config, folder)


def test_a_folder_is_no_hub_corpus(folder, teacher_config):
    folder.mkdir()
    with pytest.raises(ValueError, match="corpus: .* is a folder here: leave out 'hub:'"):
        teacher_config(corpus=f"hub:{folder}", corpus_revision="main")
    with pytest.raises(ValueError, match="corpus: .* is a folder here"):
        teacher_config(corpus=f"hub:{folder}:ro", corpus_revision="main")


def test_the_documents_of_a_hub_corpus_are_drawn_from_all_of_it(
    folder, teacher_config, monkeypatch
):
    texts = {"text": [f"Textul {n}." for n in range(500)]}
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: Dataset.from_dict(texts))
    monkeypatch.setattr(corpus.constants, "HF_HUB_OFFLINE", True)
    config = teacher_config(corpus="hub:some/set", corpus_revision="main", words_per_source=100)
    split = corpus.load_corpus(config, folder)
    chosen = [int(text[7:-1]) for part in split.values() for text in part["text"]]
    assert len(chosen) == 50 and 150 < sum(chosen) / 50 < 350

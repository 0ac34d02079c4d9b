"""Text -> documents -> words -> blocks."""

import itertools
import os
import sys
import unicodedata
from types import SimpleNamespace

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from rolib.data import corpus
from rolib.data.words import split_words
from rolib.runs import sha256

steady = settings(deadline=None, derandomize=True, max_examples=200)


# --- normalise ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("ştiinţă ŞI ŢARĂ", "știință ȘI ȚARĂ"),  # cedilla
        (unicodedata.normalize("NFD", "Știință și viață"), "Știință și viață"),
        (unicodedata.normalize("NFD", "ştiinţă"), "știință"),
        ("un\tdoi\r\ntrei\u00a0patru\x0bcinci\u2028șase", "un doi trei patru cinci șase"),
        ("  capăt\n\n", "capăt"),
        ("sil\u00adabă zero\u200blățime \ufeffsemn", "silabă zerolățime semn"),
        ("a\x00b\x07c", "abc"),
        ("\ue000privat", "privat"),
        ("", ""),
        (" \u200b\t", ""),
        ("emoji 🙂 — „ghilimele”…", "emoji 🙂 — „ghilimele”…"),
    ],
)
def test_normalise_by_example(raw, clean):
    assert corpus.normalise(raw) == clean


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("un \u200b doi", "un doi"),
        ("\u200b un \x00", "un"),
        ("s\u200d\u0327i", "și"),
        ("a\u00ad\u0306", "ă"),
    ],
)
def test_removed_characters_leave_neither_spaces_nor_loose_accents(raw, clean):
    assert corpus.normalise(raw) == clean


# Letters, their marks, white space, and characters that are removed, also between a letter and
# its mark.
ODD = [
    *"şţŞŢșțăîâ .",
    "s\u0327",
    "T\u0327",
    "a\u0306",
    "i\u0302",
    "s\u200d\u0326",
    "t\x07\u0327",
    *"\t\n\r\x1c\x85\u00a0\u2003",
]
ODD += [*"\x00\u200b\u200d\u00ad\ufeff\ue000"]


@steady
@given(st.one_of(st.lists(st.sampled_from(ODD), max_size=12).map("".join), st.text(max_size=12)))
def test_normalised_text_is_clean_and_stays_as_it_is(text):
    clean = corpus.normalise(text)
    assert clean == " ".join(clean.split())
    assert unicodedata.is_normalized("NFC", clean)
    assert not set(clean) & set("şţŞŢ")
    assert {unicodedata.category(c) for c in clean} & {"Cc", "Cf", "Co", "Cs"} == set()
    assert corpus.normalise(clean) == clean


def normalise_by_character(text):
    """The definition: one character after the other."""
    text = "".join(
        c for c in text if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf", "Co", "Cs")
    )
    cedilla_to_comma = str.maketrans("şţŞŢ", "șțȘȚ")
    return " ".join(unicodedata.normalize("NFC", text).translate(cedilla_to_comma).split())


@steady
@given(st.one_of(st.lists(st.sampled_from(ODD), max_size=30).map("".join), st.text(max_size=30)))
def test_normalise_equals_its_definition(text):
    assert corpus.normalise(text) == normalise_by_character(text)


def test_normalise_equals_its_definition_for_every_character():
    for start in range(0, sys.maxunicode + 1, 4096):
        characters = "".join(map(chr, range(start, start + 4096)))
        assert corpus.normalise(characters) == normalise_by_character(characters)
        apart = "a".join(characters)
        assert corpus.normalise(apart) == normalise_by_character(apart)


def test_normalise_looks_only_at_uncertain_characters(monkeypatch):
    looked_at = []

    def category(character):
        looked_at.append(character)
        return unicodedata.category(character)

    quick = SimpleNamespace(category=category, normalize=unicodedata.normalize)
    monkeypatch.setattr(corpus, "unicodedata", quick)
    assert corpus.normalise("Știință, (1) text_lung – da\u00ad!") == "Știință, (1) text_lung – da!"
    assert looked_at == ["–", "\u00ad"]


@steady
@given(st.lists(st.sampled_from(["știință", "Țară", "a", "12", "e-mail"]), min_size=1), st.data())
def test_white_space_of_any_kind_never_glues_words(words, data):
    gaps = [
        data.draw(st.text(alphabet=" \t\n\r\x0b\x0c\x1c\x85\u00a0\u2003\u2028\u2029", min_size=1))
        for _ in words
    ]
    text = "".join(itertools.chain.from_iterable(zip(words, gaps, strict=True)))
    assert corpus.normalise(text).split(" ") == words


def test_split_words_cuts_at_punctuation_and_keeps_letters():
    assert split_words("Într-o zi, „viața” era 3,5.") == [
        *["Într", "-", "o", "zi", ",", "„", "viața", "”", "era", "3", ",", "5", "."]
    ]


# --- documents ------------------------------------------------------------------------------------


def test_read_documents(tmp_path):
    file = tmp_path / "a.txt"
    text = "\ufeffPrimul rând\r\nşi al\tdoilea.\r\n  \t \r\n\r\nAl treilea.\n\n\u200b\n\n\n"
    text += "Ultimul, fără rând nou"
    file.write_bytes(text.encode())
    assert list(corpus.read_documents(file)) == [
        "Primul rând și al doilea.",
        "Al treilea.",
        "Ultimul, fără rând nou",
    ]


def test_read_documents_of_an_empty_file(tmp_path):
    (tmp_path / "a.txt").write_text("\n \n", encoding="utf-8")
    assert list(corpus.read_documents(tmp_path / "a.txt")) == []


# --- blocks ---------------------------------------------------------------------------------------


@steady
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=25),
    st.integers(1, 15),
)
def test_windows(sizes, room):
    runs = corpus.windows(sizes, room)
    assert [word for run in runs for word in run] == list(range(len(sizes)))

    def fits(words):
        return all(sum(sizes[word][view] for word in words) <= room for view in (0, 1))

    for run in runs:
        assert len(run) == 1 or fits(run)
    for run, after in itertools.pairwise(runs):
        assert not fits([*run, after[0]]), "the next word had room in this run"


def texts(*documents):
    return Dataset.from_dict({"text": list(documents)})


def test_build_blocks_gives_back_every_document_word_by_word(toy_tokenizer, toy_documents):
    documents = [
        " ".join(toy_documents[:4]),
        "Scurt.",
        "nemaipomenitdelungulcuvântînvârtit și gata",
        *toy_documents[4:8],
    ]
    blocks = corpus.build_blocks(texts(*documents), [toy_tokenizer], 16)
    assert blocks["index"][:] == list(range(len(blocks)))
    rows = iter(blocks)
    for document in documents:
        # Independent: each word is tokenized alone (and cut to the room), and its pieces are
        # counted off against the blocks.
        wanted = [
            (n, p)
            for n, w in enumerate(split_words(document))
            for p in toy_tokenizer.tokenize(w)[:14]
        ]
        got, number = [], -1
        while len(got) < len(wanted):
            row = next(rows)
            [ids], [words] = row["input_ids"], row["word_ids"]
            assert len(ids) == len(words) == row["length"] <= 16
            assert (ids[0], ids[-1]) == (toy_tokenizer.cls_token_id, toy_tokenizer.sep_token_id)
            assert words[0] == words[-1] == -1 and min(words[1:-1]) == words[1] == 0
            first = wanted[len(got)][0]
            got += [
                (first + word, piece)
                for word, piece in zip(words[1:-1], toy_tokenizer.convert_ids_to_tokens(ids[1:-1]))
            ]
            number += 1
        assert got == wanted  # no block goes on into the next document
    assert next(rows, None) is None


def test_build_blocks_without_words(toy_tokenizer):
    with pytest.raises(ValueError, match="no word"):
        corpus.build_blocks(texts("", " "), [toy_tokenizer], 16)


def test_empty_documents_before_full_ones_are_harmless(toy_tokenizer):
    many = corpus.build_blocks(texts(*[""] * 70, "Copilul citește."), [toy_tokenizer], 16)
    assert (
        many.to_list()
        == corpus.build_blocks(texts("Copilul citește."), [toy_tokenizer], 16).to_list()
    )


# --- corpus ---------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A data root with two files of ten documents of five words."""
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path / "runs"))
    folder = tmp_path / "data" / "corpus"
    folder.mkdir(parents=True)
    for name in "ab":
        documents = [f"Documentul {name} {number} pune şi" for number in range(10)]
        (folder / f"{name}.txt").write_text("\n\n".join(documents), encoding="utf-8")
    return tmp_path / "data"


def every_text(split):
    return sorted(split["train"]["text"][:] + split["held_out"]["text"][:])


def test_load_corpus_splits_every_document_once(world, teacher_config):
    split = corpus.load_corpus(teacher_config(), world)
    assert every_text(split) == sorted(
        f"Documentul {name} {number} pune și" for name in "ab" for number in range(10)
    )
    assert not set(split["train"]["text"]) & set(split["held_out"]["text"])
    assert len(split["held_out"]) == 1  # 5 % of 20


def test_the_held_out_share_is_capped(world, teacher_config, monkeypatch):
    monkeypatch.setattr(corpus, "HELD_OUT_SHARE", 0.4)
    assert len(corpus.load_corpus(teacher_config(), world)["held_out"]) == 8
    monkeypatch.setattr(corpus, "HELD_OUT_MOST", 3)
    assert len(corpus.load_corpus(teacher_config(), world)["held_out"]) == 3


def test_the_split_depends_on_the_data_seed_alone(world, teacher_config, monkeypatch, tmp_path):
    first = corpus.load_corpus(teacher_config(data_seed=3, words_per_source=30), world)
    # Nothing comes from the cache of the first one.
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path / "elsewhere"))
    again, other = (
        corpus.load_corpus(teacher_config(data_seed=data_seed, seed=7, words_per_source=30), world)
        for data_seed in (3, 4)
    )
    assert again["held_out"]["text"][:] == first["held_out"]["text"][:]
    assert again["train"]["text"][:] == first["train"]["text"][:]
    assert other["train"]["text"][:] != first["train"]["text"][:]


def test_a_changed_file_is_noticed(world, teacher_config):
    corpus.load_corpus(teacher_config(), world)
    file = world / "corpus" / "a.txt"
    file.write_text(
        file.read_text(encoding="utf-8").replace("Documentul a 3", "Documentul x 3"),
        encoding="utf-8",
    )
    now = every_text(corpus.load_corpus(teacher_config(), world))
    assert "Documentul x 3 pune și" in now and "Documentul a 3 pune și" not in now


def test_words_per_source(world, teacher_config):
    few = every_text(corpus.load_corpus(teacher_config(words_per_source=12), world))
    # Five words a document: the third one passes 12.
    assert [text.split()[1] for text in few] == ["a"] * 3 + ["b"] * 3
    assert len(every_text(corpus.load_corpus(teacher_config(words_per_source=0), world))) == 20


def test_words_per_source_that_are_just_reached(world, teacher_config):
    few = every_text(corpus.load_corpus(teacher_config(words_per_source=10), world))
    assert [text.split()[1] for text in few] == ["a"] * 2 + ["b"] * 2


def test_the_data_seed_chooses_the_documents_of_a_source(world, teacher_config):
    configs = [teacher_config(words_per_source=12, data_seed=data_seed) for data_seed in range(4)]
    chosen = [frozenset(every_text(corpus.load_corpus(config, world))) for config in configs]
    assert len(set(chosen)) > 2


def test_the_order_of_the_documents_is_fixed(world, teacher_config):
    """The documents and splits of finished studies must not move."""
    split = corpus.load_corpus(teacher_config(words_per_source=20), world)
    names = {name: ["".join(t.split()[1:3]) for t in split[name]["text"]] for name in split}
    assert names == {"train": ["a6", "a8", "b6", "a9", "b9", "a7", "b7"], "held_out": ["b8"]}


def test_equal_documents_are_taken_once(world, teacher_config, monkeypatch):
    # The last is equal to the first after normalisation only.
    copies = ["Documentul a 0 pune şi", "Documentul a 1 pune și", "Documentul\ta 0 pune s\u0327i"]
    file = world / "corpus" / "b.txt"
    file.write_text("\n\n".join([*copies, *copies, "Altul."]), encoding="utf-8")
    monkeypatch.setattr(corpus, "HELD_OUT_SHARE", 0.5)
    split = corpus.load_corpus(teacher_config(), world)
    assert every_text(split) == ["Altul.", *(f"Documentul a {n} pune și" for n in range(10))]
    # The first one stays: the words of the copies do not count for the second file.
    few = every_text(corpus.load_corpus(teacher_config(words_per_source=1), world))
    assert len(few) == 2 and "Altul." in few


def test_a_folder_as_corpus(world, teacher_config):
    split = corpus.load_corpus(teacher_config(corpus=str(world / "corpus")), world / "nowhere")
    assert len(every_text(split)) == 20


def test_a_folder_without_text_is_an_error(tmp_path, teacher_config):
    (tmp_path / "nowhere" / "corpus").mkdir(parents=True)
    with pytest.raises(
        FileNotFoundError,
        match=r"nowhere.corpus: no \.txt in it, .*parquet file below it; set `corpus`.*ROLIB_DATA",
    ):
        corpus.load_corpus(teacher_config(), tmp_path / "nowhere")


@pytest.mark.parametrize(("content", "count"), [("Un singur document.", 1), ("\n\n", 0)])
def test_a_corpus_too_small_to_split_is_an_error(world, teacher_config, content, count):
    (world / "corpus" / "a.txt").unlink()
    (world / "corpus" / "b.txt").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"{count} documents, at least 2 are needed"):
        corpus.load_corpus(teacher_config(), world)


def test_two_documents_are_enough(world, teacher_config):
    (world / "corpus" / "a.txt").unlink()
    (world / "corpus" / "b.txt").write_text("Unul.\n\nDoi.", encoding="utf-8")
    split = corpus.load_corpus(teacher_config(), world)
    assert (len(split["train"]), len(split["held_out"])) == (1, 1)


def test_a_file_in_another_encoding_is_named(world, teacher_config):
    (world / "corpus" / "b.txt").write_bytes("Știință și viață.".encode("iso8859_16"))
    with pytest.raises(ValueError, match=r"b\.txt.*UTF-8"):
        corpus.load_corpus(teacher_config(), world)


def test_the_identity_of_a_file_corpus(world, teacher_config):
    config = teacher_config()
    assert corpus.corpus_identity(config, world) == sha256(world / "corpus")


# --- hub corpora ----------------------------------------------------------------------------------

HUB = {"corpus": "hub:some/set:20231101.ro", "corpus_revision": "main"}
COMMIT = "b04c8d1ceb2f5cd4588862100d08de323dccfbaa"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in for the hub: `rows` is what load_dataset gives, `calls` what was asked."""
    # `map` with several processes leaves a copy of os.environ in its place; this puts it back.
    monkeypatch.setattr(os, "environ", os.environ)
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path / "runs"))
    state = SimpleNamespace(calls=[], rows={"text": [f"Un text {n}." for n in range(20)]})

    def load_dataset(*arguments, **options):
        state.calls.append((arguments, options))
        return Dataset.from_dict(state.rows)

    class HfApi:
        def dataset_info(self, *arguments, **options):
            state.calls.append((arguments, options))
            return SimpleNamespace(sha=COMMIT)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr(corpus, "HfApi", HfApi)
    return state


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("hub:some/set:20231101.ro", ("some/set", "20231101.ro")), ("hub:set", ("set", None))],
)
def test_a_hub_corpus_is_loaded_at_its_revision(hub, teacher_config, tmp_path, name, arguments):
    split = corpus.load_corpus(teacher_config(corpus=name, corpus_revision="v1"), tmp_path)
    assert hub.calls == [(arguments, {"split": "train", "revision": "v1"})]
    assert split["train"].column_names == ["text"]
    assert every_text(split) == sorted(hub.rows["text"])


def test_a_branch_of_the_hub_is_loaded_at_its_commit(hub, teacher_config, tmp_path, monkeypatch):
    """The hub is asked first: it answers or fails at once."""
    monkeypatch.setattr(corpus.constants, "HF_HUB_OFFLINE", False)
    corpus.load_corpus(teacher_config(**HUB), tmp_path)
    asked, loaded = hub.calls
    assert asked == (("some/set",), {"revision": "main", "timeout": 10})
    assert loaded == (("some/set", "20231101.ro"), {"split": "train", "revision": COMMIT})


def test_a_hub_corpus_too_small_to_split_is_an_error(hub, teacher_config, tmp_path):
    hub.rows = {"text": ["Unul.", None, "Unul."]}
    with pytest.raises(ValueError, match="hub:.* 1 documents, at least 2 are needed: take another"):
        corpus.load_corpus(teacher_config(**HUB), tmp_path)


def test_a_hub_corpus_is_normalised_and_sampled(hub, teacher_config, tmp_path, monkeypatch):
    """Several processes; a column of the set that has the name of one of ours."""
    monkeypatch.setattr(corpus.os, "cpu_count", lambda: 2)
    texts = [f"Textul  {n} şi atât." for n in range(1001)]
    texts = ["", *texts, " \u200b", *texts[::-1], "Ultimul."]
    hub.rows = {"source": list(map(str, range(len(texts)))), "text": texts}
    wanted = [f"Textul {n} și atât." for n in range(1001)] + ["Ultimul."]
    everything = corpus.load_corpus(teacher_config(**HUB), tmp_path)
    assert every_text(everything) == sorted(wanted)

    def sample(**changes):
        config = teacher_config(**HUB | {"words_per_source": 41} | changes)
        split = corpus.load_corpus(config, tmp_path)
        return split["train"]["text"][:], split["held_out"]["text"][:]

    train, held_out = sample()
    assert len(set(train + held_out)) == 11 and set(train + held_out) < set(wanted)
    assert sample(seed=5) == (train, held_out) != sample(data_seed=5)


def test_the_identity_of_a_hub_corpus(hub, teacher_config, tmp_path):
    identity = corpus.corpus_identity(teacher_config(**HUB), tmp_path)
    assert identity == f"some/set:20231101.ro@{COMMIT}"
    assert hub.calls == [(("some/set",), {"revision": "main", "timeout": 10})]
    fixed = teacher_config(corpus="hub:set", corpus_revision="a" * 40)
    assert corpus.corpus_identity(fixed, tmp_path) == f"set@{'a' * 40}"
    assert len(hub.calls) == 1  # a commit needs no question


def test_a_hub_corpus_without_text_is_an_error(hub, teacher_config, tmp_path):
    hub.rows = {"content": ["Unu.", "Doi."]}
    with pytest.raises(ValueError, match=r"text.*content"):
        corpus.load_corpus(teacher_config(**HUB), tmp_path)

"""The readers of the five data sets: upstream counts, splits, layouts and error messages."""

import json
import os
import random
import re
import shutil
import unicodedata
import zipfile
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolib.data import tasks
from rolib.data.tasks import SAMPLE, SPLITS, load_task, task_source
from rolib.measures import TASKS

V1 = "ronec/ronec_v1/ronec/conllup"
VARDIAL = "MOROCO/MOROCO/Var-Dial-MRC-2019-eval"
TEXT_FILE = f"{VARDIAL}/TESTSET-MRC-subtasks-1+2+3-VARDIAL2019/test.txt"
GOLD_FILE = f"{VARDIAL}/subtask1/Gold/subtask-1-gold.txt"


# ---- a tiny data root in the official layouts


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


def conllu(sentence_id, words, extra=""):
    """One sentence. Words are (form, UPOS, XPOS), or (form, UPOS, XPOS, tag) with an entity tag."""
    lines = [f"# sent_id = {sentence_id}", "# text = not read"]
    for number, (form, upos, xpos, *entity) in enumerate(words, 1):
        lines.append(
            "\t".join([str(number), form, "lemma", upos, xpos, "_", "0", "root", "_", "_", *entity])
        )
    return "\n".join(lines) + extra + "\n\n"


def reviews(*rows):
    keys = ("index", "title", "content", "starRating")
    return json.dumps({"reviews": [dict(zip(keys, row, strict=True)) for row in rows]})


@pytest.fixture
def root(tmp_path):
    """All five data sets, official layouts, a handful of examples each."""
    for split in ("train", "dev", "test"):
        words = [("Un", "DET", "Timsr"), ("vis", "NOUN", "Ncms-n")]
        write(tmp_path / f"UD_Romanian-RRT/ro_rrt-ud-{split}.conllu", conllu(f"{split}-1", words))
        lines = f'5.0\t"Un vis\u2028de {split}.\tUn" vis.\n0.25\tA\tB\n'
        write(tmp_path / f"RO-STS/dataset/text-similarity/RO-STS.{split}.tsv", lines)
    for split, number in (("train", 1), ("valid", 2), ("test", 3)):
        entry = {
            "id": number,
            "tokens": ["Ana", "Pop", "."],
            "ner_tags": ["B-PERSON", "I-PERSON", "O"],
        }
        write(tmp_path / f"ronec/data/{split}.json", json.dumps([entry | {"ner_ids": [1, 2, 0]}]))
    stars = "1245" * 10
    train = [(str(n), f"Titlu {n}", f"text {n}", star) for n, star in enumerate(stars)]
    write(tmp_path / "LaRoSeDa/data_splitted/laroseda_train.json", reviews(*train))
    write(
        tmp_path / "LaRoSeDa/data_splitted/laroseda_test.json",
        reviews(("90", "Bun", "da", "5"), ("91", "X", "y", "1")),
    )
    for split in SPLITS:
        write(
            tmp_path / f"MOROCO/MOROCO/preprocessed/{split}/samples.txt",
            "7\tUn  text $NE$\twith a tab\n8\tAlt text\n",
        )
        write(tmp_path / f"MOROCO/MOROCO/preprocessed/{split}/dialect_labels.txt", "8\t2\n7\t1\n")
    return tmp_path


def use_vardial(root, texts, golds):
    shutil.rmtree(root / "MOROCO/MOROCO/preprocessed", ignore_errors=True)
    write(root / TEXT_FILE, "".join(text + "\n" for text in texts))
    write(root / GOLD_FILE, "".join(gold + "\n" for gold in golds))


def use_ronec_v1(root, sentences, archive=True):
    """`sentences`: split -> CoNLL-U text; the archive holds all of them, as upstream's does."""
    shutil.rmtree(root / "ronec/data")
    for split in ("dev", "test") if archive else ("train", "dev", "test"):
        write(root / f"{V1}/raw/{split}.conllu", sentences[split])
    if archive:
        (root / f"{V1}/zips").mkdir()
        with zipfile.ZipFile(root / f"{V1}/zips/ronec_iob.zip", "w") as target:
            target.writestr(
                "ronec_iob.conllup", "# global.columns = x\n" + "".join(sentences.values())
            )


def names(dataset):
    feature = dataset.features.get("label") or dataset.features["labels"].feature
    return feature.names


def label_counts(dataset):
    return Counter(map(names(dataset).__getitem__, dataset["label"][:]))


def fold(text):
    return " ".join(unicodedata.normalize("NFC", text).split())


def test_task_table():
    assert list(TASKS) == ["upos", "xpos", "ner", "sapn", "sar", "di", "sts"]
    assert all(name == task.name for name, task in TASKS.items())
    assert [task.kind for task in TASKS.values()] == ["tagging"] * 3 + ["classification"] * 3 + [
        "regression"
    ]
    headlines = [
        "accuracy",
        "accuracy",
        "strict_f1_micro",
        "accuracy",
        "macro_f1",
        "macro_f1",
        "pearson",
    ]
    assert [task.headline for task in TASKS.values()] == headlines


@pytest.mark.parametrize("name", TASKS)
def test_official_layout(root, name):
    splits = load_task(name, root)
    source = task_source(name, root)
    assert list(splits) == list(SPLITS)
    assert source.note == ""
    assert all(file.is_relative_to(root / TASKS[name].dataset) for file in source.files)
    columns = (
        ["id", "tokens", "labels"]
        if TASKS[name].kind == "tagging"
        else ["id", "text", "text_pair", "label"]
    )
    for dataset in splits.values():
        assert dataset.column_names == columns
        assert dataset.features == splits["train"].features
        if name != "sts":
            assert names(dataset) == names(splits["train"])


def test_official_rows(root):
    assert load_task("upos", root)["train"][0] == {
        "id": "train-1",
        "tokens": ["Un", "vis"],
        "labels": [0, 1],
    }
    assert names(load_task("xpos", root)["test"]) == ["Ncms-n", "Timsr"]
    ner = load_task("ner", root)
    assert ner["validation"][0] == {"id": "2", "tokens": ["Ana", "Pop", "."], "labels": [1, 2, 0]}
    assert names(ner["test"]) == ["O", "B-PERSON", "I-PERSON"]
    sts = load_task("sts", root)
    assert (
        sts["validation"][0]["text"] == '"Un vis\u2028de dev.'
        and sts["validation"][0]["text_pair"] == 'Un" vis.'
    )
    assert (
        sts["test"]["label"][:] == [5.0, 0.25] and sts["test"].features["label"].dtype == "float32"
    )
    di = load_task("di", root)
    assert names(di["train"]) == ["Moldavian", "Romanian"]
    assert di["train"][0] == {
        "id": "7",
        "text": "Un  text $NE$\twith a tab",
        "text_pair": "",
        "label": 0,
    }
    sapn, sar = load_task("sapn", root), load_task("sar", root)
    assert names(sapn["train"]) == ["negative", "positive"] and names(sar["train"]) == [
        "1",
        "2",
        "4",
        "5",
    ]
    assert sar["test"][0] == {"id": "90", "text": "Bun", "text_pair": "da", "label": 3}
    assert sapn["test"][0] == {"id": "90", "text": "Bun", "text_pair": "da", "label": 1}


def test_a_carved_split_is_always_the_same():
    for name in ("sapn", "sar"):
        validation = load_task(name, SAMPLE)["validation"]
        assert len(validation) == 23 and validation["id"][:3] == ["331", "366", "262"]


def test_labels_are_taken_over_all_splits(root):
    write(root / "UD_Romanian-RRT/ro_rrt-ud-test.conllu", conllu("test-1", [("5", "NUM", "Mc")]))
    assert names(load_task("upos", root)["train"]) == ["DET", "NOUN", "NUM"]


def test_conllu_skips_multiword_tokens_and_empty_nodes(root):
    rows = [
        ("1-2", "dintr-un", "_", "_", "_"),
        ("1", "dintr-", "_", "ADP", "Spsay"),
        ("1.1", "x", "_", "_", "_"),
    ]
    rows.append(("2", "un", "_", "DET", "Timsr"))
    lines = ["# sent_id = a", *("\t".join([*row, *"_____"]) for row in rows)]
    write(
        root / "UD_Romanian-RRT/ro_rrt-ud-train.conllu", "\n".join(lines)
    )  # no newline at the end either
    assert load_task("xpos", root)["train"][0]["tokens"] == ["dintr-", "un"]


def test_xpos_underscore_is_kept_only_for_the_second_half_of_a_split_word(root):
    path = root / "UD_Romanian-RRT/ro_rrt-ud-train.conllu"
    half = "\n2\tzise\t_\tX\t_" + "\t_" * 5
    write(path, conllu("a", [("propriu", "ADJ", "Afp")], half))
    train = load_task("xpos", root)["train"]
    assert [names(train)[label] for label in train[0]["labels"]] == ["Afp", "_"]
    first, lemma = half.replace("\n2", "# sent_id = a\n1"), half.replace("\t_\tX", "\tzice\tX")
    for text, line in ((first, 2), (conllu("a", [("propriu", "ADJ", "Afp")], lemma), 4)):
        write(path, text)
        with pytest.raises(
            ValueError, match=rf"train\.conllu, line {line}: expected an XPOS tag .*, found '_'"
        ):
            load_task("xpos", root)
    load_task("upos", root)


def test_reconstructed_rrt_stands_in(root):
    folder = root / "UD_Romanian-RRT"
    write(
        folder / "derived/ro_rrt-ud-train.reconstructed.conllu", conllu("b", [("Da", "INTJ", "I")])
    )
    assert task_source("upos", root).note == ""  # the official file comes first
    (folder / "ro_rrt-ud-train.conllu").unlink()
    assert load_task("upos", root)["train"][0]["tokens"] == ["Da"]
    assert "reconstruction" in task_source("upos", root).note


V1_SENTENCES = {
    "train": conllu(
        "1", [("\ufeffAna", "PROPN", "Np", "B-PERSON"), ("\ufeff-\ufeff", "PUNCT", "DASH", "O")]
    ),
    "dev": conllu("2", [("La", "ADP", "Spsa", "O")]),
    "test": conllu("3", [("Iași", "PROPN", "Np", "B-GPE")]),
}


@pytest.mark.parametrize("archive", [True, False])
def test_ronec_v1_stands_in(root, archive):
    use_ronec_v1(root, V1_SENTENCES, archive)
    splits = load_task("ner", root)
    assert {split: dataset["id"][:] for split, dataset in splits.items()} == {
        "train": ["1"], "validation": ["2"], "test": ["3"]}  # fmt: skip
    assert splits["train"][0]["tokens"] == ["Ana", "-"]
    assert names(splits["train"]) == ["O", "B-GPE", "B-PERSON"]
    assert "version 1" in task_source("ner", root).note
    assert task_source("ner", root).files[0].suffix == (".zip" if archive else ".conllu")


def test_laroseda_without_the_train_file(root):
    official = load_task("sar", root)
    folder = root / "LaRoSeDa"
    everything = json.loads((folder / "data_splitted/laroseda_train.json").read_text())["reviews"]
    everything += json.loads((folder / "data_splitted/laroseda_test.json").read_text())["reviews"]
    for name, stars in (("negative", "12"), ("positive", "45")):
        rows = [review for review in everything if review["starRating"] in stars]
        write(folder / f"data/{name}_reviews.json", json.dumps({"reviews": rows[::-1]}))
    (folder / "data_splitted/laroseda_train.json").unlink()
    substitute = load_task("sar", root)
    for split in SPLITS:  # the same reviews, although their order is another one
        assert set(substitute[split]["id"]) == set(official[split]["id"])
    assert label_counts(substitute["validation"]) == {"1": 1, "2": 1, "4": 1, "5": 1}
    assert substitute["test"]["id"][:] == official["test"]["id"][:]
    assert "not in the official test" in task_source("sar", root).note


def test_laroseda_keeps_train_reviews_that_repeat_a_test_review(root):
    rows = [(str(n), "Bun", "da", "5") for n in range(3)] + [
        (str(n), "Slab", f"nu {n}", "1") for n in range(10, 40)
    ]
    write(root / "LaRoSeDa/data_splitted/laroseda_train.json", reviews(*rows))
    splits = load_task("sapn", root)
    assert len(splits["train"]) + len(splits["validation"]) == 33 and len(splits["test"]) == 2
    assert {split for split in ("train", "validation") if "Bun" in splits[split]["text"]} in (
        {"train"},
        {"validation"},
    )


def test_vardial_stands_in_only_without_the_official_texts(root):
    official = load_task("di", root)["train"]["text"][:]
    write(root / TEXT_FILE, "a\n")
    write(root / GOLD_FILE, "MD\n")
    assert load_task("di", root)["train"]["text"][:] == official
    texts = [f"text {n}" for n in range(40)] + ["cafea  neagra\u0306", "cafea neagr\u0103 "]
    use_vardial(root, texts, ["MD", "RO"] * 20 + ["RO", "RO"])
    splits = load_task("di", root)
    assert sorted(row["text"] for dataset in splits.values() for row in dataset) == sorted(texts)
    for dataset in splits.values():
        for row in dataset:
            assert row["text"] == texts[int(row["id"].removeprefix("vardial-")) - 1]
        assert sum("cafea" in text for text in dataset["text"]) in (0, 2)
    # 41 different texts in ten parts: 5 in the first and 4 in the next two. The equal pair counts
    # as one text.
    assert len(splits["test"]) + len(splits["validation"]) in (13, 14)
    assert "VarDial" in task_source("di", root).note


def test_deal_tenths_is_the_same_everywhere():
    texts = [f"text {n}" for n in range(12)]
    assert tasks._deal_tenths(texts, ["a", "b"] * 6) == [2, 1, 3, 8, 4, 0, 0, 6, 5, 9, 1, 7]


def test_deal_tenths_keeps_equal_texts_together():
    texts = [f"cafea neagr\u0103 {n}" for n in range(20)]
    same = [f" cafea\u00a0 neagra\u0306\t{n}" for n in range(20)]
    tenths = tasks._deal_tenths(texts + same, ["x"] * 40)
    assert tenths[:20] == tenths[20:] and sorted(tenths[:20]) == sorted([*range(10)] * 2)


def test_deal_tenths_of_equal_texts_with_two_labels_knows_no_order():
    texts, labels = (
        [f"text {n}" for n in range(15)] + ["text 0", "text 1"],
        ["a"] * 10 + ["b"] * 5 + ["b", "b"],
    )
    assert tasks._deal_tenths(texts[::-1], labels[::-1])[::-1] == tasks._deal_tenths(texts, labels)


@given(
    st.lists(
        st.tuples(st.text("ab \t\u0306\u0103", max_size=4), st.sampled_from("xy")),
        min_size=1,
        max_size=80,
    ),
    st.randoms(),
)
def test_deal_tenths_properties(examples, random):
    texts, labels = [text for text, _ in examples], {fold(text): label for text, label in examples}
    labels = [labels[fold(text)] for text in texts]
    tenths = tasks._deal_tenths(texts, labels)
    part = {}
    for text, tenth in zip(texts, tenths, strict=True):
        assert part.setdefault(fold(text), tenth) == tenth and 0 <= tenth < 10
    # Distinct texts are spread evenly, over all and within each label.
    for wanted in ("xy", "x", "y"):
        groups = {
            fold(text): part[fold(text)]
            for text, label in zip(texts, labels, strict=True)
            if label in wanted
        }
        sizes = [Counter(groups.values())[tenth] for tenth in range(10)]
        assert max(sizes) - min(sizes) <= 1
    order = list(range(len(texts)))
    random.shuffle(order)
    shuffled = tasks._deal_tenths([texts[i] for i in order], [labels[i] for i in order])
    assert shuffled == [tenths[i] for i in order]


# ---- errors: one clear message that names the thing and the remedy


def test_unknown_task(root):
    for read in (load_task, task_source):
        with pytest.raises(
            ValueError,
            match="unknown task 'pos': the tasks are upos, xpos, ner, sapn, sar, di, sts",
        ):
            read("pos", root)


@pytest.mark.parametrize(
    "name, path",
    [
        ("upos", "UD_Romanian-RRT/ro_rrt-ud-train.conllu"),
        ("xpos", "UD_Romanian-RRT/ro_rrt-ud-dev.conllu"),
        ("ner", "ronec/data/train.json"),
        ("ner", "ronec/data/valid.json"),
        ("sapn", "LaRoSeDa/data_splitted/laroseda_train.json"),
        ("sar", "LaRoSeDa/data_splitted/laroseda_test.json"),
        ("di", "MOROCO/MOROCO/preprocessed/validation/samples.txt"),
        ("di", "MOROCO/MOROCO/preprocessed/test/dialect_labels.txt"),
        ("sts", "RO-STS/dataset/text-similarity/RO-STS.dev.tsv"),
    ],
)
def test_missing_file(root, name, path):
    (root / path).unlink()
    hint = "is missing: set ROLIB_DATA, or run `python -m rolib.data.download`"
    for read in (load_task, task_source):
        with pytest.raises(FileNotFoundError, match=re.escape(f"{root / path} {hint}")):
            read(name, root)


RRT, RONEC = "UD_Romanian-RRT/ro_rrt-ud-dev.conllu", "ronec/data/test.json"
STS, LAROSEDA = (
    "RO-STS/dataset/text-similarity/RO-STS.test.tsv",
    "LaRoSeDa/data_splitted/laroseda_test.json",
)
SAMPLES = "MOROCO/MOROCO/preprocessed/train/samples.txt"
DIALECTS = "MOROCO/MOROCO/preprocessed/train/dialect_labels.txt"
GOOD = conllu("a", [("Un", "DET", "Timsr")])
ENTRY = {"id": 1, "tokens": ["Ana"], "ner_tags": ["B-PERSON"]}


@pytest.mark.parametrize(
    "name, path, text, message",
    [
        (
            "upos",
            RRT,
            GOOD + "# sent_id = b\n1\tUn\tDET\n",
            "line 6: expected a number, a word and 8 more columns",
        ),
        ("upos", RRT, GOOD.replace("1\tUn", "one\tUn"), "line 3: expected a number, a word"),
        ("upos", RRT, GOOD.replace("Un", ""), "line 3: expected a number, a word"),
        (
            "upos",
            RRT,
            GOOD.replace("# sent_id = a", "#"),
            "line 3: expected a line '# sent_id = ...'",
        ),
        (
            "upos",
            RRT,
            GOOD.replace("DET", "ART"),
            f"line 3: expected one of {tasks.UPOS}, found 'ART'",
        ),
        ("upos", RRT, GOOD.replace("DET", "_"), "line 3: expected one of ADJ|ADP|"),
        (
            "xpos",
            RRT,
            GOOD.replace("Timsr", "_"),
            "line 3: expected an XPOS tag (such as Ncfsrn), found '_'",
        ),
        ("xpos", RRT, "", "the validation split of task xpos is empty"),
        ("xpos", RRT, GOOD + GOOD, "the validation split of task xpos repeats id 'a'"),
        (
            "ner",
            RONEC,
            json.dumps([ENTRY | {"ner_tags": ["PERSON"]}]),
            r"entry 1, ner_tags, entry 1: String should match pattern '^(O|[BI]-\S+)$', "
            "found 'PERSON'",
        ),
        (
            "ner",
            RONEC,
            json.dumps([ENTRY | {"ner_tags": ["B-"]}]),
            "ner_tags, entry 1: String should match pattern",
        ),
        (
            "ner",
            RONEC,
            json.dumps([ENTRY | {"ner_tags": [None]}]),
            "ner_tags, entry 1: Input should be a valid string",
        ),
        (
            "ner",
            RONEC,
            json.dumps([ENTRY, ENTRY | {"ner_tags": []}]),
            "entry 2: expected a tag for each token",
        ),
        (
            "ner",
            RONEC,
            json.dumps([ENTRY | {"tokens": [], "ner_tags": []}]),
            "entry 1, tokens: List should have at least 1 item",
        ),
        ("ner", RONEC, json.dumps([{"id": 1}]), "entry 1, tokens: Field required"),
        ("ner", RONEC, json.dumps({"id": 1}), "the file: Input should be a valid array"),
        ("ner", RONEC, '[\n{"id": ', "Invalid JSON: EOF while parsing a value at line 2"),
        ("ner", RONEC, "[]", "the test split of task ner is empty"),
        ("sar", LAROSEDA, "[]", "the file: Input should be an object"),
        (
            "sar",
            LAROSEDA,
            '{"reviews": [{"index": "1"}]}',
            "reviews, entry 1, title: Field required",
        ),
        (
            "sar",
            LAROSEDA,
            reviews(("1", "a", "b", "3")),
            "entry 1, starRating: Input should be '1', '2', '4' or '5', found '3'",
        ),
        (
            "sapn",
            LAROSEDA,
            reviews(("1", "a", None, "5")),
            "entry 1, content: Input should be a valid string, found 'None'",
        ),
        ("sapn", LAROSEDA, reviews(), "the test split of task sapn is empty"),
        ("sapn", LAROSEDA, '{"reviews": [', "Invalid JSON: EOF while parsing a list at line 1"),
        (
            "di",
            SAMPLES,
            "7\tUn text\n8 Alt text\n",
            "line 2: expected an id, a tab and a text, found '8 Alt text'",
        ),
        (
            "di",
            SAMPLES,
            "7\tUn text\n9\tAlt text\n",
            f"expected a label for each of the 2 texts of {{root}}/{SAMPLES}",
        ),
        (
            "di",
            DIALECTS,
            "7\t1\n8\t3\n",
            "line 2: expected an id, a tab and one of 1, 2, MD, RO, found '8\\t3'",
        ),
        (
            "sts",
            STS,
            "4.0\tA\tB\n5.0\tA B\n",
            "line 2: expected a score from 0 to 5 and two sentences",
        ),
        ("sts", STS, "4.0\tA\tB\tC\n", "line 1: expected a score from 0 to 5 and two sentences"),
        ("sts", STS, "5.1\tA\tB\n", "line 1: expected a score from 0 to 5"),
        ("sts", STS, "nan\tA\tB\n", "line 1: expected a score from 0 to 5"),
        ("sts", STS, "score\tA\tB\n", "line 1: expected a score from 0 to 5"),
        ("sts", STS, "4.0\tA\t\n", "line 1: expected a score from 0 to 5 and two sentences"),
        ("sts", STS, "", "line 1: expected a score from 0 to 5 and two sentences"),
    ],
)
def test_bad_content(root, name, path, text, message):
    write(root / path, text)
    with pytest.raises(
        ValueError, match=re.escape(message.format(root=root) if "{root}" in message else message)
    ) as error:
        load_task(name, root)
    if "split" not in message:
        assert path.rpartition("/")[2] in str(error.value)


def test_bad_vardial(root):
    use_vardial(root, ["a", "b"], ["MD", "XX"])
    with pytest.raises(
        ValueError, match="subtask-1-gold.txt, line 2: expected one of 1, 2, MD, RO, found 'XX'"
    ):
        load_task("di", root)
    use_vardial(root, ["a", "b"], ["MD"])
    with pytest.raises(
        ValueError,
        match="subtask-1-gold.txt: expected a label for each of the 2 texts of .*test.txt, "
        "found '1 labels'",
    ):
        load_task("di", root)
    use_vardial(root, ["a", "b"], ["MD", "RO"])  # both texts go into the first tenths
    with pytest.raises(ValueError, match="the (train|validation) split of task di is empty"):
        load_task("di", root)


def test_bad_ronec_v1(root):
    bad = V1_SENTENCES | {"dev": conllu("2", [("La", "ADP", "Spsa", "GPE")])}
    use_ronec_v1(root, bad)
    with pytest.raises(
        ValueError, match=r"line \d+: expected an entity tag \(O, B-CLASS or I-CLASS\), found 'GPE'"
    ):
        load_task("ner", root)
    (root / f"{V1}/zips/ronec_iob.zip").write_bytes(b"PK broken")
    with pytest.raises(
        ValueError,
        match="ronec_iob.zip is damaged .*delete it and run `python -m rolib.data.download`",
    ):
        load_task("ner", root)


def test_not_utf8(root):
    (root / STS).write_bytes("4.0\tștiință\tA\n".encode("utf-16"))
    with pytest.raises(ValueError, match="RO-STS.test.tsv is damaged .*delete it"):
        load_task("sts", root)


# ---- the real data (counts of the data sets' own documentation)


def test_real_rrt(real_data):
    counts = {
        "train": (8043, 185125, 476),
        "validation": (752, 17073, 320),
        "test": (729, 16324, 316),
    }
    xpos, upos = load_task("xpos", real_data), load_task("upos", real_data)
    assert len(names(xpos["train"])) == 490 and len(names(upos["train"])) == 16
    for split, (sentences, tokens, xpos_tags) in counts.items():
        words = [word for row in xpos[split]["tokens"][:] for word in row]
        xpos_labels, upos_labels = (
            [x for row in d[split]["labels"][:] for x in row] for d in (xpos, upos)
        )
        assert len(xpos[split]) == len(upos[split]) == sentences
        assert len(words) == len(xpos_labels) == len(upos_labels) == tokens
        assert len(set(xpos_labels)) == xpos_tags and len(set(upos_labels)) == 16
        # Rodna's copy of the treebank has the same words, one a line.
        column = {"validation": "dev"}.get(split, split)
        copy = (real_data / f"Rodna/data/training/tagger/ro_rrt-ud-{column}.tab").read_text(
            encoding="utf-8"
        )
        assert words == [line.split("\t")[0] for line in copy.split("\n") if line]


def entities(dataset):
    label_names = names(dataset)
    return sum(
        label_names[label].startswith("B-") for labels in dataset["labels"][:] for label in labels
    )


def test_real_ronec_v1(real_data, tmp_path):
    shutil.copytree(real_data / V1, tmp_path / V1)  # v1 only, whatever else the folder holds
    splits = load_task("ner", tmp_path)
    counts = [(len(d), sum(map(len, d["tokens"][:])), entities(d)) for d in splits.values()]
    assert counts == [(4173, 144009, 21009), (522, 18374, 2768), (522, 18084, 2600)]
    assert len(names(splits["train"])) == 33 and names(splits["train"])[0] == "O"
    assert not any(
        "\ufeff" in token for d in splits.values() for tokens in d["tokens"][:] for token in tokens
    )
    ids = [row_id for dataset in splits.values() for row_id in dataset["id"]]
    with zipfile.ZipFile(real_data / V1 / "zips/ronec_iob.zip") as archive:
        text = archive.read("ronec_iob.conllup").decode()
    assert len(ids) == len(set(ids)) == 5217 and set(ids) == set(
        re.findall(r"(?m)^# sent_id = (.*)$", text)
    )


def test_real_ronec_v2(real_data, tmp_path):
    (tmp_path / "ronec/data").mkdir(parents=True)
    for source, target in (("valid", "train"), ("valid", "valid"), ("test", "test")):
        shutil.copy(real_data / f"ronec/data/{source}.json", tmp_path / f"ronec/data/{target}.json")
    splits = load_task("ner", tmp_path)
    counts = [(len(d), sum(map(len, d["tokens"][:])), entities(d)) for d in splits.values()]
    assert counts[1:] == [(1330, 59045, 8553), (2000, 88469, 12885)]
    assert len(names(splits["train"])) == 31
    assert not {*splits["validation"]["id"]} & {*splits["test"]["id"]}


def test_real_laroseda(real_data):
    sar, sapn = load_task("sar", real_data), load_task("sapn", real_data)
    assert label_counts(sar["test"]) == {"1": 1102, "2": 398, "4": 244, "5": 1256}
    carved = label_counts(sar["train"]) + label_counts(sar["validation"])
    assert carved == {"1": 4459, "2": 1541, "4": 1018, "5": 4982}
    for label, count in label_counts(sar["validation"]).items():
        assert abs(count - carved[label] / 10) < 5
    upstream = {}
    for name in ("negative", "positive"):
        reviews = json.loads(
            (real_data / f"LaRoSeDa/data/{name}_reviews.json").read_text(encoding="utf-8")
        )["reviews"]
        upstream |= {review["index"]: review for review in reviews}
    for split in SPLITS:
        assert sapn[split]["id"][:] == sar[split]["id"][:]
        for row, stars in zip(sapn[split].to_list(), sar[split]["label"][:], strict=True):
            review = upstream.pop(row["id"])  # popped: the splits are disjoint
            assert (row["text"], row["text_pair"]) == (review["title"], review["content"])
            assert "1245"[stars] == review["starRating"] and row["label"] == (
                review["starRating"] in "45"
            )
    assert not upstream
    texts = {
        split: {(fold(row["text"]), fold(row["text_pair"])) for row in sar[split].to_list()}
        for split in SPLITS
    }
    assert not texts["train"] & texts["validation"]
    assert (texts["train"] | texts["validation"]) & texts["test"]  # upstream's repeats are kept


def test_real_sts(real_data):
    splits = load_task("sts", real_data)
    assert [len(dataset) for dataset in splits.values()] == [5749, 1500, 1379]
    means = [round(sum(dataset["label"]) / len(dataset), 3) for dataset in splits.values()]
    assert means == [2.701, 2.364, 2.608]
    for split, name in zip(SPLITS, ("train", "dev", "test"), strict=True):
        content = (real_data / f"RO-STS/dataset/text-similarity/RO-STS.{name}.tsv").read_bytes()
        lines = [f"{row['text']}\t{row['text_pair']}".encode() for row in splits[split].to_list()]
        assert lines == [line.split(b"\t", 1)[1] for line in content.split(b"\n")[:-1]]


def copy_vardial(real_data, target):
    for path in (TEXT_FILE, GOLD_FILE):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(real_data / path, target / path)
    return target


def test_real_vardial(real_data, tmp_path):
    splits = load_task("di", copy_vardial(real_data, tmp_path))
    total = sum((label_counts(dataset) for dataset in splits.values()), Counter())
    assert total == {"Moldavian": 2718, "Romanian": 3205}
    sizes = {split: len(dataset) / 5923 for split, dataset in splits.items()}
    assert sizes == pytest.approx({"train": 0.7, "validation": 0.1, "test": 0.2}, abs=0.003)
    for dataset in splits.values():
        assert label_counts(dataset)["Romanian"] / len(dataset) == pytest.approx(
            3205 / 5923, abs=0.005
        )
    lines = (real_data / TEXT_FILE).read_bytes().decode().split("\n")[:-1]
    golds = (real_data / GOLD_FILE).read_text().split()
    home = {}
    for split, dataset in splits.items():
        for row in dataset.to_list():
            number = int(row["id"].removeprefix("vardial-")) - 1
            assert row["text"] == lines[number] and row["label"] == ["MD", "RO"].index(
                golds[number]
            )
            assert home.setdefault(fold(row["text"]), split) == split


def test_real_moroco_labels(real_data, tmp_path):
    """The official label files, with stand-in texts: the texts are not always there."""
    for split in SPLITS:
        folder = tmp_path / f"MOROCO/MOROCO/preprocessed/{split}"
        folder.mkdir(parents=True)
        shutil.copy(real_data / f"MOROCO/MOROCO/preprocessed/{split}/dialect_labels.txt", folder)
        write(
            folder / "samples.txt",
            re.sub(r"\t.*", "\ttext", (folder / "dialect_labels.txt").read_text()),
        )
    splits = load_task("di", tmp_path)
    counts = [(label_counts(d)["Moldavian"], label_counts(d)["Romanian"]) for d in splits.values()]
    assert counts == [(9968, 11751), (2716, 3205), (2719, 3205)]


@pytest.mark.parametrize("name", ["sapn", "di"])
def test_real_data_reads_the_same_twice(real_data, name):
    first, second = load_task(name, real_data), load_task(name, real_data)
    assert all(first[split].to_dict() == second[split].to_dict() for split in SPLITS)


# ---- the built-in sample


@pytest.mark.parametrize("name", TASKS)
def test_sample(name):
    if not (SAMPLE / TASKS[name].dataset).is_dir():
        pytest.skip("this checkout has no sample of the data set")
    splits = load_task(name, SAMPLE)
    assert sum(map(len, splits.values())) >= 240
    assert all(len(dataset) > 0 for dataset in splits.values())
    assert task_source(name, SAMPLE).note == ""


# --- fuzz -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["upos", "ner", "sapn", "di", "sts"])
def test_mutated_files_give_a_result_or_an_error_that_names_the_file(name, tmp_path):
    """One for each data set. ROLIB_FUZZ is the number of mutations: 1000 in a long run."""
    rng = random.Random(name)
    shutil.copytree(SAMPLE / TASKS[name].dataset, tmp_path / TASKS[name].dataset)
    files = task_source(name, tmp_path).files
    for _ in range(int(os.environ.get("ROLIB_FUZZ", "100"))):
        file = rng.choice(files)
        whole = file.read_bytes()
        content = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(content))
            size = rng.choice([0, 1, 1, 20])
            content[place : place + size] = rng.choice([b"", b"\n", b"\t", b'"', b"\xff", b"\0a"])
        file.write_bytes(content[: rng.choice([None, None, rng.randrange(len(whole))])])
        try:
            assert all(load_task(name, tmp_path).values())
        except ValueError as error:
            named = [str(one) for one in files] + [f"{TASKS[name].dataset}: the "]
            assert str(error).startswith(tuple(named)) and "\n" not in str(error), error
        file.write_bytes(whole)

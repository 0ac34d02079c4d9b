"""Five data sets, seven measures, one schema: the readers of the upstream formats.

The data root holds one folder per data set in the upstream repository's own layout, so that the built-in sample, a
mirror and the download cache are read by the same code. Texts stay as upstream has them; normalising comes later.
"""

import hashlib
import re
import unicodedata
import zipfile
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from rolib.measures import TASKS

SAMPLE = Path(__file__).parent / "sample"
SPLITS = ("train", "validation", "test")
DIALECTS = {
    "1": "Moldavian",
    "2": "Romanian",
    "MD": "Moldavian",
    "RO": "Romanian",
}  # official, VarDial
ENTITY_TAG = r"O|[BI]-\S+"
UPOS = "ADJ|ADP|ADV|AUX|CCONJ|DET|INTJ|NOUN|NUM|PART|PRON|PROPN|PUNCT|SCONJ|SYM|VERB|X"
TAGS = {  # measure: its column in CoNLL-U, what a tag matches, and that in words; RONEC v1 adds entities as an eleventh column
    "upos": (3, UPOS, f"one of {UPOS}"),
    "xpos": (4, "[^_].*", "an XPOS tag (such as Ncfsrn)"),
    "ner": (10, ENTITY_TAG, "an entity tag (O, B-CLASS or I-CLASS)"),
}


class Review(BaseModel):
    """An entry of LaRoSeDa's JSON files."""

    id: str = Field(alias="index")
    text: str = Field(alias="title")
    text_pair: str = Field(alias="content")
    label: Literal["1", "2", "4", "5"] = Field(alias="starRating")  # there is no 3


class Reviews(BaseModel):
    """A LaRoSeDa JSON file."""

    reviews: list[Review]


class AnnotatedSentence(BaseModel):
    """An entry of RONEC's JSON files (version 2)."""

    id: str = Field(coerce_numbers_to_str=True)
    tokens: list[str] = Field(min_length=1)
    labels: list[Annotated[str, Field(pattern=f"^({ENTITY_TAG})$")]] = Field(alias="ner_tags")


class Source(NamedTuple):
    files: tuple[Path, ...]  # what load_task reads
    note: str  # "" for the official files, else one sentence about the substitute


# fmt: off
_V1, _VARDIAL = "ronec_v1/ronec/conllup/", "MOROCO/Var-Dial-MRC-2019-eval/"
_LAYOUTS = [  # (data set, files, note); of a data set the best first: a layout is taken when its first file is there
    ("UD_Romanian-RRT", ["ro_rrt-ud-train.conllu", "ro_rrt-ud-dev.conllu", "ro_rrt-ud-test.conllu"], ""),
    ("UD_Romanian-RRT", ["derived/ro_rrt-ud-train.reconstructed.conllu", "ro_rrt-ud-dev.conllu", "ro_rrt-ud-test.conllu"],
     "The official train file is not here: train is a reconstruction of it from the Rodna tagger's copy."),
    ("ronec", ["data/train.json", "data/valid.json", "data/test.json"], ""),
    ("ronec", [_V1 + "raw/train.conllu", _V1 + "raw/dev.conllu", _V1 + "raw/test.conllu"],
     "RONEC version 1 stands in for version 2."),
    ("ronec", [_V1 + "zips/ronec_iob.zip", _V1 + "raw/dev.conllu", _V1 + "raw/test.conllu"],
     "RONEC version 1 stands in for version 2; its train split is every sentence that is not in dev or test."),
    ("LaRoSeDa", ["data_splitted/laroseda_train.json", "data_splitted/laroseda_test.json"], ""),
    ("LaRoSeDa", ["data/negative_reviews.json", "data/positive_reviews.json", "data_splitted/laroseda_test.json"],
     "The official train file is not here: train is every review that is not in the official test file."),
    ("MOROCO", [f"MOROCO/preprocessed/{split}/{name}.txt" for name in ("samples", "dialect_labels") for split in SPLITS], ""),
    ("MOROCO", [_VARDIAL + "TESTSET-MRC-subtasks-1+2+3-VARDIAL2019/test.txt", _VARDIAL + "subtask1/Gold/subtask-1-gold.txt"],
     "The official texts are not here: all splits are carved (70, 10, 20 %) from MOROCO's VarDial 2019 fold."),
    ("RO-STS", [f"dataset/text-similarity/RO-STS.{split}.tsv" for split in ("train", "dev", "test")], ""),
]
# fmt: on


def task_source(name, data_root) -> Source:
    """Return the files that load_task reads for a task and a note on any substitute for an official file.

    Raises ValueError for an unknown task and FileNotFoundError for a missing file.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}: the tasks are {', '.join(TASKS)}")
    folder = Path(data_root) / TASKS[name].dataset
    layouts = [(files, note) for dataset, files, note in _LAYOUTS if dataset == TASKS[name].dataset]
    names, note = next(
        (layout for layout in layouts if (folder / layout[0][0]).is_file()), layouts[0]
    )
    files = tuple(folder / file for file in names)
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is missing: set ROLIB_DATA to a mirror, or run `python -m rolib.data.download`"
            )
    return Source(files, note)


def load_task(name, data_root):
    """A DatasetDict of one task's train, validation and test splits, from a data root in the upstream layout.

    Rows: `id, tokens, labels` for tagging; `id, text, text_pair, label` for classification and regression (text_pair
    is "" where there is none; LaRoSeDa: title and content; STS: label is a float from 0 to 5). Label names are sorted
    and taken over all splits (O first for NER). LaRoSeDa has no official validation split: a tenth of train, the
    same for SAPN and SAR, is held out. Ids are unique within a split.
    Raises ValueError for an unknown task, a malformed line, an unknown label, a repeated id or an empty split, and
    FileNotFoundError for a missing file.
    """
    # Imported late: every command reads TASKS to check its parameters, and datasets takes seconds to import.
    from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

    files, task = task_source(name, data_root).files, TASKS[name]
    splits = _READERS[task.dataset](name, files)
    for split, rows in splits.items():
        if not rows:
            raise ValueError(
                f"{task.dataset}: the {split} split of task {name} is empty, check the data root"
            )
        [(commonest, count)] = Counter(row["id"] for row in rows).most_common(1)
        if count > 1:
            raise ValueError(f"{task.dataset}: id {commonest!r} is repeated in the {split} split")
    rows = list(chain(*splits.values()))
    if task.kind == "tagging":
        names = sorted(
            {label for row in rows for label in row["labels"]},
            key=lambda label: (label != "O", label),
        )
        features = {
            "id": Value("string"),
            "tokens": List(Value("string")),
            "labels": List(ClassLabel(names=names)),
        }
    else:
        label = (
            Value("float32")
            if task.kind == "regression"
            else ClassLabel(names=sorted({row["label"] for row in rows}))
        )
        features = {
            "id": Value("string"),
            "text": Value("string"),
            "text_pair": Value("string"),
            "label": label,
        }
    return DatasetDict(
        {split: Dataset.from_list(rows, Features(features)) for split, rows in splits.items()}
    )


def _tagging(name, files):
    splits = {}
    for split, file in zip(SPLITS, files):
        splits[split] = (
            _json_sentences(file)
            if file.suffix == ".json"
            else _conllu_sentences(file, *TAGS[name])
        )
    if files[0].suffix == ".zip":  # RONEC v1: the archive holds dev and test too
        splits["train"] = _without(splits["train"], splits["validation"] + splits["test"])
    return splits


def _laroseda(name, files):
    *others, test = [_json(file, Reviews)["reviews"] for file in files]
    train = list(chain(*others))
    if len(others) == 2:  # the two files of all reviews, not the official train file
        train = _without(train, test)
    splits = _deal(train, ["validation"] + ["train"] * 9) | {"test": test}
    if name == "sapn":
        for row in train + test:
            row["label"] = "negative" if row["label"] in "12" else "positive"
    return splits


def _moroco(name, files):
    official, half, parts = len(files) > 2, len(files) // 2, []
    line_id, words = (r"(?P<id>[^\t]+)\t", "an id, a tab and ") if official else ("", "")
    label, label_words = f"(?P<label>{'|'.join(DIALECTS)})", f"{words}one of {', '.join(DIALECTS)}"
    for samples, golds in zip(files[:half], files[half:]):
        rows = _line_rows(samples, line_id + "(?P<text>.*)", words + "a text", "vardial-")
        labels = _line_rows(golds, line_id + label, label_words, "vardial-")
        matching = sorted(row["id"] for row in rows) == sorted(row["id"] for row in labels)
        _expect(
            matching,
            golds,
            f"a label for each of the {len(rows)} texts of {samples}",
            f"{len(labels)} labels",
        )
        dialects = {row["id"]: DIALECTS[row["label"]] for row in labels}
        parts.append([row | {"label": dialects[row["id"]]} for row in rows])
    return (
        dict(zip(SPLITS, parts))
        if official
        else _deal(parts[0], ["test"] * 2 + ["validation"] + ["train"] * 7)
    )


def _ro_sts(name, files):
    score, sentence = (
        r"[0-4](\.\d+)?|5(\.0+)?",
        r"[^\t]*[^\t\s][^\t]*",
    )  # quotation marks are text here, so no CSV reader
    pattern = rf"(?P<label>{score})\t(?P<text>{sentence})\t(?P<text_pair>{sentence})"
    expected = "a score from 0 to 5 and two sentences, separated by tabs"
    splits = {
        split: _line_rows(file, pattern, expected, f"{split}-")
        for split, file in zip(SPLITS, files)
    }
    return {
        split: [row | {"label": float(row["label"])} for row in rows]
        for split, rows in splits.items()
    }


_READERS = {
    "UD_Romanian-RRT": _tagging,
    "ronec": _tagging,
    "LaRoSeDa": _laroseda,
    "MOROCO": _moroco,
    "RO-STS": _ro_sts,
}


def _conllu_sentences(path, column, pattern, expected):
    """Sentences of a CoNLL-U file (https://universaldependencies.org/format.html): forms, and labels from `column`."""
    width, rows, row = max(10, column + 1), [], None
    columns = f"a number, a word and {width - 2} more columns, separated by tabs"
    for number, line in enumerate(_lines(path), 1):
        fields, where = line.split("\t"), f"{path}, line {number}"
        if line.startswith("# sent_id = "):
            row = {"id": line.removeprefix("# sent_id = "), "tokens": [], "labels": []}
            rows.append(row)
        elif not line:
            row = None
        elif not line.startswith("#"):
            _expect(row is not None, where, "a line '# sent_id = ...' before the first word", line)
            token = len(fields) == width and fields[1].strip(
                "\ufeff"
            )  # RONEC v1 has some byte order marks
            _expect(token and re.fullmatch(r"\d+([-.]\d+)?", fields[0]), where, columns, line)
            if not fields[0].isdigit():
                continue  # a multi-word token or an empty node
            # The second half of a wrongly split word (goeswith in UD) may have neither lemma nor XPOS of its own.
            second_half = column == 4 and fields[2] == fields[4] == "_" and row["tokens"]
            _expect(
                second_half or re.fullmatch(pattern, fields[column]),
                where,
                expected,
                fields[column],
            )
            row["tokens"].append(token)
            row["labels"].append(fields[column])
    return [row for row in rows if row["tokens"]]


def _json_sentences(path):
    rows = _json(path, list[AnnotatedSentence])
    for number, row in enumerate(rows, 1):
        _expect(
            len(row["tokens"]) == len(row["labels"]),
            f"{path}, entry {number}",
            "a tag for each token",
            str(row),
        )
    return rows


def _without(rows, held_out):
    held_out = {row["id"] for row in held_out}
    return [row for row in rows if row["id"] not in held_out]


def _deal(rows, homes):
    """Deal rows into splits; `homes` names the split of each of the ten tenths."""
    tenths = _deal_tenths(
        [row["text"] + "\n" + row["text_pair"] for row in rows], [row["label"] for row in rows]
    )
    return {
        split: [row for row, tenth in zip(rows, tenths) if homes[tenth] == split]
        for split in SPLITS
    }


def _deal_tenths(texts, labels):
    """Deal examples into ten nearly equal parts (0 to 9), stratified by label; equal texts go into the same part.

    Texts are equal when they agree after NFC and white-space folding. A hash of the text decides, not a random
    generator: the outcome depends neither on the order of the examples nor on the version of a library.
    """
    folded = (" ".join(unicodedata.normalize("NFC", text).split()) for text in texts)
    keys = [hashlib.sha256(text.encode()).digest() for text in folded]
    label_of = dict(
        sorted(zip(keys, labels), reverse=True)
    )  # where equal texts have several labels, the first in the alphabet
    turns = {
        key: turn for turn, key in enumerate(sorted(label_of, key=lambda key: (label_of[key], key)))
    }
    return [turns[key] % 10 for key in keys]


def _expect(good, where, expected, found):
    if not good:
        raise ValueError(f"{where}: expected {expected}, found {found[:80]!r}")


def _line_rows(path, pattern, expected, prefix):
    """A row a line: the named groups of `pattern`; where it names no id, `prefix` and the line's number are it."""
    rows = []
    for number, line in enumerate(_lines(path), 1):
        match = re.fullmatch(pattern, line)
        _expect(match, f"{path}, line {number}", expected, line)
        rows.append({"id": f"{prefix}{number}", "text": "", "text_pair": ""} | match.groupdict())
    return rows


def _text(path):
    try:
        file = zipfile.Path(path, "ronec_iob.conllup") if path.suffix == ".zip" else path
        return file.read_bytes().decode()
    except (UnicodeDecodeError, FileNotFoundError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is damaged ({error}): delete it and run `python -m rolib.data.download`"
        ) from error


def _lines(path):
    """The lines of a file, cut at newlines only: str.splitlines would also cut inside texts (U+2028 and the like)."""
    lines = _text(path).split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _json(path, kind):
    """The content of a JSON file, checked as the type `kind`, as plain values."""
    adapter = TypeAdapter(kind)
    try:
        return adapter.dump_python(adapter.validate_json(_text(path)))
    except ValidationError as error:
        fault = error.errors()[0]
        place = (
            ", ".join(f"entry {key + 1}" if isinstance(key, int) else key for key in fault["loc"])
            or "the file"
        )
        raise ValueError(
            f"{path}, {place}: {fault['msg']}, found {str(fault['input'])[:80]!r}"
        ) from None

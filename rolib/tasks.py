"""Five data sets, seven measures, one schema: the readers of the upstream formats.

The data root holds one folder per data set in the upstream repository's own layout, so that the built-in sample, a
mirror and the download cache are read by the same code. Texts stay as upstream has them; normalising comes later.
"""

import hashlib
import re
import unicodedata
import zipfile
from collections import Counter
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

SAMPLE = Path(__file__).parent / "sample"
SPLITS = ("train", "validation", "test")
UPOS_TAGS = "ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X".split()
DIALECTS = {"1": "Moldavian", "2": "Romanian", "MD": "Moldavian", "RO": "Romanian"}  # official, VarDial
ENTITY_TAG = r"O|[BI]-\S+"
LEMMA, UPOS, XPOS, ENTITY = 2, 3, 4, 10  # columns of CoNLL-U; RONEC v1 adds the entity tag as an eleventh


@dataclass(frozen=True)
class Task:
    name: str
    kind: str  # "tagging" | "classification" | "regression"
    dataset: str  # folder name under the data root
    title: str
    protocol: str  # one of PROTOCOLS
    headline: str  # the score that picks the best checkpoint and fills the summary table


class Review(BaseModel):
    """An entry of LaRoSeDa's JSON files."""

    index: str
    title: str
    content: str
    starRating: Literal["1", "2", "4", "5"]  # there is no 3


class Reviews(BaseModel):
    """A LaRoSeDa JSON file."""

    reviews: list[Review]


class AnnotatedSentence(BaseModel):
    """An entry of RONEC's JSON files (version 2)."""

    id: int | str
    tokens: Annotated[list[str], Field(min_length=1)]
    ner_tags: list[Annotated[str, Field(pattern=f"^({ENTITY_TAG})$")]]

    @model_validator(mode="after")
    def _a_tag_for_each_token(self):
        if len(self.tokens) != len(self.ner_tags):
            raise ValueError(f"{len(self.tokens)} tokens but {len(self.ner_tags)} ner_tags")
        return self


@dataclass(frozen=True)
class Source:
    files: tuple[Path, ...]  # what load_task reads
    note: str  # "" for the official files, else one sentence about the substitute


# The ways in which the literature runs each measure: protocol -> headline score. The first is the default here. The model
# cards call their UPOS and XPOS figures macro-F1 and their NER figure F1, but these equal accuracy and boundary F1.
PROTOCOLS = {
    "upos": {"accuracy": "accuracy", "macro_f1": "macro_f1"},  # over words
    "xpos": {"accuracy": "accuracy", "macro_f1": "macro_f1"},
    "ner": {"strict": "strict_f1_micro", "boundary": "boundary_f1_micro"},  # a span's class counts, or its borders alone
    "sapn": {"title+content": "accuracy", "content": "accuracy"},  # a review is read as a pair, or without its title
    "sar": {"title+content": "macro_f1", "content": "macro_f1"},
    "di": {"macro_f1": "macro_f1", "accuracy": "accuracy"},
    "sts": {"pair": "pearson", "bi-encoder": "pearson"},  # both sentences read together, or apart and then compared
}

TASKS = {
    name: Task(name, kind, dataset, title, *next(iter(PROTOCOLS[name].items())))
    for name, kind, dataset, title in (
        ("upos", "tagging", "UD_Romanian-RRT", "Universal part of speech (UPOS)"),
        ("xpos", "tagging", "UD_Romanian-RRT", "Romanian part of speech and morphology (XPOS)"),
        ("ner", "tagging", "ronec", "Named entities (NER)"),
        ("sapn", "classification", "LaRoSeDa", "Sentiment, positive or negative (SAPN)"),
        ("sar", "classification", "LaRoSeDa", "Sentiment, star rating (SAR)"),
        ("di", "classification", "MOROCO", "Dialect, Moldavian or Romanian (DI)"),
        ("sts", "regression", "RO-STS", "Semantic textual similarity (STS)"),
    )
}

# fmt: off
# Per data set, the best layout first: (files that decide for it, further files that it needs, note).
_V1 = "ronec_v1/ronec/conllup/"
_VARDIAL = "MOROCO/Var-Dial-MRC-2019-eval/"
_LAYOUTS = {
    "UD_Romanian-RRT": [
        (["ro_rrt-ud-train.conllu"], ["ro_rrt-ud-dev.conllu", "ro_rrt-ud-test.conllu"], ""),
        (["derived/ro_rrt-ud-train.reconstructed.conllu"], ["ro_rrt-ud-dev.conllu", "ro_rrt-ud-test.conllu"],
         "The official train file is not here: train is a reconstruction of it from the Rodna tagger's copy."),
    ],
    "ronec": [
        (["data/train.json"], ["data/valid.json", "data/test.json"], ""),
        ([_V1 + "raw/train.conllu"], [_V1 + "raw/dev.conllu", _V1 + "raw/test.conllu"],
         "RONEC version 1 stands in for version 2."),
        ([_V1 + "zips/ronec_iob.zip"], [_V1 + "raw/dev.conllu", _V1 + "raw/test.conllu"],
         "RONEC version 1 stands in for version 2; its train split is every sentence that is not in dev or test."),
    ],
    "LaRoSeDa": [
        (["data_splitted/laroseda_train.json"], ["data_splitted/laroseda_test.json"], ""),
        (["data/negative_reviews.json", "data/positive_reviews.json"], ["data_splitted/laroseda_test.json"],
         "The official train file is not here: train is every review that is not in the official test file."),
    ],
    "MOROCO": [
        ([f"MOROCO/preprocessed/{split}/samples.txt" for split in SPLITS],
         [f"MOROCO/preprocessed/{split}/dialect_labels.txt" for split in SPLITS], ""),
        ([_VARDIAL + "TESTSET-MRC-subtasks-1+2+3-VARDIAL2019/test.txt"],
         [_VARDIAL + "subtask1/Gold/subtask-1-gold.txt"],
         "The official texts are not here: all splits are carved (70, 10, 20 %) from MOROCO's VarDial 2019 fold."),
    ],
    "RO-STS": [([f"dataset/text-similarity/RO-STS.{split}.tsv" for split in ("train", "dev", "test")], [], "")],
}
# fmt: on


def with_protocol(name: str, protocol: str) -> Task:
    """The task run by one of its PROTOCOLS; KeyError for another."""
    return replace(TASKS[name], protocol=protocol, headline=PROTOCOLS[name][protocol])


def load_task(name, data_root):
    """A DatasetDict of one task's train, validation and test splits, from a data root in the upstream layout.

    Rows: `id, tokens, labels` for tagging; `id, text, text_pair, label` for classification and regression (text_pair
    is "" where there is none; LaRoSeDa: title and content; STS: label is a float from 0 to 5). Label names are sorted
    and taken over all splits (O first for NER). LaRoSeDa has no official validation split: a tenth of train, the
    same for SAPN and SAR, is held out. Ids are unique within a split.
    Raises ValueError for an unknown task, a malformed line, an unknown label, a repeated id or an empty split, and
    FileNotFoundError for a missing file.
    """
    files = task_source(name, data_root).files
    return _as_datasets(TASKS[name], _READERS[TASKS[name].dataset](name, files))


def task_source(name, data_root) -> Source:
    """Return the files that load_task reads for a task and a note on any substitute for an official file.

    Raises ValueError for an unknown task and FileNotFoundError for a missing file.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}: the tasks are {', '.join(TASKS)}")
    folder = Path(data_root) / TASKS[name].dataset
    layouts = _LAYOUTS[TASKS[name].dataset]
    found = (layout for layout in layouts if all((folder / file).is_file() for file in layout[0]))
    deciding, others, note = next(found, layouts[0])
    files = tuple(folder / file for file in deciding + others)
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: set ROLIB_DATA to a mirror, or run `python -m rolib.download`")
    return Source(files, note)


def _as_datasets(task, splits):
    # Imported late: every command reads TASKS to check its parameters, and datasets takes seconds to import.
    from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

    for split, rows in splits.items():
        if not rows:
            raise ValueError(f"{task.dataset}: the {split} split of task {task.name} is empty, check the data root")
        [(commonest, count)] = Counter(row["id"] for row in rows).most_common(1)
        if count > 1:
            raise ValueError(f"{task.dataset}: id {commonest!r} is repeated in the {split} split")
    rows = list(chain.from_iterable(splits.values()))
    if task.kind == "tagging":
        names = sorted({label for row in rows for label in row["labels"]}, key=lambda label: (label != "O", label))
        features = {"id": Value("string"), "tokens": List(Value("string")), "labels": List(ClassLabel(names=names))}
    else:
        label = Value("float32") if task.kind == "regression" else ClassLabel(names=sorted({r["label"] for r in rows}))
        features = {"id": Value("string"), "text": Value("string"), "text_pair": Value("string"), "label": label}
    return DatasetDict({split: Dataset.from_list(rows, Features(features)) for split, rows in splits.items()})


def _read_rrt(name, files):
    return {split: _sentences(file, UPOS if name == "upos" else XPOS) for split, file in zip(SPLITS, files)}


def _read_ronec(name, files):
    read = _json_sentences if files[0].suffix == ".json" else _sentences
    splits = {split: read(file, ENTITY) for split, file in zip(SPLITS, files)}
    if files[0].suffix == ".zip":  # the archive holds dev and test too
        held_out = {row["id"] for split in ("validation", "test") for row in splits[split]}
        splits["train"] = [row for row in splits["train"] if row["id"] not in held_out]
    return splits


def _read_laroseda(name, files):
    *others, test = [_reviews(file) for file in files]
    train = list(chain.from_iterable(others))
    if len(others) == 2:  # the two files of all reviews, not the official train file
        held_out = {row["id"] for row in test}
        train = [row for row in train if row["id"] not in held_out]
    tenths = _deal_tenths([row["text"] + "\n" + row["text_pair"] for row in train], [row["label"] for row in train])
    if name == "sapn":
        for row in train + test:
            row["label"] = "negative" if row["label"] in "12" else "positive"
    validation = [row for row, tenth in zip(train, tenths) if tenth == 0]
    return {"train": [row for row, tenth in zip(train, tenths) if tenth > 0], "validation": validation, "test": test}


def _read_moroco(name, files):
    if len(files) == 2:
        return _read_vardial(*files)
    splits = {}
    for split, samples, golds in zip(SPLITS, files[:3], files[3:]):
        texts, labels = _id_and_value(samples), _id_and_value(golds)
        if sorted(line_id for line_id, _ in texts) != sorted(line_id for line_id, _ in labels):
            raise ValueError(f"{golds}: expected the same ids as in {samples}")
        labels = {line_id: DIALECTS[_known(gold, DIALECTS, f"{golds}, id {line_id}")] for line_id, gold in labels}
        splits[split] = [{"id": i, "text": text, "text_pair": "", "label": labels[i]} for i, text in texts]
    return splits


def _read_vardial(samples, golds):
    texts, labels, splits = _lines(samples), _lines(golds), {split: [] for split in SPLITS}
    if len(texts) != len(labels):
        raise ValueError(f"{golds}: expected {len(texts)} labels, one a line of {samples}, found {len(labels)}")
    labels = [DIALECTS[_known(label, DIALECTS, f"{golds}, line {number}")] for number, label in enumerate(labels, 1)]
    for number, (text, label, tenth) in enumerate(zip(texts, labels, _deal_tenths(texts, labels)), 1):
        row = {"id": f"vardial-{number}", "text": text, "text_pair": "", "label": label}
        splits["test" if tenth < 2 else "validation" if tenth == 2 else "train"].append(row)
    return splits


def _read_ro_sts(name, files):
    return {split: _pairs(file, split) for split, file in zip(SPLITS, files)}


_READERS = {
    "UD_Romanian-RRT": _read_rrt,
    "ronec": _read_ronec,
    "LaRoSeDa": _read_laroseda,
    "MOROCO": _read_moroco,
    "RO-STS": _read_ro_sts,
}


def _sentences(path, column):
    """Sentences of a CoNLL-U file (https://universaldependencies.org/format.html): forms, and labels from `column`."""
    width = 11 if column == ENTITY else 10
    rows, sentence_id, tokens, labels = [], None, [], []
    for number, line in enumerate([*_lines(path), ""], 1):  # the added blank line closes the last sentence
        fields = line.split("\t")
        if line.startswith("# sent_id = "):
            sentence_id = line.removeprefix("# sent_id = ")
        elif not line:
            if tokens and sentence_id is None:
                raise _malformed(path, number, "a line '# sent_id = ...' in the sentence that ends here", line)
            if tokens:
                rows.append({"id": sentence_id, "tokens": tokens, "labels": labels})
            sentence_id, tokens, labels = None, [], []
        elif line.startswith("#") or (len(fields) == width and re.fullmatch(r"\d+[-.]\d+", fields[0])):
            continue  # a comment, a multi-word token or an empty node
        elif len(fields) != width or not fields[0].isdigit() or not fields[1].strip("\ufeff"):
            raise _malformed(path, number, f"a number, a word and {width - 2} more columns, separated by tabs", line)
        else:
            # The second half of a wrongly split word (goeswith in UD) may have neither lemma nor XPOS of its own.
            second_half = column == XPOS and fields[LEMMA] == fields[XPOS] == "_" and tokens
            labels.append("_" if second_half else _checked_tag(fields[column], column, f"{path}, line {number}"))
            tokens.append(fields[1].strip("\ufeff"))  # some RONEC v1 sentences start with a byte order mark
    return rows


def _checked_tag(tag, column, where):
    if column == UPOS:
        return _known(tag, UPOS_TAGS, where)
    if column == XPOS and tag in ("", "_"):
        raise ValueError(f"{where}: the word has no XPOS tag, expected one (such as Ncfsrn) in column 5, found {tag!r}")
    if column == ENTITY and not re.fullmatch(ENTITY_TAG, tag):
        raise ValueError(f"{where}: unknown entity tag {tag!r}, expected O, B-CLASS or I-CLASS")
    return tag


def _json_sentences(path, column):
    return [{"id": str(row.id), "tokens": row.tokens, "labels": row.ner_tags} for row in _json(path, list[AnnotatedSentence])]


def _reviews(path):
    rows = _json(path, Reviews).reviews
    return [{"id": row.index, "text": row.title, "text_pair": row.content, "label": row.starRating} for row in rows]


def _pairs(path, split):
    rows = []
    for number, line in enumerate(_lines(path), 1):
        fields = line.split("\t")  # quotation marks are text here, so no CSV reader
        try:
            score, (text, text_pair) = float(fields[0]), fields[1:]
            if not 0 <= score <= 5 or not text.strip() or not text_pair.strip():
                raise ValueError
        except ValueError:
            expected = "a score from 0 to 5 and two sentences, separated by tabs"
            raise _malformed(path, number, expected, line) from None
        rows.append({"id": f"{split}-{number}", "text": text, "text_pair": text_pair, "label": score})
    return rows


def _id_and_value(path):
    pairs = [tuple(line.split("\t", 1)) for line in _lines(path)]
    for number, pair in enumerate(pairs, 1):
        if len(pair) != 2 or not pair[0]:
            raise _malformed(path, number, "an id, a tab and a value", pair[0])
    return pairs


def _deal_tenths(texts, labels):
    """Deal examples into ten nearly equal parts (0 to 9), stratified by label; equal texts go into the same part.

    Texts are equal when they agree after NFC and white-space folding. A hash of the text decides, not a random
    generator: the outcome depends neither on the order of the examples nor on the version of a library.
    """
    folded = (" ".join(unicodedata.normalize("NFC", text).split()) for text in texts)
    keys = [hashlib.sha256(text.encode()).digest() for text in folded]
    lowest = {}  # label of each text; where equal texts have several, the first in the alphabet
    for key, label in zip(keys, labels):
        lowest[key] = min(label, lowest.get(key, label))
    turns = {key: turn for turn, (_, key) in enumerate(sorted((label, key) for key, label in lowest.items()))}
    return [turns[key] % 10 for key in keys]


def _known(label, names, where):
    if label not in names:
        raise ValueError(f"{where}: unknown label {label!r}, expected one of {', '.join(names)}")
    return label


def _malformed(path, number, expected, line):
    return ValueError(f"{path}, line {number}: expected {expected}, found {line[:80]!r}")


def _text(path):
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                return archive.read("ronec_iob.conllup").decode()
        return path.read_bytes().decode()
    except (UnicodeDecodeError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it and run `python -m rolib.download`") from error


def _lines(path):
    """The lines of a file, cut at newlines only: str.splitlines would also cut inside texts (U+2028 and the like)."""
    lines = _text(path).split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _json(path, kind):
    """The content of a JSON file as the type `kind`."""
    try:
        return TypeAdapter(kind).validate_json(_text(path))
    except ValidationError as error:
        fault = error.errors()[0]
        place = ", ".join(f"entry {key + 1}" if isinstance(key, int) else key for key in fault["loc"]) or "the file"
        raise ValueError(f"{path}, {place}: {fault['msg']}, found {str(fault['input'])[:80]!r}") from None

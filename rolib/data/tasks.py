"""Five data sets, seven measures, one schema: the readers of the upstream formats.

The data root holds one folder for each data set, in the layout of the upstream repository. The
same code reads the built-in sample, a mirror and the download cache. Texts stay as upstream has
them; they are normalised later.
"""

import hashlib
import re
import unicodedata
import zipfile
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from rolib.data import COMMAND
from rolib.data import SAMPLE as SAMPLE
from rolib.measures import TASKS

SPLITS = ("train", "validation", "test")
# The official files have numbers, the VarDial files have letters.
DIALECTS = {"1": "Moldavian", "2": "Romanian", "MD": "Moldavian", "RO": "Romanian"}
ENTITY_TAG = r"O|[BI]-\S+"
UPOS = "ADJ|ADP|ADV|AUX|CCONJ|DET|INTJ|NOUN|NUM|PART|PRON|PROPN|PUNCT|SCONJ|SYM|VERB|X"
# Measure: its column in CoNLL-U, the pattern of a tag, and the pattern in words.
TAGS = {
    "upos": (3, UPOS, f"one of {UPOS}"),
    "xpos": (4, "[^_].*", "an XPOS tag (such as Ncfsrn)"),
    "ner": (10, ENTITY_TAG, "an entity tag (O, B-CLASS or I-CLASS)"),  # the 11th, of RONEC v1
}
LAYOUTS = yaml.safe_load(Path(__file__).with_name("layouts.yaml").read_text(encoding="utf-8"))

Row = dict[str, Any]
Parts = list[list[Row]]  # of train, validation and test


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
    """The files of a measure."""

    files: tuple[Path, ...]  # what load_task reads
    note: str  # "" for the official files, else one sentence about the substitute


def task_source(name: str, data_root: Path | str) -> Source:
    """The files that load_task reads for a measure, and a note on a substitute for official files.

    Raises ValueError for an unknown measure and FileNotFoundError for a missing file.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}: the tasks are {', '.join(TASKS)}")
    folder = Path(data_root) / TASKS[name].dataset
    layouts = LAYOUTS[TASKS[name].dataset]
    layout = next((one for one in layouts if (folder / one["files"][0]).is_file()), layouts[0])
    source = Source(tuple(folder / file for file in layout["files"]), layout["note"])
    for file in source.files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: set ROLIB_DATA, or run `{COMMAND}`")
    return source


def load_task(name: str, data_root: Path | str) -> DatasetDict:
    """The train, validation and test splits of a measure.

    Rows of tagging: `id, tokens, labels`. Rows of classification and regression: `id, text,
    text_pair, label`. LaRoSeDa's text and text_pair are title and content; a dialect text has
    text_pair ""; a similarity label is a float from 0 to 5. Label names are taken over all splits
    and sorted, with O first. Ids are unique within a split. LaRoSeDa has no official validation
    split: a tenth of train is held out, the same tenth for SAPN and SAR.
    Raises FileNotFoundError for a missing file, and ValueError for an unknown measure, a malformed
    line, an unknown label, a repeated id or an empty split.
    """
    files, task = task_source(name, data_root).files, TASKS[name]
    parts = dict(zip(SPLITS, _READERS.get(task.dataset, _tagging)(name, files), strict=True))
    for split, rows in parts.items():
        place = f"{task.dataset}: the {split} split of task {name}"
        if not rows:
            raise ValueError(f"{place} is empty, check the data root")
        [(commonest, count)] = Counter(row["id"] for row in rows).most_common(1)
        if count > 1:
            raise ValueError(f"{place} repeats id {commonest!r}")
    features = _features(task.kind, list(chain(*parts.values())))
    return DatasetDict({split: Dataset.from_list(rows, features) for split, rows in parts.items()})


def _features(kind: str, rows: list[Row]) -> Features:
    """The columns and their types; the label names are those of `rows`."""
    text = Value("string")
    if kind == "tagging":
        tags = {tag for row in rows for tag in row["labels"]}
        label = ClassLabel(names=sorted(tags, key=lambda tag: (tag != "O", tag)))
        return Features({"id": text, "tokens": List(text), "labels": List(label)})
    labels = sorted({row["label"] for row in rows})
    label = Value("float32") if kind == "regression" else ClassLabel(names=labels)
    return Features({"id": text, "text": text, "text_pair": text, "label": label})


def _tagging(name: str, files: tuple[Path, ...]) -> Parts:
    """RRT and RONEC."""
    if files[0].suffix == ".json":
        return [_json_sentences(file) for file in files]
    train, validation, test = [_conllu_sentences(file, *TAGS[name]) for file in files]
    if files[0].suffix == ".zip":  # the archive of RONEC v1 holds dev and test too
        train = _without(train, validation + test)
    return [train, validation, test]


def _laroseda(name: str, files: tuple[Path, ...]) -> Parts:
    """LaRoSeDa, with stars as labels, or with the polarity for SAPN."""
    *others, test = [_json(file, Reviews)["reviews"] for file in files]
    reviews = _without(list(chain(*others)), test)  # the files of all reviews hold test too
    train, validation, _ = _deal(reviews, [1] + [0] * 9)
    if name == "sapn":
        for row in reviews + test:
            row["label"] = "negative" if row["label"] in "12" else "positive"
    return [train, validation, test]


def _moroco(name: str, files: tuple[Path, ...]) -> Parts:
    """MOROCO: the official splits, or the VarDial fold dealt into three splits."""
    half = len(files) // 2
    official = half == len(SPLITS)
    pairs = zip(files[:half], files[half:], strict=True)
    parts = [_dialect_rows(texts, labels, official) for texts, labels in pairs]
    return parts if official else _deal(parts[0], [2, 2, 1, 0, 0, 0, 0, 0, 0, 0])


def _dialect_rows(texts: Path, labels: Path, with_ids: bool) -> list[Row]:
    """The rows of a file of texts and a file of labels, joined by id or by line number."""
    key, words = (r"(?P<id>[^\t]+)\t", "an id, a tab and ") if with_ids else ("", "")
    rows = _line_rows(texts, f"{key}(?P<text>.*)", f"{words}a text", "vardial-")
    pattern = f"{key}(?P<label>{'|'.join(DIALECTS)})"
    golds = _line_rows(labels, pattern, f"{words}one of {', '.join(DIALECTS)}", "vardial-")
    matching = sorted(row["id"] for row in rows) == sorted(gold["id"] for gold in golds)
    expected = f"a label for each of the {len(rows)} texts of {texts}"
    _expect(matching, labels, expected, f"{len(golds)} labels")
    dialects = {gold["id"]: DIALECTS[gold["label"]] for gold in golds}
    return [row | {"label": dialects[row["id"]]} for row in rows]


def _ro_sts(name: str, files: tuple[Path, ...]) -> Parts:
    """RO-STS. Quotation marks are text there, so no CSV reader can be used."""
    score, sentence = r"[0-4](\.\d+)?|5(\.0+)?", r"[^\t]*[^\t\s][^\t]*"
    pattern = rf"(?P<label>{score})\t(?P<text>{sentence})\t(?P<text_pair>{sentence})"
    expected = "a score from 0 to 5 and two sentences, separated by tabs"
    parts = []
    for split, file in zip(SPLITS, files, strict=True):
        rows = _line_rows(file, pattern, expected, f"{split}-")
        parts.append([row | {"label": float(row["label"])} for row in rows])
    return parts


_READERS = {"LaRoSeDa": _laroseda, "MOROCO": _moroco, "RO-STS": _ro_sts}  # others: _tagging


def _conllu_sentences(path: Path, column: int, pattern: str, expected: str) -> list[Row]:
    """The sentences of a CoNLL-U file: ids, forms, and labels from `column` (counted from 0).

    Format: https://universaldependencies.org/format.html.
    """
    width = max(10, column + 1)
    columns = f"a number, a word and {width - 2} more columns, separated by tabs"
    rows: list[Row] = []
    row: Row = {}  # empty between sentences
    for number, line in enumerate(_lines(path), 1):
        where = f"{path}, line {number}"
        fields = line.split("\t")
        if line.startswith("# sent_id = "):
            row = {"id": line.removeprefix("# sent_id = "), "tokens": [], "labels": []}
            rows.append(row)
        elif not line:
            row = {}
        elif not line.startswith("#"):
            _expect(row, where, "a line '# sent_id = ...' before the first word", line)
            numbered = re.fullmatch(r"\d+([-.]\d+)?", fields[0])
            # RONEC v1 has byte order marks in some words.
            token = fields[1].strip("\ufeff") if len(fields) == width else ""
            _expect(numbered and token, where, columns, line)
            label = fields[column]
            # The second half of a wrongly split word (goeswith in UD) can lack lemma and XPOS.
            second_half = column == 4 and fields[2] == fields[4] == "_" and row["tokens"]
            if fields[0].isdigit():  # else a multi-word token or an empty node
                _expect(second_half or re.fullmatch(pattern, label), where, expected, label)
                row["tokens"].append(token)
                row["labels"].append(label)
    return [row for row in rows if row["tokens"]]


def _json_sentences(path: Path) -> list[Row]:
    """The sentences of a RONEC v2 file."""
    rows = _json(path, list[AnnotatedSentence])
    for number, row in enumerate(rows, 1):
        matching = len(row["tokens"]) == len(row["labels"])
        _expect(matching, f"{path}, entry {number}", "a tag for each token", str(row))
    return rows


def _without(rows: list[Row], held_out: list[Row]) -> list[Row]:
    """The rows whose ids are not in `held_out`."""
    ids = {row["id"] for row in held_out}
    return [row for row in rows if row["id"] not in ids]


def _deal(rows: list[Row], homes: list[int]) -> Parts:
    """The rows dealt into the splits; `homes` holds for each tenth the number of its split."""
    texts = [row["text"] + "\n" + row["text_pair"] for row in rows]
    parts: Parts = [[], [], []]
    for row, tenth in zip(rows, _deal_tenths(texts, [row["label"] for row in rows]), strict=True):
        parts[homes[tenth]].append(row)
    return parts


def _deal_tenths(texts: list[str], labels: list[str]) -> list[int]:
    """The part (0 to 9) of each example: ten nearly equal parts, stratified by label.

    Equal texts go into the same part. Texts are equal when they agree after NFC and white-space
    folding. A hash of the text decides, not a random generator: the result depends neither on the
    order of the examples nor on the version of a library.
    """
    folded = (" ".join(unicodedata.normalize("NFC", text).split()) for text in texts)
    keys = [hashlib.sha256(text.encode()).digest() for text in folded]
    # Of equal texts with several labels, the first label in the alphabet counts.
    label_of = dict(sorted(zip(keys, labels, strict=True), reverse=True))
    order = sorted(label_of, key=lambda key: (label_of[key], key))
    tenths = {key: turn % 10 for turn, key in enumerate(order)}
    return [tenths[key] for key in keys]


def _expect(good: object, where: Path | str, expected: str, found: str) -> None:
    """Raise ValueError unless `good` is true."""
    if not good:
        raise ValueError(f"{where}: expected {expected}, found {found[:80]!r}")


def _line_rows(path: Path, pattern: str, expected: str, prefix: str) -> list[Row]:
    """One row for each line: the named groups of `pattern`, and "" for a missing text.

    If the pattern names no id, the id is `prefix` and the number of the line.
    """
    rows = []
    for number, line in enumerate(_lines(path), 1):
        match = re.fullmatch(pattern, line)
        groups = match.groupdict() if match else {}
        _expect(groups, f"{path}, line {number}", expected, line)
        rows.append({"id": f"{prefix}{number}", "text": "", "text_pair": ""} | groups)
    return rows


def _text(path: Path) -> str:
    """The content of a UTF-8 file, or of the one file that matters in RONEC's archive."""
    try:
        file = zipfile.Path(path, "ronec_iob.conllup") if path.suffix == ".zip" else path
        return file.read_bytes().decode()
    except (UnicodeDecodeError, FileNotFoundError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it and run `{COMMAND}`") from error


def _lines(path: Path) -> list[str]:
    """The lines of a file, cut at newlines only; an empty file has one empty line.

    str.splitlines would also cut inside texts, at U+2028 and similar characters.
    """
    return _text(path).removesuffix("\n").split("\n")


def _json(path: Path, kind: Any) -> Any:
    """The content of a JSON file as plain values, validated as the type `kind`."""
    adapter = TypeAdapter(kind)
    try:
        return adapter.dump_python(adapter.validate_json(_text(path)))
    except ValidationError as error:
        fault = error.errors()[0]
    place = [f"entry {key + 1}" if isinstance(key, int) else key for key in fault["loc"]]
    where = f"{path}, {', '.join(place) or 'the file'}"
    raise ValueError(f"{where}: {fault['msg']}, found {str(fault['input'])[:80]!r}")

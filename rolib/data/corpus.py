"""Romanian text: documents -> normalised text -> words -> blocks for a model, stored as Arrow."""

import io
import json
import os
import random
import re
import unicodedata
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from itertools import chain, groupby, islice
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, Features, List, Value
from datasets.fingerprint import Hasher
from huggingface_hub import HfApi, constants
from transformers import PreTrainedTokenizerFast as Tokenizer

from rolib.config import ConfigError, TrainingConfig
from rolib.data.words import backend, split_words, word_pieces
from rolib.runs import sha256

# A .txt file below the folder is no text of the corpus, but a licence for instance.
PATTERNS = ("*.txt", "**/*.jsonl", "**/*.jsonl.gz", "**/*.jsonl.zst", "**/*.parquet")
REMEDY = "check its id and revision, log in (`hf auth login`), or HF_HUB_OFFLINE=1 if it is here"
# Part of the fingerprints of stored data: a changed reader or tokenization makes them new.
CODE = [sha256(Path(__file__).with_name(name)) for name in ("corpus.py", "words.py")]
HELD_OUT_SHARE, HELD_OUT_MOST = 0.05, 500  # documents kept for the held-out loss
# Letters, digits, white space and ASCII punctuation are never removed. White space includes some
# control characters, such as the tab: to remove them would join two words.
UNCERTAIN = re.compile(r"[^\w\s!-~]")


def _kept(match: re.Match[str]) -> str:
    """The character, or "" for control, format, private-use and surrogate characters."""
    return "" if unicodedata.category(match[0]) in ("Cc", "Cf", "Co", "Cs") else match[0]


def normalise(text: str) -> str:
    """The text in NFC with comma-below ș ț, without control and format characters.

    Each run of white space becomes one space. NFC comes after the removal, because a removed
    character may stand between a letter and its accent; white space comes last for the same reason.
    """
    text = unicodedata.normalize("NFC", UNCERTAIN.sub(_kept, text))
    # The cedilla letters are an encoding error of the 1990s. BERT-base-ro maps them to [UNK].
    for cedilla, comma in zip("şţŞŢ", "șțȘȚ", strict=True):
        text = text.replace(cedilla, comma)
    return " ".join(text.split())


def _contents(path: Path) -> Iterator[object]:
    """The documents of a file, as they are; gzip and zstd are recognised by the name."""
    if path.suffix == ".parquet":
        for batch in pq.ParquetFile(path).iter_batches(1000, columns=["text"]):
            yield from batch["text"].to_pylist()
        return
    with io.TextIOWrapper(pa.input_stream(path), encoding="utf-8-sig") as lines:
        if path.suffix == ".txt":
            yield from ("".join(part) for blank, part in groupby(lines, str.isspace) if not blank)
        else:
            yield from (json.loads(line)["text"] for line in lines if not line.isspace())


def _raw_documents(path: Path) -> Iterator[str]:
    """The documents of a file, not normalised. Raises ValueError, which names the file."""
    number = 0
    try:
        for text in _contents(path):
            if not isinstance(text, str):
                raise TypeError(f"its text is {text!r:.40}")
            number += 1
            yield text.encode(errors="ignore").decode()  # JSON can hold half a surrogate pair
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 after document {number}: convert the file") from None
    except Exception as error:  # the readers of the formats raise many kinds
        fault = f"cannot be read after document {number} ({error!r:.200})"
        raise ValueError(f"{path}: {fault}: mend the file or take it away") from error


def read_documents(path: Path) -> Iterator[str]:
    """Yield the normalised documents of a file, without empty ones.

    Blank lines separate the documents of a .txt file, which is UTF-8. A line of a .jsonl, .jsonl.gz
    or .jsonl.zst file is an object, a row of a .parquet file a document: it has the column `text`.
    """
    return filter(None, map(normalise, _raw_documents(path)))


def source_folder(corpus: str, data_root: Path) -> Path:
    """The folder of a file corpus; "data" is corpus/ of the data root. FileNotFoundError."""
    folder = data_root / "corpus" if corpus == "data" else Path(corpus)
    if not folder.is_dir():
        raise FileNotFoundError(f"corpus {folder}: no such folder; set `corpus` or ROLIB_DATA")
    return folder


@contextmanager
def _hub_errors(config: TrainingConfig) -> Iterator[None]:
    """Make any error of the hub one line with a remedy."""
    try:
        yield
    except Exception as error:  # they are of httpx or httpx2, as huggingface_hub has it
        fault = " ".join(str(error).split())
        raise ConfigError(f"corpus {config.corpus}: {fault[:400]}: {REMEDY}") from error


def _hub_commit(config: TrainingConfig) -> str:
    """The commit of a hub corpus; the hub is asked for it, once and quickly."""
    hub = config.corpus.removeprefix("hub:").partition(":")[0]
    return HfApi().dataset_info(hub, revision=config.corpus_revision, timeout=10).sha or ""


def corpus_identity(config: TrainingConfig, data_root: Path) -> str:
    """The identity of the corpus, for a manifest.

    Files: the SHA-256 of their folder. Hub: `<id>:<config>@<commit>`; the hub is asked for the
    commit of a tag or branch. Raises ConfigError if the hub gives none.
    """
    if not config.corpus.startswith("hub:"):
        return sha256(source_folder(config.corpus, data_root))
    commit = config.corpus_revision
    if not re.fullmatch("[0-9a-f]{40}", commit):
        with _hub_errors(config):
            commit = _hub_commit(config)
    return f"{config.corpus.removeprefix('hub:')}@{commit}"


def _rows(files: list[tuple[str, int, str]], code: tuple[str, ...]) -> Iterator[dict]:
    """Yield the raw documents of files, given as path, number of the source, and hash."""
    for file, source, _ in files:
        for text in _raw_documents(Path(file)):
            yield {"text": text, "source": source}
        yield {"text": "", "source": source}  # a dataset without rows is refused


def _read_files(config: TrainingConfig, data_root: Path) -> Dataset:
    """The raw documents of the files of a folder: text, source.

    A file in the folder is a source; so are all files of a folder in it.
    """
    folder = source_folder(config.corpus, data_root)
    paths = sorted(path for pattern in PATTERNS for path in folder.glob(pattern))
    if not paths:
        kinds = "no .txt in it, and no .jsonl, .jsonl.gz, .jsonl.zst or .parquet file below it"
        raise FileNotFoundError(f"corpus {folder}: {kinds}; set `corpus` or ROLIB_DATA")
    sources = [path.relative_to(folder).parts[0] for path in paths]
    # The hashes are in the arguments, which identify the cached data: a changed file is read again.
    files = list(zip(map(str, paths), map(sources.index, sources), map(sha256, paths), strict=True))
    features = Features({"text": Value("string"), "source": Value("int32")})
    settings = {"gen_kwargs": {"files": files, "code": tuple(CODE)}}
    much = len(paths) > 1 and sum(path.stat().st_size for path in paths) > 1e8
    cache = str(config.folder / "corpus")
    try:
        return Dataset.from_generator(_rows, features, cache, num_proc=_workers(much), **settings)
    except datasets.exceptions.DatasetGenerationError as error:
        for path in paths:  # the error of another process has lost its type: find it again
            deque(_raw_documents(path), maxlen=0)
        raise (error.__cause__ or error) from None


def _read_hub(config: TrainingConfig) -> Dataset:
    """The raw documents of the train split of a hub corpus: text."""
    hub, _, subset = config.corpus.removeprefix("hub:").partition(":")
    with _hub_errors(config):
        # Asking first is quick: load_dataset tries for half a minute to reach a hub.
        revision = config.corpus_revision if constants.HF_HUB_OFFLINE else _hub_commit(config)
        raw = datasets.load_dataset(hub, subset or None, split="train", revision=revision)
        raw = raw.select_columns("text")
        if raw.features["text"] not in (Value("string"), Value("large_string")):
            raise ValueError(f"its column `text` holds {raw.features['text']}")
    return raw


def _clean(batch: dict[str, list]) -> dict[str, list]:
    """The normalised texts, their sources, numbers of words, and a key that equal texts share."""
    texts = [normalise(text or "") for text in batch["text"]]
    digests = [blake2b(text.encode(), digest_size=8).digest() for text in texts]
    keys = [int.from_bytes(digest, signed=True) for digest in digests]
    sizes = [len(text.split()) for text in texts]
    source = batch.get("source", [0] * len(texts))  # a hub corpus is one source
    return {"text": texts, "source": source, "words": sizes, "key": keys}


def _choose(texts: Dataset, words_per_source: int, seed: int) -> np.ndarray:
    """The row numbers of the documents to take, source by source, shuffled within a source.

    Empty documents are dropped, and of equal documents all but the first. A source gives documents
    until their words reach `words_per_source` (0: all). No Python object is held for a document.
    """
    _, first = np.unique(texts.data["key"].to_numpy(), return_index=True)
    source, words = (texts.data[name].to_numpy() for name in ("source", "words"))
    kept = np.sort(first[words[first] > 0])
    chosen = [kept[:0]]
    for number in np.unique(source):
        order = kept[source[kept] == number]
        random.Random(seed).shuffle(order)
        before = np.cumsum(words[order]) - words[order]
        chosen.append(order[before < (words_per_source or np.inf)])
    return np.concatenate(chosen)


def _workers(worth_it: bool) -> int | None:
    """The number of processes; on a small corpus, starting them costs more than they save."""
    return min(os.cpu_count() or 1, 8) if worth_it else None


def load_corpus(config: TrainingConfig, data_root: Path) -> DatasetDict:
    """The different documents of the corpus, split into `train` and `held_out` by document.

    `config.data_seed` chooses the documents and the split. Column: text (normalised).
    Raises FileNotFoundError for a folder without text, ConfigError for a hub corpus that cannot be
    had, and ValueError for a damaged file and a corpus too small to split.
    """
    hub = config.corpus.startswith("hub:")
    texts = _read_hub(config) if hub else _read_files(config, data_root)
    settings = {"num_proc": _workers(len(texts) > 1000), "desc": "documents"}
    settings["new_fingerprint"] = Hasher.hash([texts._fingerprint, CODE])
    texts = texts.map(_clean, batched=True, **settings)
    chosen = _choose(texts, config.words_per_source, config.data_seed)
    if len(chosen) < 2:
        problem = f"corpus {config.corpus}: {len(chosen)} documents, at least 2 are needed"
        remedy = "take another one" if hub else "add text; blank lines separate .txt documents"
        raise ValueError(f"{problem}: {remedy}")
    held_out = min(HELD_OUT_MOST, max(1, round(HELD_OUT_SHARE * len(chosen))))
    # The rows of train_test_split, which would keep the numbers of a large corpus three times.
    rows = chosen[np.random.default_rng(config.data_seed).permutation(len(chosen))]
    texts = texts.select_columns("text")
    return DatasetDict(train=texts.select(rows[held_out:]), held_out=texts.select(rows[:held_out]))


def windows(sizes: list[tuple[int, ...]], room: int) -> list[range]:
    """Runs of word numbers that together hold at most `room` pieces in every view.

    sizes: for each word, its number of pieces in each view. Every word is in exactly one run.
    A word longer than `room` is alone in its run.
    """
    totals = np.cumsum([*sizes[:1], *sizes], axis=0).T - np.reshape(sizes[:1], (-1, 1))
    runs: list[range] = []
    first = 0
    while first < len(sizes):
        ends = [np.searchsorted(total, total[first] + room, "right") - 1 for total in totals]
        last = max(first + 1, int(min(ends)))
        runs.append(range(first, last))
        first = last
    return runs


def _view(words: list[list[int]], tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The pieces of a block in one vocabulary, and for each piece the number of its word."""
    word_ids = [number for number, word in enumerate(words) for _ in word]
    return [tokenizer.cls_token_id, *chain(*words), tokenizer.sep_token_id], [-1, *word_ids, -1]


def build_blocks(texts: Dataset, tokenizers: list[Tokenizer], block_length: int) -> Dataset:
    """Blocks of whole words of one document, at most `block_length` pieces in every view.

    A view is the block in the pieces of one tokenizer. All views of a block hold the same words.
    Columns: index; input_ids and word_ids, a list for each view; length, of the first view.
    The length includes [CLS] and [SEP], whose word id is -1. A word that is too long for a block is
    cut. Raises ValueError when the texts hold no word.
    """
    room = block_length - 2

    def tokenize(batch: dict[str, list[str]]) -> dict[str, list]:
        """The blocks of a batch of texts."""
        rows: dict[str, list] = {"input_ids": [], "word_ids": [], "length": []}
        documents = [split_words(text) for text in batch["text"]]
        # One call for the batch, since most words are in several of its texts.
        together = [iter(word_pieces(list(chain(*documents)), one)) for one in tokenizers]
        for document in documents:
            views = [list(islice(pieces, len(document))) for pieces in together]
            for run in windows(list(zip(*(map(len, view) for view in views), strict=True)), room):
                cut = [[words[index][:room] for index in run] for words in views]
                ids, word_ids = zip(*map(_view, cut, tokenizers), strict=True)
                rows["input_ids"].append(ids)
                rows["word_ids"].append(word_ids)
                rows["length"].append(len(ids[0]))
        return rows

    number, views = Value("int32"), List(List(Value("int32")))  # half the size of int64
    features = Features({"input_ids": views, "word_ids": views, "length": number})
    settings = {"batched": True, "batch_size": 64, "desc": "blocks", "features": features}
    # Not the tokenizers: they know the folder that they were read from.
    models = [(backend(one), one.cls_token_id, one.sep_token_id) for one in tokenizers]
    settings["new_fingerprint"] = Hasher.hash([texts._fingerprint, models, block_length, CODE])
    settings["num_proc"] = _workers(len(texts) > 1000)
    blocks = texts.map(tokenize, remove_columns=["text"], **settings)
    if not len(blocks):
        raise ValueError("the corpus holds no word: every document is empty after normalisation")
    return blocks.add_column("index", np.arange(len(blocks)))

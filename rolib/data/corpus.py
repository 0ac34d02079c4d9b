"""Romanian text: documents -> normalised text -> words -> blocks for a model, stored as Arrow."""

import os
import random
import re
import unicodedata
from collections.abc import Iterator
from hashlib import blake2b
from itertools import chain, zip_longest
from pathlib import Path

import datasets
from datasets import Dataset, DatasetDict
from huggingface_hub import HfApi
from transformers import PreTrainedTokenizerFast as Tokenizer

from rolib.config import TrainingConfig
from rolib.data.words import split_words, word_pieces
from rolib.runs import sha256

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


def _raw_documents(path: Path) -> list[str]:
    """The parts of a UTF-8 file between blank lines, as they are; a part can be empty."""
    try:
        return re.split(r"\n\s*\n", path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}: convert the file") from None


def read_documents(path: Path) -> Iterator[str]:
    """Yield the normalised documents of a UTF-8 file. Blank lines separate documents."""
    return filter(None, map(normalise, _raw_documents(path)))


def source_folder(corpus: str, data_root: Path) -> Path:
    """The folder of a file corpus; "data" is the folder corpus/ of the data root."""
    return data_root / "corpus" if corpus == "data" else Path(corpus)


def corpus_identity(config: TrainingConfig, data_root: Path) -> str:
    """The identity of the corpus, for a manifest.

    Files: the SHA-256 of their folder. Hub: `<id>:<config>@<commit>`; the hub is asked for the
    commit of a tag or branch.
    """
    if not config.corpus.startswith("hub:"):
        return sha256(source_folder(config.corpus, data_root))
    name, revision = config.corpus.removeprefix("hub:"), config.corpus_revision
    if re.fullmatch("[0-9a-f]{40}", revision):
        return f"{name}@{revision}"
    return f"{name}@{HfApi().dataset_info(name.split(':')[0], revision=revision).sha}"


def _rows(files: dict[str, str]) -> Iterator[dict]:
    """Yield the raw documents of all files; `source` is the number of the file."""
    for number, file in enumerate(files):
        for text in _raw_documents(Path(file)):
            yield {"text": text, "source": number}


def _read_files(config: TrainingConfig, data_root: Path) -> Dataset:
    """The raw documents of the .txt files of a folder: text, source."""
    folder = source_folder(config.corpus, data_root)
    # The hashes are in the arguments, which identify the cached data: a changed file is read again.
    files = {str(file): sha256(file) for file in sorted(folder.glob("*.txt"))}
    if not files:
        raise FileNotFoundError(f"corpus {folder}: no .txt file; set `corpus` or ROLIB_DATA")
    cache = str(config.folder / "corpus")
    try:
        return Dataset.from_generator(_rows, cache_dir=cache, gen_kwargs={"files": files})
    except datasets.exceptions.DatasetGenerationError as error:
        raise error.__cause__ from None


def _read_hub(config: TrainingConfig) -> Dataset:
    """The raw documents of the train split of a hub corpus: text, source."""
    hub, _, subset = config.corpus.removeprefix("hub:").partition(":")
    raw = datasets.load_dataset(hub, subset or None, split="train", revision=config.corpus_revision)
    return raw.select_columns("text").add_column("source", [0] * len(raw))


def _clean(batch: dict[str, list]) -> dict[str, list]:
    """The normalised texts, their numbers of words, and a key that equal texts share."""
    texts = [normalise(text) for text in batch["text"]]
    keys = [blake2b(text.encode(), digest_size=16).digest() for text in texts]
    return {"text": texts, "words": [len(text.split()) for text in texts], "key": keys}


def _choose(texts: Dataset, words_per_source: int, seed: int) -> list[int]:
    """The row numbers of the documents to take, source by source, shuffled within a source.

    Empty documents are dropped, and of equal documents all but the first. A source gives documents
    until their words reach `words_per_source` (0: all).
    """
    table = texts.select_columns(["source", "words", "key"]).to_pandas()
    table = table[(table["words"] > 0) & ~table["key"].duplicated()]
    chosen: list[int] = []
    for _, words in table.groupby("source")["words"]:
        order = list(words.index)
        random.Random(seed).shuffle(order)
        before = words.loc[order].cumsum().shift(fill_value=0)
        chosen += list(before.index[before < (words_per_source or float("inf"))])
    return chosen


def _workers(texts: Dataset) -> int | None:
    """The number of processes; on a small corpus, starting them costs more than they save."""
    return min(os.cpu_count() or 1, 8) if len(texts) > 1000 else None


def load_corpus(config: TrainingConfig, data_root: Path) -> DatasetDict:
    """The different documents of the corpus, split into `train` and `held_out` by document.

    `config.data_seed` chooses the documents and the split. Column: text (normalised).
    Raises FileNotFoundError for a folder without text, and ValueError for a corpus too small to
    split.
    """
    hub = config.corpus.startswith("hub:")
    texts = _read_hub(config) if hub else _read_files(config, data_root)
    texts = texts.map(_clean, batched=True, num_proc=_workers(texts), desc="documents")
    chosen = _choose(texts, config.words_per_source, config.data_seed)
    if len(chosen) < 2:
        problem = f"corpus {config.corpus}: {len(chosen)} documents, at least 2 are needed"
        raise ValueError(f"{problem}: separate documents by blank lines")
    texts = texts.select(chosen).select_columns("text")
    held_out = min(HELD_OUT_MOST, max(1, round(HELD_OUT_SHARE * len(texts))))
    split = texts.train_test_split(test_size=held_out, seed=config.data_seed)
    return DatasetDict(train=split["train"], held_out=split["test"])


def windows(sizes: list[tuple[int, ...]], room: int) -> list[list[int]]:
    """Runs of word numbers that together hold at most `room` pieces in every view.

    sizes: for each word, its number of pieces in each view. Every word is in exactly one run.
    A word longer than `room` is alone in its run.
    """
    runs: list[list[int]] = [[]]
    used: tuple[int, ...] = ()
    for index, size in enumerate(sizes):
        used = tuple(map(sum, zip_longest(used, size, fillvalue=0)))
        if runs[-1] and max(used) > room:
            runs.append([])
            used = size
        runs[-1].append(index)
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
        for text in batch["text"]:
            views = [word_pieces(split_words(text), tokenizer) for tokenizer in tokenizers]
            sizes = [tuple(map(len, pieces)) for pieces in zip(*views, strict=True)]
            for run in windows(sizes, room) if sizes else []:
                cut = [[words[index][:room] for index in run] for words in views]
                ids, word_ids = zip(*map(_view, cut, tokenizers), strict=True)
                rows["input_ids"].append(ids)
                rows["word_ids"].append(word_ids)
                rows["length"].append(len(ids[0]))
        return rows

    settings = {"batched": True, "batch_size": 64, "num_proc": _workers(texts), "desc": "blocks"}
    blocks = texts.map(tokenize, remove_columns=["text"], **settings)
    if not len(blocks):
        raise ValueError("the corpus holds no word: every document is empty after normalisation")
    return blocks.add_column("index", list(range(len(blocks))))

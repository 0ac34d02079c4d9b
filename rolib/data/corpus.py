"""Romanian text: documents -> normalised text -> words -> blocks that fit a model, stored as Arrow."""

import os
import random
import unicodedata
from collections.abc import Iterator
from itertools import chain, groupby, zip_longest
from pathlib import Path

import datasets

from rolib.config import TrainingConfig
from rolib.data.words import split_words, word_pieces

HELD_OUT_SHARE, HELD_OUT_MOST = 0.05, 500  # documents kept for the held-out loss
# The cedilla letters are an encoding accident of the 1990s; BERT-base-ro maps them to [UNK].
CEDILLA_TO_COMMA = str.maketrans("şţŞŢ", "șțȘȚ")


def normalise(text: str) -> str:
    """NFC, comma-below ș ț instead of cedilla, control and format characters out, white space folded to one space."""
    # A tab is a control character and white space: it must not go, or it would glue two words together.
    text = "".join(
        c for c in text if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf", "Co", "Cs")
    )
    # After that, since a character that went may have stood between a letter and its accent, or between two spaces.
    return " ".join(unicodedata.normalize("NFC", text).translate(CEDILLA_TO_COMMA).split())


def read_documents(path: Path) -> Iterator[str]:
    """Yield the normalised documents of a UTF-8 file: blocks of lines that blank lines separate."""
    try:
        with open(path, encoding="utf-8") as file:
            for filled, lines in groupby(file, key=lambda line: bool(line.strip())):
                if filled and (text := normalise(" ".join(lines))):
                    yield text
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 ({error.reason} at byte {error.start}): convert the file"
        ) from None


def source_folder(corpus: str, data_root: Path) -> Path:
    """The folder that the parameter `corpus` means."""
    return data_root / "corpus" if corpus == "data" else Path(corpus)


def _documents(source: str, seed: int) -> Iterator[str]:
    """The documents of a file, shuffled, or of a set of the hub (`hub:<id>:<config>`), streamed in its own order."""
    if source.startswith("hub:"):
        hub_id, _, subset = source.removeprefix("hub:").partition(":")
        rows = datasets.load_dataset(hub_id, subset or None, split="train", streaming=True)
        return filter(None, (normalise(row["text"]) for row in rows))
    documents = list(read_documents(Path(source)))
    random.Random(seed).shuffle(documents)
    return iter(documents)


def _texts(sources: dict[str, tuple], words_per_source: int, seed: int) -> Iterator[dict]:
    """The documents of each source until their words reach `words_per_source` (0: all)."""
    count = 0
    for source in sources:
        words = 0
        for text in _documents(source, seed):
            if words_per_source and words >= words_per_source:
                break
            words += len(text.split())
            count += 1
            yield {"text": text}
    if count < 2:
        raise ValueError(
            f"corpus {', '.join(sources)}: {count} documents, at least 2 are needed, blank lines between them"
        )


def load_corpus(config: TrainingConfig, data_root: Path) -> datasets.DatasetDict:
    """The documents as Arrow, split into `train` and `held_out` by document; the same seed gives the same split.

    Raises FileNotFoundError for a folder without text and ValueError for a corpus too small to split.
    """
    # datasets recognises its cache by these arguments: size and time of the files make a changed corpus a new one.
    arguments = {
        "sources": {config.corpus: ()},
        "words_per_source": config.words_per_source,
        "seed": config.seed,
    }
    if not config.corpus.startswith("hub:"):
        folder = source_folder(config.corpus, data_root)
        stats = {str(file): file.stat() for file in sorted(folder.glob("*.txt"))}
        if not stats:
            mend = "set `corpus` to a folder of text files or hub:<id>:<config>, or ROLIB_DATA to a mirror that has corpus/"
            raise FileNotFoundError(f"corpus {folder}: no .txt file; {mend}")
        arguments["sources"] = {
            file: (stat.st_size, stat.st_mtime_ns) for file, stat in stats.items()
        }
    try:
        texts = datasets.Dataset.from_generator(
            _texts, cache_dir=str(config.folder / "corpus"), gen_kwargs=arguments
        )
    except datasets.exceptions.DatasetGenerationError as error:
        raise error.__cause__ from None
    held_out = min(HELD_OUT_MOST, max(1, round(HELD_OUT_SHARE * len(texts))))
    split = texts.train_test_split(test_size=held_out, seed=config.seed)
    return datasets.DatasetDict(train=split["train"], held_out=split["test"])


def windows(sizes: list[tuple[int, ...]], room: int) -> list[list[int]]:
    """Split a text into runs of word indices that hold at most `room` pieces in every view.

    sizes: the number of pieces of each word, for each tokenizer. Every word lies in exactly one run; a word longer than
    `room` stands alone.
    """
    runs, used = [[]], ()
    for index, size in enumerate(sizes):
        used = tuple(map(sum, zip_longest(used, size, fillvalue=0)))
        if runs[-1] and max(used) > room:
            runs.append([])
            used = size
        runs[-1].append(index)
    return runs


def build_blocks(texts: datasets.Dataset, tokenizers: list, block_length: int) -> datasets.Dataset:
    """Blocks of whole words within a document, of at most `block_length` pieces, [CLS] and [SEP] included, in every view.

    A view is the block in the pieces of one tokenizer; all views hold the same words. Columns: index, input_ids and
    word_ids (a list for each view; the word of each piece, -1 at [CLS] and [SEP]), length (of the first view). The later pieces
    of a word that alone is too long are cut. Raises ValueError when the texts hold no word.
    """
    room = block_length - 2

    def tokenize(batch):
        """The blocks of a batch of texts, each text cut into runs of words that fit every view."""
        rows = {"input_ids": [], "word_ids": [], "length": []}
        for text in batch["text"]:
            views = [word_pieces(split_words(text), tokenizer) for tokenizer in tokenizers]
            sizes = list(zip(*(map(len, words) for words in views), strict=True))
            for run in windows(sizes, room) if sizes else []:
                pieces = [[words[index][:room] for index in run] for words in views]
                ids = [
                    [t.cls_token_id, *chain(*words), t.sep_token_id]
                    for t, words in zip(tokenizers, pieces, strict=True)
                ]
                rows["input_ids"].append(ids)
                rows["word_ids"].append(
                    [
                        [-1, *chain(*([i] * len(w) for i, w in enumerate(words))), -1]
                        for words in pieces
                    ]
                )
                rows["length"].append(len(ids[0]))
        return rows

    # Starting processes costs more than they save on a small corpus.
    workers = min(os.cpu_count() or 1, 8) if len(texts) > 1000 else None
    blocks = texts.map(
        tokenize,
        batched=True,
        batch_size=64,
        remove_columns=["text"],
        num_proc=workers,
        desc="blocks",
    )
    if not len(blocks):
        raise ValueError("the corpus holds no word: every document is empty after normalisation")
    return blocks.add_column("index", list(range(len(blocks))))


def corpus_identity(config: TrainingConfig, data_root: Path) -> str:
    from rolib.runs import sha256

    return sha256(source_folder(config.corpus, data_root))

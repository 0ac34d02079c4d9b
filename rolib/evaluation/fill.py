"""Fill a gap: the pieces that a model puts in the place of ___ in a sentence."""

from functools import cache
from pathlib import Path

import pandas as pd
import transformers

from rolib.data.corpus import normalise
from rolib.data.pretrained import first_teachers, pretrained_folder

GAP = "___"


load_reader = cache(transformers.pipeline)


def fill_gap(folder: Path, sentence: str, count: int = 5) -> pd.DataFrame:
    """The best pieces for the gap of a sentence: piece, probability; the best one first.

    folder: of a masked language model with its tokenizer. It is loaded once. ValueError unless the
    sentence has exactly one gap, ___, and is not too long for the model.
    """
    if sentence.count(GAP) != 1:
        raise ValueError(f"{sentence!r}: write {GAP} once, in the place of the missing word")
    reader = load_reader("fill-mask", str(folder), device="cpu")
    text = normalise(sentence).replace(GAP, reader.tokenizer.mask_token)
    pieces, most = reader.tokenizer(text)["input_ids"], reader.model.config.max_position_embeddings
    if len(pieces) > most or pieces.count(reader.tokenizer.mask_token_id) != 1:
        raise ValueError(f"a text of {len(pieces)} pieces: write one gap and at most {most} pieces")
    rows = [(one["token_str"], one["score"]) for one in reader(text, top_k=count)]
    return pd.DataFrame(rows, columns=["piece", "probability"])


def compare_shipped(sentence: str, count: int = 5) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The best pieces of all shipped models for a gap, a column each, and where a student differs.

    The first table holds pieces and probabilities as text. The second is True for a piece of a
    student that is not among those of its first teacher. ValueError as in `fill_gap`.
    """
    teachers = first_teachers()
    best = {name: fill_gap(pretrained_folder(name), sentence, count) for name in teachers}
    shown, differs = pd.DataFrame(), pd.DataFrame()
    for name, table in best.items():
        shown[name] = table["piece"] + table["probability"].map("  {:.3f}".format)
        differs[name] = ~table["piece"].isin(best[teachers[name]]["piece"])
    return shown, differs

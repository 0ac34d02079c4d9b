"""Baselines without a network: a bag of words for texts, the commonest tag for words."""

from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
import pandas as pd
from datasets import Dataset
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_union

from rolib.config import EvaluateConfig
from rolib.data.download import data_root
from rolib.data.tasks import load_task
from rolib.evaluation.finetune import sample_examples
from rolib.evaluation.metrics import score_predictions
from rolib.measures import with_protocol

LONGEST_ENDING = 5  # letters


def baseline_scores(config: EvaluateConfig) -> pd.DataFrame:
    """The headline score (a fraction) of a baseline on each of the config's tasks: task, score.

    It has the training examples of the models, and of a text the first `max_length` words.
    Classification: TF-IDF of words and characters, then logistic regression. Similarity: the cosine
    of the TF-IDF vectors. Tagging: the commonest tag of the word, else of its longest known ending.
    """
    rows = []
    for name in config.tasks:
        task = with_protocol(name, config.protocols[name])
        splits = load_task(name, data_root(config.data))
        train = sample_examples(splits["train"], config.max_train_examples, config.seed)
        answer = {"tagging": _tag, "classification": _classify, "regression": _compare}[task.kind]
        table = pd.DataFrame(answer(train, splits["test"], config.max_length))
        table = table.astype({"gold": object, "predicted": object})
        table["probabilities"] = [()] * len(table)
        rows.append((name, score_predictions(task, table)[task.headline]))
    return pd.DataFrame(rows, columns=["task", "score"])


def _tag(train: Dataset, test: Dataset, _: int) -> list[dict]:
    """One row a word: the commonest tag of the word, of its longest known ending, or of all."""
    counts: defaultdict = defaultdict(Counter)
    for row in train:
        for word, tag in zip(row["tokens"], row["labels"], strict=True):
            for key in _keys(word):
                counts[key][tag] += 1
    best = {key: found.most_common(1)[0][0] for key, found in counts.items()}
    names, rows = train.features["labels"].feature.names, []
    for row in test:
        for position, (word, tag) in enumerate(zip(row["tokens"], row["labels"], strict=True)):
            guess = next(best[key] for key in _keys(word) if key in best)
            unit = {"example": row["id"], "position": position}
            rows.append(unit | {"gold": names[tag], "predicted": names[guess]})
    return rows


def _keys(word: str) -> Iterator[tuple[int, str]]:
    """The word as a whole, then its endings from the longest to the empty one."""
    yield -1, word
    for length in range(LONGEST_ENDING, -1, -1):
        yield length, word[max(0, len(word) - length) :]


def _texts(part: Dataset, column: str, most: int) -> list[str]:
    return [" ".join(text.split()[:most]) for text in part[column]]


def _classify(train: Dataset, test: Dataset, most: int) -> dict:
    """One row a text: the class by logistic regression; a pair is read as one text."""
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    vectors, sides = make_union(words, letters), []
    for part in (train, test):
        pairs = zip(*(_texts(part, column, most) for column in ("text", "text_pair")), strict=True)
        sides.append([" ".join(pair) for pair in pairs])
    model = LogisticRegression(C=10, max_iter=1000).fit(
        vectors.fit_transform(sides[0]), train["label"]
    )
    names = np.array(train.features["label"].names, dtype=object)
    predicted = names[model.predict(vectors.transform(sides[1]))]
    units = {"example": test["id"], "position": 0, "gold": names[test["label"]]}
    return units | {"predicted": predicted}


def _compare(train: Dataset, test: Dataset, most: int) -> dict:
    """One row a pair: the cosine of the TF-IDF vectors of words, fitted on the training pairs."""
    columns = ("text", "text_pair")
    vectors = TfidfVectorizer().fit([text for one in columns for text in _texts(train, one, most)])
    ours, theirs = (vectors.transform(_texts(test, one, most)) for one in columns)
    cosine = np.asarray(ours.multiply(theirs).sum(axis=1)).ravel()
    units = {"example": test["id"], "position": 0, "gold": np.asarray(test["label"], dtype=float)}
    return units | {"predicted": cosine}

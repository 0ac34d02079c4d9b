"""Baselines without a network: a bag of words for texts, the commonest tag for words."""

import numpy as np
import pandas as pd
from datasets import Dataset
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline, make_union

from rolib.config import EvaluateConfig
from rolib.data.download import data_root
from rolib.data.tasks import load_task
from rolib.evaluation.finetune import sample_examples
from rolib.evaluation.metrics import score_predictions
from rolib.measures import with_protocol

PAIR = ["text", "text_pair"]
LETTERS = [1, 2, 3, 4, 5, 1000]  # of the endings; the last is the whole word


def baseline_scores(config: EvaluateConfig) -> pd.DataFrame:
    """The headline score (a fraction) of a baseline on each of the config's tasks: task, score.

    It has the examples of the models, and of a text the first `max_length` words.
    Classification: TF-IDF of words and characters, then logistic regression. Similarity: the cosine
    of the TF-IDF vectors. Tagging: the commonest tag of the word, else of its longest known ending.
    """
    rows = []
    for name in config.tasks:
        task = with_protocol(name, config.protocols[name])
        splits = load_task(name, data_root(config.data))
        train = sample_examples(splits["train"], config.max_train_examples, config.seed)
        test = sample_examples(splits["test"], config.max_test_examples, config.seed)
        answer = {"tagging": _tag, "classification": _classify, "regression": _compare}[task.kind]
        table = pd.DataFrame(answer(train, test, config.max_length))
        table = table.astype({"gold": object, "predicted": object})
        table["probabilities"] = [()] * len(table)
        rows.append((name, score_predictions(task, table)[task.headline]))
    return pd.DataFrame(rows, columns=["task", "score"])


def _tag(train: Dataset, test: Dataset, _: int) -> pd.DataFrame:
    """One row a word: the commonest tag of the word, else of its longest known ending."""
    seen, asked = (_words(part) for part in (train, test))
    guess = pd.Series(seen["gold"].mode()[0], index=asked.index)
    for letters in LETTERS:
        tags = seen.assign(ending=seen["word"].str[-letters:])[["ending", "gold"]].value_counts()
        commonest = tags.reset_index().drop_duplicates("ending").set_index("ending")["gold"]
        guess = asked["word"].str[-letters:].map(commonest).fillna(guess)
    return asked.assign(predicted=guess)


def _words(part: Dataset) -> pd.DataFrame:
    """One row a word: example, word, gold, position."""
    names = np.array(part.features["labels"].feature.names, dtype=object)
    columns = {"id": "example", "tokens": "word", "labels": "gold"}
    table = part.to_pandas()[list(columns)].rename(columns=columns).explode(["word", "gold"])
    table = table.reset_index(drop=True).assign(gold=names[table["gold"].astype(int)])
    return table.assign(position=table.groupby("example").cumcount())


def _texts(part: Dataset, column: str, most: int) -> list[str]:
    return [" ".join(text.split()[:most]) for text in part[column]]


def _classify(train: Dataset, test: Dataset, most: int) -> dict:
    """One row a text: the class by logistic regression; a pair is read as one text."""
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    model = make_pipeline(make_union(words, letters), LogisticRegression(C=10, max_iter=1000))
    seen, asked = (
        [" ".join(pair) for pair in zip(*(_texts(part, one, most) for one in PAIR), strict=True)]
        for part in (train, test)
    )
    names = np.array(train.features["label"].names, dtype=object)
    units = {"example": test["id"], "position": 0, "gold": names[test["label"]]}
    return units | {"predicted": names[model.fit(seen, train["label"]).predict(asked)]}


def _compare(train: Dataset, test: Dataset, most: int) -> dict:
    """One row a pair: the cosine of the TF-IDF vectors of words, fitted on the training pairs."""
    vectors = TfidfVectorizer().fit([text for one in PAIR for text in _texts(train, one, most)])
    ours, theirs = (vectors.transform(_texts(test, one, most)) for one in PAIR)
    cosine = np.asarray(ours.multiply(theirs).sum(axis=1)).ravel()
    units = {"example": test["id"], "position": 0, "gold": np.asarray(test["label"], dtype=float)}
    return units | {"predicted": cosine}

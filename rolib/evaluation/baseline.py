"""A bag of words as a model of the study: no network, nothing pre-trained."""

from pathlib import Path

import numpy as np
import pandas as pd
from datasets import DatasetDict
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline, make_union

from rolib.config import EvaluateConfig
from rolib.data.corpus import normalise
from rolib.evaluation import examples, finetune
from rolib.evaluation.predictions import COLUMNS
from rolib.measures import with_protocol

PAIR = ["text", "text_pair"]
LETTERS = [1, 2, 3, 4, 5, 1000]  # of the endings; the last is the whole word


def evaluate_bag_of_words(config: EvaluateConfig, splits: DatasetDict, folder: Path) -> dict:
    """The content of scores.json: the scores of the baseline on one measure.

    It has the examples of the models, their normalised texts, and the first `max_length` words.
    Classification: TF-IDF of words and characters, then logistic regression. Similarity: the cosine
    of the TF-IDF vectors. Tagging: the tags that the word, else its longest known ending, has in
    the training split. Writes predictions.parquet and scores.json into `folder`.
    """
    [task_name], [seed] = config.tasks, config.seeds
    task = with_protocol(task_name, config.protocols[task_name])
    parts = examples.sample_splits(config, splits)
    labels = examples.label_names(task, parts["train"])
    train, test = (parts[name].to_pandas() for name in ("train", "test"))
    if task.kind == "tagging":
        train, test = (part.explode(["tokens", "labels"], True) for part in (train, test))
        probabilities = _tag(train, test, len(labels))
    else:
        for part in (train, test):
            for column in PAIR:
                words = part[column].map(normalise).str.split()
                part[column] = words.str[: config.max_length].str.join(" ")
        if task.protocol == "content":
            train["text"] = test["text"] = ""
        probabilities = _classify(train, test, len(labels)) if labels else np.empty((len(test), 0))
    table = test.rename(columns={"id": "example", "label": "gold", "labels": "gold"})
    if labels:
        names = np.array(labels, dtype=object)
        table["predicted"] = names[probabilities.argmax(1)]
        table["gold"] = names[table["gold"].astype(int)]
    else:
        table["predicted"] = examples.STS_MAX * _compare(train, test)
    table["position"] = table.groupby("example").cumcount()
    table["probabilities"] = list(probabilities.astype(np.float32))
    facts = {"labels": labels, "recipe": {}, "grid": [], "best_epoch": 0}
    counts = {"test": {"examples": len(parts["test"]), "units": len(table)}}
    return finetune.write_result(folder, task, seed, table[COLUMNS], **facts, counts=counts)


def _tag(train: pd.DataFrame, test: pd.DataFrame, labels: int) -> np.ndarray:
    """(N, labels): how often the word, else its longest known ending, has each tag in training."""
    tags, (seen, asked) = range(labels), (part["tokens"].map(normalise) for part in (train, test))
    found = np.tile(train["labels"].value_counts().reindex(tags, fill_value=0), (len(test), 1))
    for letters in LETTERS:
        times = pd.crosstab(seen.str[-letters:], train["labels"])
        rows = times.index.get_indexer(asked.str[-letters:])
        known = times.reindex(columns=tags, fill_value=0).to_numpy()
        found[rows >= 0] = known[rows[rows >= 0]]
    return found / found.sum(axis=1, keepdims=True)


def _classify(train: pd.DataFrame, test: pd.DataFrame, labels: int) -> np.ndarray:
    """(N, labels): the probabilities by logistic regression; a pair is read as one text."""
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    model = make_pipeline(make_union(words, letters), LogisticRegression(C=10, max_iter=1000))
    seen, asked = (part["text"] + " " + part["text_pair"] for part in (train, test))
    model.fit(seen, train["label"])
    probabilities = np.zeros((len(test), labels))
    probabilities[:, model.classes_] = model.predict_proba(asked)  # 0: a label unseen in training
    return probabilities


def _compare(train: pd.DataFrame, test: pd.DataFrame) -> np.ndarray:
    """(N,) the cosines of the TF-IDF vectors of words, fitted on the training pairs."""
    vectors = TfidfVectorizer().fit(pd.concat([train[side] for side in PAIR]))
    ours, theirs = (vectors.transform(test[side]) for side in PAIR)
    return np.asarray(ours.multiply(theirs).sum(axis=1)).ravel()

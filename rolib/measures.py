"""The seven measures, and how the literature runs each of them (protocols). Names only."""

from typing import NamedTuple


class Task(NamedTuple):
    """One measure, run by one protocol."""

    name: str
    kind: str  # "tagging" | "classification" | "regression"
    dataset: str  # folder name under the data root
    title: str
    protocol: str  # one of PROTOCOLS
    headline: str  # the score that picks the best checkpoint and fills the summary table


# For each measure: protocol -> headline score. The first protocol is the default.
# The model cards call their UPOS and XPOS scores macro-F1 and their NER score F1. In fact these
# equal accuracy and boundary F1.
PROTOCOLS = {
    # Over words.
    "upos": {"accuracy": "accuracy", "macro_f1": "macro_f1"},
    "xpos": {"accuracy": "accuracy", "macro_f1": "macro_f1"},
    # Strict: the class of an entity counts. Boundary: only its borders count.
    "ner": {"strict": "strict_f1_micro", "boundary": "boundary_f1_micro"},
    # The model reads a review as a pair, or without its title.
    "sapn": {"title+content": "accuracy", "content": "accuracy"},
    "sar": {"title+content": "macro_f1", "content": "macro_f1"},
    "di": {"macro_f1": "macro_f1", "accuracy": "accuracy"},
    # The model reads both sentences together, or each alone; then the two vectors are compared.
    "sts": {"pair": "pearson", "bi-encoder": "pearson"},
}

_TABLE = [
    ("upos", "tagging", "UD_Romanian-RRT", "Universal part of speech (UPOS)"),
    ("xpos", "tagging", "UD_Romanian-RRT", "Romanian part of speech and morphology (XPOS)"),
    ("ner", "tagging", "ronec", "Named entities (NER)"),
    ("sapn", "classification", "LaRoSeDa", "Sentiment, positive or negative (SAPN)"),
    ("sar", "classification", "LaRoSeDa", "Sentiment, star rating (SAR)"),
    ("di", "classification", "MOROCO", "Dialect, Moldavian or Romanian (DI)"),
    ("sts", "regression", "RO-STS", "Semantic textual similarity (STS)"),
]
TASKS = {row[0]: Task(*row, *next(iter(PROTOCOLS[row[0]].items()))) for row in _TABLE}


def with_protocol(name: str, protocol: str) -> Task:
    """The measure `name` run by one of its PROTOCOLS; KeyError for another protocol."""
    return TASKS[name]._replace(protocol=protocol, headline=PROTOCOLS[name][protocol])

"""The seven measures and the ways in which the literature runs each of them (protocols). Names only."""

from typing import NamedTuple


class Task(NamedTuple):
    name: str
    kind: str  # "tagging" | "classification" | "regression"
    dataset: str  # folder name under the data root
    title: str
    protocol: str  # one of PROTOCOLS
    headline: str  # the score that picks the best checkpoint and fills the summary table


# The ways in which the literature runs each measure: protocol -> headline score. The first is the default here. The model
# cards call their UPOS and XPOS figures macro-F1 and their NER figure F1, but these equal accuracy and boundary F1.
PROTOCOLS = {
    "upos": {"accuracy": "accuracy", "macro_f1": "macro_f1"},  # over words
    "xpos": {"accuracy": "accuracy", "macro_f1": "macro_f1"},
    "ner": {
        "strict": "strict_f1_micro",
        "boundary": "boundary_f1_micro",
    },  # a span's class counts, or its borders alone
    "sapn": {
        "title+content": "accuracy",
        "content": "accuracy",
    },  # a review is read as a pair, or without its title
    "sar": {"title+content": "macro_f1", "content": "macro_f1"},
    "di": {"macro_f1": "macro_f1", "accuracy": "accuracy"},
    "sts": {
        "pair": "pearson",
        "bi-encoder": "pearson",
    },  # both sentences read together, or apart and then compared
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


def with_protocol(name: str, protocol: str) -> Task:
    """The task run by one of its PROTOCOLS; KeyError for another."""
    return TASKS[name]._replace(protocol=protocol, headline=PROTOCOLS[name][protocol])

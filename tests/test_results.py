"""The tables of a study, from made-up prediction tables: intervals, comparisons, loyalty with floor and chance, calibration."""

import json

import numpy as np
import pandas as pd
import yaml

from rolib.metrics import score_predictions
from rolib.tasks import TASKS

NER_TAGS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
SIZES = {"upos": (12, 6, 5), "xpos": (12, 6, 9), "ner": (11, 6, 5), "sapn": (30, 1, 2), "sar": (30, 1, 4), "di": (25, 1, 2)}
SIZES |= {"sts": (20, 1, 0)}  # examples, words in each at most, labels
TEACHERS = {"distil-cased": ["bert-cased"], "distil-uncased": ["bert-uncased"], "distil-multi": ["bert-cased", "bert-uncased"]}
MODELS = ["bert-cased", "bert-uncased", *TEACHERS, "distil-cased-mlm", "distil-uncased-mlm"]
MODELS += [f"{name}-random" for name in ("bert-cased", "bert-uncased", "distil-cased", "distil-uncased")]


def write_study(folder, seeds=(1, 2, 3), sizes=SIZES):
    """A profile's folder as notebooks 01 to 03 leave it, with predictions that are right more often than not."""
    for name in ["bert-cased", "bert-uncased", *TEACHERS, "distil-cased-mlm", "distil-uncased-mlm"]:
        run = folder / ("teachers" if name.startswith("bert") else "students") / name
        run.mkdir(parents=True)
        teachers = TEACHERS.get(name.removesuffix("-mlm"), [])
        settings = {"teachers": dict.fromkeys(teachers, 1.0), "objective": "mlm" if name.endswith("-mlm") else "distill"}
        run.joinpath("config.yaml").write_text(yaml.safe_dump(settings | {"num_layers": 4 - 2 * bool(teachers)}))
    for task, (examples, words, labels) in sizes.items():
        rng = np.random.default_rng(len(task) * 1000 + examples)
        lengths = rng.integers(1, words + 1, examples)
        units = [(f"s{number}", position) for number, length in enumerate(lengths) for position in range(length)]
        table = pd.DataFrame(units, columns=["example", "position"]).astype({"position": "int32"})
        names = NER_TAGS if task == "ner" else [f"L{number:03}" for number in range(labels)]
        truth = rng.uniform(0, 5, len(units)).round(1) if task == "sts" else rng.geometric(0.4, len(units)).clip(1, labels) - 1
        for skill, model in enumerate(reversed(MODELS)):
            for seed in seeds:
                run = folder / "evaluation" / model / task / f"seed-{seed}"
                write_run(run, task, seed, table, names, truth, 1 + skill / 10, np.random.default_rng([skill, seed, examples]))


def write_run(run, task, seed, table, names, truth, skill, rng):
    run.mkdir(parents=True)
    if task == "sts":
        gold, predicted = truth, truth / 2 + rng.normal(size=len(truth)) / skill
        probabilities = [np.zeros(0, dtype=np.float32)] * len(truth)
    else:
        logits = rng.gumbel(size=(len(truth), len(names))) * 1.5
        logits[np.arange(len(truth)), truth] += 2 * skill + 1.5 * np.log(len(names))
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        gold, predicted = np.array(names)[truth], np.array(names)[probabilities.argmax(axis=1)]
        probabilities = list(probabilities.astype(np.float32))
    table = table.assign(gold=gold, predicted=predicted, probabilities=probabilities)
    table.to_parquet(run / "predictions.parquet", compression="zstd", index=False)
    test = score_predictions(TASKS[task], table)
    facts = {"task": task, "seed": seed, "headline": TASKS[task].headline, "test": test, "labels": names}
    run.joinpath("scores.json").write_text(json.dumps(facts))
    run.joinpath("manifest.json").write_text(json.dumps({"notes": []}))

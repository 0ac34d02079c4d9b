"""The stages of a study: what notebooks 01, 02 and 03 run. Each reads finished inputs and leaves run folders.

A stage that already ran with the same configuration and the same inputs returns its folder at once.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from datasets import DatasetDict
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, BertForMaskedLM, DistilBertForMaskedLM
from transformers.utils import logging as transformers_logging

from rolib import runs, training
from rolib.config import EvaluateConfig, StudentConfig, TeacherConfig, TrainingConfig, check_depth
from rolib.data import corpus
from rolib.data.download import data_root
from rolib.data.tasks import load_task, task_source
from rolib.distillation import loop, models
from rolib.distillation.alignment import Projection, check_wordpiece, same_vocabulary
from rolib.distillation.losses import IGNORE
from rolib.distillation.masking import MaskingCollator
from rolib.evaluation.finetune import finetune

# A fresh task head and unused MLM weights are what fine-tuning means; a report of them for every run buries the progress.
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
PLATEAU_MARGIN = (
    1.0  # nats below the frequency baseline from which a model counts as having left the plateau
)


def prepare_blocks(config: TrainingConfig, texts: DatasetDict, tokenizers: list) -> DatasetDict:
    """Blocks of the train and held-out documents, with a view for each tokenizer."""
    return DatasetDict(
        {
            name: corpus.build_blocks(split, tokenizers, config.block_length)
            for name, split in texts.items()
        }
    )


def frequency_baseline(blocks: DatasetDict, tokenizer, collator: MaskingCollator) -> float:
    """Held-out MLM loss (nats) of a model that knows the pieces' frequencies and nothing else.

    It predicts the add-one smoothed unigram distribution of the train blocks at the masked held-out positions: the
    plateau on which a masked language model rests before it starts to use context.
    """
    counts = torch.ones(len(tokenizer))
    for batch in blocks["train"].select_columns("input_ids").iter(1000):
        pieces = torch.tensor([piece for block in batch["input_ids"] for piece in block[0][1:-1]])
        counts += torch.bincount(pieces, minlength=len(tokenizer))
    labels = collator(list(blocks["held_out"]))[0]["labels"]
    labels = labels[labels != IGNORE]
    return cross_entropy(counts.log().expand(len(labels), -1), labels).item()


def model_card(config: TrainingConfig, name: str, what: str) -> str:
    """The model card of a teacher or student."""
    return (
        f"---\nlanguage: ro\npipeline_tag: fill-mask\n---\n# {name}\n\nA Romanian {what}, of the `{config.profile}` profile. Expects "
        "comma-below ș ț. See manifest.json and config.yaml in this folder for its data, seed and parameters.\n"
    )


def corpus_hash(config: TrainingConfig, root: Path) -> str:
    """SHA-256 of the corpus files, or the hub's name for the corpus."""
    return (
        config.corpus
        if config.corpus.startswith("hub:")
        else runs.sha256(corpus.source_folder(config.corpus, root))
    )


def prepare_teacher(
    config: TeacherConfig, on_log: Callable[[dict], None] = lambda record: None
) -> Path:
    """Pre-train or fetch a teacher, and leave it with its gate.json as runs/<profile>/teachers/<teacher>."""
    root, folder = data_root(config.data), config.folder / "teachers" / config.teacher
    inputs = {"corpus": corpus_hash(config, root), "source": config.source}
    if runs.is_finished(folder, config, inputs):
        return folder
    texts = corpus.load_corpus(config, root)
    if config.source == "pretrain":
        tokenizer = models.train_tokenizer(
            texts["train"]["text"], config.vocab_size, config.lowercase, models.MAX_POSITIONS
        )
    else:
        teacher, tokenizer = models.load_teacher(config)
    blocks = prepare_blocks(config, texts, [tokenizer])
    with runs.new_run(folder, config, inputs, notes=[]) as working:
        if config.source == "pretrain":
            torch.manual_seed(config.seed)
            teacher = models.build_teacher(config, tokenizer)
            teacher = loop.train(config, teacher, [tokenizer], blocks, working, on_log=on_log)
        origin = (
            "pre-trained from random weights"
            if config.source == "pretrain"
            else f"a copy of {config.source}"
        )
        case = "lower-cased" if config.lowercase else "cased"
        card = model_card(config, config.teacher, f"BERT teacher, {origin}, {case}, accents kept")
        models.save_model(teacher, tokenizer, working, card)
        runs.write_json(working / "gate.json", leave_plateau(config, teacher, tokenizer, blocks))
    return folder


def leave_plateau(
    config: TeacherConfig, teacher: BertForMaskedLM, tokenizer, blocks: DatasetDict
) -> dict:
    """The first half of the gate: has the teacher learned more than frequencies? A teacher on that plateau teaches nothing.

    Returns held_out_mlm and frequency_baseline (nats), and left_plateau: is the first `PLATEAU_MARGIN` below the second? The
    second half, whether it beats random weights on the measures, is `evaluate_model` of both (notebook 01).
    """
    collator, device = (
        MaskingCollator([tokenizer], config.mask_share, config.seed),
        training.make_accelerator().device,
    )
    held_out = loop.held_out_losses(
        models.MaskedLM(teacher).to(device), [], blocks["held_out"], collator, config, device
    )
    teacher.cpu()
    baseline = frequency_baseline(blocks, tokenizer, collator)
    return held_out | {
        "frequency_baseline": baseline,
        "left_plateau": held_out["held_out_mlm"] < baseline - PLATEAU_MARGIN,
    }


def load_teachers(config: StudentConfig) -> tuple[list[loop.Teacher], list]:
    """The teachers of a student and the tokenizers they read with, the student's first; teachers may share one.

    Raises ConfigError for tokenizers whose pieces cannot be told in the student's.
    """
    teachers, tokenizers = [], []
    for name, share in config.shares.items():
        source = runs.model_folder(config, name)
        tokenizer = AutoTokenizer.from_pretrained(source)
        check_wordpiece(tokenizer, name)
        view = next(
            (i for i, known in enumerate(tokenizers) if same_vocabulary(known, tokenizer)),
            len(tokenizers),
        )
        tokenizers += [tokenizer] * (view == len(tokenizers))
        projection = (
            Projection(tokenizers[0], tokenizer, (next(iter(config.shares)), name))
            if view
            else None
        )
        model = models.MaskedLM(BertForMaskedLM.from_pretrained(source))
        teachers.append(loop.Teacher(name, model, share, view, projection))
    return teachers, tokenizers


def distil_student(
    config: StudentConfig,
    on_log: Callable[[dict], None] = lambda record: None,
    folder: Path | None = None,
) -> Path:
    """Distil a student from its teachers, or train its MLM-only control (the first teacher's vocabulary, no teacher).

    Leaves and returns runs/<profile>/students/<student>, or `folder`.
    """
    root, folder = data_root(config.data), folder or config.folder / "students" / config.student
    inputs = {"corpus": corpus_hash(config, root)}
    inputs |= {
        name: runs.sha256(runs.model_folder(config, name) / "model.safetensors")
        for name in config.shares
    }
    if runs.is_finished(folder, config, inputs):
        return folder
    teachers, tokenizers = load_teachers(config)
    first = teachers[0].model.model
    check_depth(config.num_layers, first.config.num_hidden_layers)
    if config.objective == "mlm":
        teachers, tokenizers = [], tokenizers[:1]
    blocks = prepare_blocks(config, corpus.load_corpus(config, root), tokenizers)
    torch.manual_seed(config.seed)
    if teachers:
        student = models.init_student(first, config.num_layers)
    else:
        student = models.init_local_attention(
            DistilBertForMaskedLM(models.student_shape(first.config, config.num_layers))
        )
    with runs.new_run(folder, config, inputs) as working:
        student = loop.train(config, student, tokenizers, blocks, working, teachers, on_log)
        how = (
            f"distilled from {' and '.join(config.shares)}"
            if teachers
            else "pre-trained by masked words alone (control)"
        )
        card = model_card(
            config, config.student, f"DistilBERT with {config.num_layers} layers, {how}"
        )
        models.save_model(student, tokenizers[0], working, card)
    return folder


def evaluate_model(
    config: EvaluateConfig,
    on_result: Callable[[dict], None] = lambda result: None,
    source: Path | None = None,
    folder: Path | None = None,
) -> list[dict]:
    """Fine-tune a model on every task with every seed; leave runs/<profile>/evaluation/<model>/<task>/seed-<k>.

    source: the model's folder, if it is none of the profile's own; folder: where the results go instead. Returns the
    scores.json of each run; on_result is called with each as it comes.
    """
    root, random_weights = data_root(config.data), config.model.endswith("-random")
    source = source or runs.model_folder(config, config.model.removesuffix("-random"))
    place = folder or config.folder / "evaluation" / config.model
    weights = runs.sha256(source / "model.safetensors")
    results = []
    for name in config.tasks:
        files = task_source(name, root)
        inputs = {
            "model": weights,
            **{file.relative_to(root).as_posix(): runs.sha256(file) for file in files.files},
        }
        splits = None
        for seed in config.seeds:
            # A run is known by what it alone depends on, so that a seed or a task added later leaves the others finished.
            recipe = {
                "tasks": [name],
                "seeds": [seed],
                "keep_models": config.keep_models and seed == config.seeds[0],
            }
            recipe |= {
                key: {name: getattr(config, key)[name]}
                for key in ("protocols", "epochs", "learning_rates")
            }
            one = config.model_copy(update=recipe)
            run = place / name / f"seed-{seed}"
            if not runs.is_finished(run, one, inputs):
                splits = splits or load_task(name, root)
                with runs.new_run(
                    run, one, inputs, notes=[files.note] if files.note else []
                ) as working:
                    (working / "metrics.jsonl").unlink(missing_ok=True)  # of an interrupted run
                    finetune(one, name, seed, source, random_weights, splits, working)
            results.append(runs.read_json(run / "scores.json", "`make demo`"))
            on_result(results[-1])
    return results

"""The stages of a study: what notebooks 01, 02 and 03 run.

Each reads finished inputs and leaves run folders. A stage that already ran with the same
configuration and the same inputs returns its folder at once.
"""

import gc
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from datasets import DatasetDict
from transformers import AutoConfig, AutoTokenizer, BertForMaskedLM, DistilBertForMaskedLM
from transformers import PreTrainedTokenizerFast as Tokenizer

from rolib import runs
from rolib.config import EvaluateConfig, StudentConfig, TeacherConfig, TrainingConfig
from rolib.data import corpus
from rolib.data.download import data_root
from rolib.data.pretrained import MADE_BY, pretrained_folder
from rolib.data.tasks import load_task, task_source
from rolib.distillation import loop, models
from rolib.distillation.alignment import Projection, check_wordpiece, same_vocabulary
from rolib.distillation.cache import TeacherCache, write_cache
from rolib.distillation.losses import IGNORE
from rolib.distillation.masking import MaskingCollator
from rolib.distillation.objective import Objective, Teacher
from rolib.evaluation.finetune import finetune, read_splits
from rolib.profiles import check_depth, check_positions
from rolib.training import choose_precision

PLATEAU_MARGIN = 1.0  # nats below the frequency baseline at which a model has left the plateau
OnRecord = Callable[[dict], None]


def ignore(record: dict) -> None:
    """Do nothing with a record."""


def prepare_blocks(
    config: TrainingConfig, texts: DatasetDict, tokenizers: list[Tokenizer]
) -> DatasetDict:
    """Blocks of the train and held-out documents, with a view for each tokenizer."""
    length = config.block_length
    return DatasetDict(
        {name: corpus.build_blocks(split, tokenizers, length) for name, split in texts.items()}
    )


def frequency_baseline(
    blocks: DatasetDict, tokenizer: Tokenizer, collator: MaskingCollator
) -> float:
    """The held-out MLM loss (nats) of a model that knows the pieces' frequencies only.

    It predicts the add-one smoothed unigram distribution of the train blocks at the masked held-out
    positions. A masked language model rests on this plateau before it starts to use context.
    """
    counts = torch.ones(len(tokenizer))
    for batch in blocks["train"].select_columns("input_ids").iter(1000):
        pieces = torch.tensor([piece for block in batch["input_ids"] for piece in block[0][1:-1]])
        counts += torch.bincount(pieces, minlength=len(tokenizer))
    labels = collator(list(blocks["held_out"]))[0]["labels"]
    log_probs = counts.log() - counts.sum().log()
    return -log_probs[labels[labels != IGNORE]].mean().item()


def model_card(config: TrainingConfig, name: str, what: str) -> str:
    """The model card of a teacher or student."""
    return (
        f"---\nlanguage: ro\npipeline_tag: fill-mask\n---\n# {name}\n\n"
        f"A Romanian {what}, of the `{config.profile}` profile. Expects comma-below ș ț. "
        "See manifest.json and config.yaml in this folder for its data, seed and parameters.\n"
    )


def prepare_teacher(config: TeacherConfig, on_log: OnRecord = ignore) -> Path:
    """The folder of a teacher that was pre-trained or fetched, with its gate.json.

    It is runs/<profile>/teachers/<teacher>. on_log is called with each metrics record.
    """
    root, folder = data_root(config.data), config.folder / "teachers" / config.teacher
    inputs = {"corpus": corpus.corpus_identity(config, root), "source": config.source}
    inputs["revision"] = config.revision
    if config.shipped:
        inputs["weights"] = runs.model_identity(pretrained_folder(config.shipped), MADE_BY)
    if runs.is_finished(folder, config, inputs):
        return folder
    texts = corpus.load_corpus(config, root)
    pretrain, facts = config.source == "pretrain", dict[str, Any](notes=[])
    if pretrain:
        texts_read = texts["train"]["text"]
        tokenizer = models.train_tokenizer(texts_read, config.vocab_size, config.lowercase)
    else:
        teacher, tokenizer = models.load_teacher(config)
        check_positions(config.block_length, teacher.config.max_position_embeddings, config.source)
        facts["source_commit"] = getattr(teacher.config, "_commit_hash", None)
    blocks = prepare_blocks(config, texts, [tokenizer])
    if pretrain:
        torch.manual_seed(config.seed)
        teacher = models.build_teacher(config, tokenizer)
        facts["precision"] = choose_precision(config.precision, config.hidden_size)
    with runs.new_run(folder, config, inputs, **facts) as working:
        if pretrain:
            teacher = loop.train(config, teacher, [tokenizer], blocks, working, on_log=on_log)
        elif config.shipped:  # the curve of its training, on the text of its own manifest
            shutil.copy(pretrained_folder(config.shipped) / "metrics.jsonl", working)
        origin = "pre-trained from random weights" if pretrain else f"a copy of {config.source}"
        case = "lower-cased" if config.lowercase else "cased"
        what = f"BERT teacher, {origin}, {case}, accents kept"
        models.save_model(teacher, tokenizer, working, model_card(config, config.teacher, what))
        runs.write_json(working / "gate.json", leave_plateau(config, teacher, tokenizer, blocks))
    return folder


def leave_plateau(
    config: TeacherConfig, teacher: BertForMaskedLM, tokenizer: Tokenizer, blocks: DatasetDict
) -> dict:
    """The first half of the gate: has the teacher learned more than frequencies?

    Returns held_out_mlm and frequency_baseline (nats), and left_plateau: whether the first is at
    least `PLATEAU_MARGIN` lower. A teacher on the plateau teaches nothing. The second half, whether
    it beats random weights on the measures, is `evaluate_model` of both (notebook 01).
    """
    collator = MaskingCollator([tokenizer], config.mask_share, config.seed)
    model = models.MaskedLM(teacher).to(Accelerator().device)
    gate = loop.held_out_losses(model, Objective(config), blocks["held_out"], collator)
    teacher.cpu()
    gate["frequency_baseline"] = frequency_baseline(blocks, tokenizer, collator)
    least = gate["frequency_baseline"] - PLATEAU_MARGIN
    return gate | {"left_plateau": gate["held_out_mlm"] < least}


def load_teachers(config: StudentConfig) -> tuple[list[Teacher], list[Tokenizer]]:
    """The teachers of a student, and the tokenizers they read with, the student's first.

    Teachers may share a tokenizer. Raises ConfigError for vocabularies that cannot be projected
    onto the student's, and for blocks longer than a teacher can read.
    """
    teachers: list[Teacher] = []
    tokenizers: list[Tokenizer] = []
    for name, share in config.shares.items():
        source = runs.model_folder(config, name)
        tokenizer = AutoTokenizer.from_pretrained(source)
        check_wordpiece(tokenizer, name)
        known = [i for i, other in enumerate(tokenizers) if same_vocabulary(other, tokenizer)]
        view = known[0] if known else len(tokenizers)
        if not known:
            tokenizers.append(tokenizer)
        projection = None
        if view:
            projection = Projection(tokenizers[0], tokenizer, (teachers[0].name, name))
        model = models.fit_vocabulary(BertForMaskedLM.from_pretrained(source), tokenizer)
        check_positions(config.block_length, model.config.max_position_embeddings, name)
        teachers.append(Teacher(name, models.MaskedLM(model), share, view, projection))
    return teachers, tokenizers


def open_cache(
    config: StudentConfig,
    teachers: list[Teacher],
    tokenizers: list[Tokenizer],
    blocks: DatasetDict,
    inputs: dict[str, str],
) -> TeacherCache | None:
    """The teachers' stored answers, which are made if there are none; None if no cache is wanted.

    It lies in runs/<profile>/teacher-cache/<teachers>. inputs: as in the run's manifest.
    """
    if not (config.cached_pieces and teachers):
        return None
    accelerator, identity = Accelerator(), dict[str, Any](inputs)
    precision = choose_precision(config.precision, teachers[0].model.model.config.hidden_size)
    for view, tokenizer in enumerate(tokenizers):
        text = tokenizer.backend_tokenizer.to_str()
        identity[f"tokenizer of view {view}"] = hashlib.sha256(text.encode()).hexdigest()
    for key in ("cached_pieces", "data_seed", "words_per_source", "block_length", "mask_share"):
        identity[key] = getattr(config, key)
    identity["precision"] = precision
    number = len(blocks["train"])
    identity["epochs"] = loop.epochs_of(config, number, accelerator.num_processes)
    folder = config.folder / "teacher-cache" / "+".join(config.shares)
    with accelerator.main_process_first():
        if not folder.exists():
            objective = Objective(config, teachers, precision)
            write_cache(folder, identity, objective, blocks, tokenizers, accelerator.device)
    return TeacherCache(folder, identity)


def distil_student(
    config: StudentConfig, on_log: OnRecord = ignore, folder: Path | None = None
) -> Path:
    """The folder of a student that was distilled, or trained as its MLM-only control.

    A control has the first teacher's vocabulary and no teacher. The folder is
    runs/<profile>/students/<student>, or `folder`. on_log is called with each metrics record.
    """
    root, folder = data_root(config.data), folder or config.folder / "students" / config.student
    inputs = {"corpus": corpus.corpus_identity(config, root)}
    for name in config.shares:
        inputs[name] = runs.model_identity(runs.model_folder(config, name), runs.made_by(config))
    if runs.is_finished(folder, config, inputs):
        return folder
    teachers, tokenizers = load_teachers(config)
    first = teachers[0].model.model
    check_depth(config.num_layers, first.config.num_hidden_layers)
    if config.objective == "mlm":
        teachers, tokenizers = [], tokenizers[:1]
    state = PartialState()
    with state.main_process_first():  # the others find what it has stored
        blocks = prepare_blocks(config, corpus.load_corpus(config, root), tokenizers)
    torch.manual_seed(config.seed)
    if teachers:
        student = models.init_student(first, config.num_layers)
        how = f"distilled from {' and '.join(config.shares)}"
    else:
        shape = models.student_shape(first.config, config.num_layers)
        student = models.init_local_attention(DistilBertForMaskedLM(shape))
        how = "pre-trained by masked words alone (control)"
    precision = choose_precision(config.precision, first.config.hidden_size)
    with runs.new_run(folder, config, inputs, precision=precision) as working:
        cache = open_cache(config, teachers, tokenizers, blocks, inputs)
        student = loop.train(config, student, tokenizers, blocks, working, teachers, on_log, cache)
        what = f"DistilBERT with {config.num_layers} layers, {how}"
        card = model_card(config, config.student, what)
        if state.is_main_process:
            models.save_model(student, tokenizers[0], working, card)
    return folder


def evaluate_model(
    config: EvaluateConfig,
    on_result: OnRecord = ignore,
    source: Path | None = None,
    folder: Path | None = None,
) -> list[dict]:
    """The scores.json of each fine-tuning run of a model: every task with every seed.

    The runs are left as runs/<profile>/evaluation/<model>/<task>/seed-<k>, or in `folder`. source:
    the model's folder, if it is not one of the profile. on_result is called with each result.
    """
    root, random_weights = data_root(config.data), config.model.endswith("-random")
    source = source or runs.model_folder(config, config.model.removesuffix("-random"))
    folder = folder or config.folder / "evaluation" / config.model
    model = runs.model_identity(source, runs.made_by(config))
    # Each run ends with a collection of garbage, which need not search what was imported.
    gc.collect()
    gc.freeze()
    width = AutoConfig.from_pretrained(source).hidden_size
    precision = choose_precision(config.precision, width)
    state, scores = PartialState(), list[Path]()
    for name in config.tasks:
        files, splits = task_source(name, root), None
        notes = [files.note] if files.note else []
        facts: dict[str, Any] = {"notes": notes, "precision": precision, "together": False}
        inputs = {"model": model}
        inputs |= {file.relative_to(root).as_posix(): runs.sha256(file) for file in files.files}
        for seed in config.seeds:
            run, one = folder / name / f"seed-{seed}", single_run(config, name, seed)
            scores.append(run / "scores.json")
            if len(scores) % state.num_processes != state.process_index:
                continue  # several processes share the runs out
            if not runs.is_finished(run, one, inputs):
                splits = splits or read_splits(config, name, source, load_task(name, root))
                with runs.new_run(run, one, inputs, **facts) as working:
                    (working / "metrics.jsonl").unlink(missing_ok=True)  # of an interrupted run
                    finetune(one, name, seed, source, random_weights, splits, working)
            on_result(runs.read_json(scores[-1], runs.made_by(config)))
    state.wait_for_everyone()
    return [runs.read_json(path, runs.made_by(config)) for path in scores]


def single_run(config: EvaluateConfig, task: str, seed: int) -> EvaluateConfig:
    """The configuration of one run: only what it depends on.

    So a seed or a task that is added later leaves the other runs finished.
    """
    keep = config.keep_models and seed == config.seeds[0]
    changes: dict = {"tasks": [task], "seeds": [seed], "keep_models": keep}
    for key in ("protocols", "epochs", "learning_rates"):
        changes[key] = {task: getattr(config, key)[task]}
    return config.model_copy(update=changes)

"""The stages of a study: what notebooks 01, 02 and 03 run.

Each reads finished inputs and leaves run folders. A stage that already ran with the same
configuration and the same inputs returns its folder at once.
"""

import gc
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from datasets import DatasetDict
from transformers import BertForMaskedLM, PreTrainedModel
from transformers import PreTrainedTokenizerFast as Tokenizer
from transformers.utils.hub import extract_commit_hash

from rolib import runs
from rolib.config import EvaluateConfig, StudentConfig, TeacherConfig, TrainingConfig, to_dict
from rolib.data import corpus
from rolib.data.download import data_root
from rolib.data.pretrained import MADE_BY, pretrained_folder
from rolib.data.tasks import load_task, task_source
from rolib.distillation import loop, models
from rolib.distillation.alignment import Projection, check_wordpiece, same_vocabulary
from rolib.distillation.cache import TeacherCache, write_cache
from rolib.distillation.checkpoints import delayed_signals
from rolib.distillation.gate import leave_plateau, pass_gate
from rolib.distillation.objective import Objective, Teacher
from rolib.distillation.records import OnLog
from rolib.evaluation.baseline import evaluate_bag_of_words
from rolib.evaluation.finetune import finetune
from rolib.evaluation.task_distillation import identities, read_taught
from rolib.profiles import check_depth, check_positions, load
from rolib.training import choose_precision, processes

BAG_OF_WORDS = "bag-of-words"
# What a student or control is, by its objective. The last four are taught by no teacher.
MADE = {
    "distill": "distilled from {teachers}",
    "mlm": "pre-trained by masked words alone, from random weights (control)",
    "init-only": "that starts from layers of {first}, trained by masked words alone (control)",
    "truncated": "made of layers of {first}, not trained further (control)",
    "longer": "that starts as {first} itself, trained on by masked words (control)",
}


def prepare_blocks(texts: DatasetDict, tokenizers: list[Tokenizer], length: int) -> DatasetDict:
    """Blocks of the train and held-out documents, with a view for each tokenizer."""
    blocks = {name: corpus.build_blocks(split, tokenizers, length) for name, split in texts.items()}
    return DatasetDict(blocks)


def model_card(config: TrainingConfig, name: str, what: str) -> str:
    """The model card of a teacher or student."""
    romanian = config.corpus == "data" or config.corpus.endswith(".ro")  # else nobody knows
    language, letters = ("language: ro\n", " Expects comma-below ș ț.") if romanian else ("", "")
    return (
        f"---\n{language}pipeline_tag: fill-mask\n---\n# {name}\n\n"
        f"A {what}, of the `{config.profile}` profile.{letters} "
        "See manifest.json and config.yaml in this folder for its data, seed and parameters.\n"
    )


def launch(stage: str, config: TrainingConfig, folder: Path, on_log: OnLog) -> bool:
    """Make the run `folder` of a stage in several processes of this machine, if it shall have them.

    Returns False if this process shall make it: alone, or as one of those that were started.
    Their bars and errors appear here; on_log gets the records at the end. A signal is passed on and
    acts when they have ended. Raises RuntimeError if one of them fails.
    """
    if config.num_processes == 1 or "LOCAL_RANK" in os.environ:
        return False
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file, delayed_signals() as signals:
        yaml.safe_dump(to_dict(config), file, sort_keys=False)
        file.flush()
        # setpriv: they stop if this process dies. macOS has none.
        command = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
        command += [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(config.num_processes)]
        command += ["-m", "rolib.stages", stage, str(folder), file.name]
        # It kills after 30 seconds, and a step with its checkpoint may take longer.
        patience = os.environ | {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "100"}
        with subprocess.Popen(command, start_new_session=True, env=patience) as group:
            while group.poll() is None and not signals:
                time.sleep(0.2)
            group.terminate()  # if it still works: they write a checkpoint
    if group.returncode:
        raise RuntimeError(f"{folder}: a process failed: its error stands above")
    for record in runs.read_metrics(folder / "metrics.jsonl"):
        on_log(record)
    return True


def prepare_teacher(
    config: TeacherConfig, on_log: OnLog = lambda record: None, folder: Path | None = None
) -> Path:
    """The folder of a teacher that was pre-trained or fetched, with its gate.json.

    It is runs/<profile>/teachers/<teacher>, or `folder`. on_log is called with each metrics record.
    Raises ConfigError for a teacher on the plateau, if config.require_gate; its folder stays.
    """
    root, folder = data_root(config.data), folder or config.folder / "teachers" / config.teacher
    identity = config.model_copy(update={"require_gate": True})  # on which the teacher depends not
    inputs = {"corpus": corpus.corpus_identity(config, root), "source": config.source}
    inputs["revision"] = config.revision
    if config.shipped:
        inputs["weights"] = runs.model_identity(pretrained_folder(config.shipped), MADE_BY)
    pretrain, facts = config.source == "pretrain", dict[str, Any]()
    finished = runs.is_finished(folder, identity, inputs)
    if finished or (pretrain and launch("prepare_teacher", config, folder, on_log)):
        return pass_gate(config, folder)
    if not pretrain:  # before the corpus, which may take an hour to read
        teacher, tokenizer = models.load_teacher(config)
        check_positions(config.block_length, teacher.config.max_position_embeddings, config.source)
        facts["source_commit"] = extract_commit_hash(f"{teacher.name_or_path}/config.json", None)
    state = processes()
    with state.main_process_first():  # the others find what it has stored
        texts = corpus.load_corpus(config, root)
    if pretrain:
        texts_read = texts["train"]["text"]
        tokenizer = models.train_tokenizer(texts_read, config.vocab_size, config.lowercase)
        torch.manual_seed(config.seed)
        teacher = models.build_teacher(config, tokenizer)
        facts["precision"] = choose_precision(config.precision, config.hidden_size)
    with state.main_process_first():
        blocks = prepare_blocks(texts, [tokenizer], config.block_length)
    with runs.new_run(folder, identity, inputs, **facts) as working:
        if pretrain:
            teacher = loop.train(config, teacher, [tokenizer], blocks, working, on_log=on_log)
        origin = "pre-trained from random weights" if pretrain else f"a copy of {config.source}"
        case = "lower-cased" if config.lowercase else "cased"
        what = f"BERT teacher, {origin}, {case}, accents kept"
        if state.is_main_process:
            if config.shipped:  # the curve of its training, on the text of its own manifest
                shutil.copy(pretrained_folder(config.shipped) / "metrics.jsonl", working)
            models.save_model(teacher, tokenizer, working, model_card(config, config.teacher, what))
            gate = leave_plateau(config, teacher, tokenizer, blocks)
            runs.write_json(working / "gate.json", gate)
    return pass_gate(config, folder)


def load_teachers(config: StudentConfig) -> tuple[list[Teacher], list[Tokenizer]]:
    """The teachers of a student, and the tokenizers they read with, the student's first.

    Teachers may share a tokenizer. Raises ConfigError for vocabularies that cannot be projected
    onto the student's, and for blocks longer than a teacher can read.
    """
    teachers: list[Teacher] = []
    tokenizers: list[Tokenizer] = []
    for name, share in config.shares.items():
        source = runs.model_folder(config, name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
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
    objective: Objective, tokenizers: list[Tokenizer], blocks: DatasetDict, inputs: dict[str, str]
) -> TeacherCache | None:
    """The teachers' stored answers, which are made if there are none; None if no cache is wanted.

    It lies in runs/<profile>/teacher-cache/<teachers>. inputs: as in the run's manifest.
    """
    config, state = objective.config, processes()
    if not (objective.teachers and config.cached_pieces):
        return None
    keys = {"cached_pieces", "data_seed", "words_per_source", "block_length", "mask_share"}
    identity: dict[str, Any] = inputs | config.model_dump(include=keys)
    epochs = loop.epochs_of(config, len(blocks["train"]), state.num_processes)
    identity |= {"precision": objective.precision, "epochs": epochs}
    folder = config.folder / "teacher-cache" / "+".join(config.shares)
    # Another run that wants the same answers waits for them.
    with state.main_process_first(), runs.lock(folder, timeout=-1):
        if not folder.exists():
            write_cache(folder, identity, objective, blocks, tokenizers, state.device)
    return TeacherCache(folder, identity)


def start_model(config: StudentConfig, teacher: BertForMaskedLM) -> PreTrainedModel:
    """What a student or control is before its training; random weights come from torch's seed."""
    if config.objective == "longer":
        return teacher
    if config.objective == "mlm":
        shape = models.student_shape(teacher.config, config.num_layers)
        return models.init_local_attention(transformers.DistilBertForMaskedLM(shape))
    return models.init_student(teacher, config.num_layers, config.layers)


def distil_student(
    config: StudentConfig, on_log: OnLog = lambda record: None, folder: Path | None = None
) -> Path:
    """The folder of a student that was distilled, or of one of its controls.

    A control (`MADE`) has the first teacher's vocabulary and is taught by no teacher. The folder is
    runs/<profile>/students/<student>, or `folder`. on_log is called with each metrics record.
    """
    root, folder = data_root(config.data), folder or config.folder / "students" / config.student
    inputs = {"corpus": corpus.corpus_identity(config, root)}
    for name in config.shares:
        inputs[name] = runs.model_identity(runs.model_folder(config, name), runs.made_by(config))
    # What a control does not have: layers to start from, and trained position embeddings to keep.
    unused: dict[str, dict] = {"longer": {"layers": []}}
    unused["mlm"] = {"layers": [], "freeze_positions": False}
    config = config.model_copy(update=unused.get(config.objective, {}))
    if runs.is_finished(folder, config, inputs) or launch("distil_student", config, folder, on_log):
        return folder
    teachers, tokenizers = load_teachers(config)
    first = teachers[0].model.model
    check_depth(config, first.config.num_hidden_layers)
    if config.objective != "distill":
        teachers = []  # it still reads the blocks and masks of its student: all tokenizers stay
    state = processes()
    with state.main_process_first():  # the others find what it has stored
        blocks = prepare_blocks(corpus.load_corpus(config, root), tokenizers, config.block_length)
    torch.manual_seed(config.seed)
    student = start_model(config, first)
    precision = choose_precision(config.precision, first.config.hidden_size)
    with runs.new_run(folder, config, inputs, precision=precision) as working:
        cache = open_cache(Objective(config, teachers, precision), tokenizers, blocks, inputs)
        if config.objective != "truncated":
            views = tokenizers, blocks
            student = loop.train(config, student, *views, working, teachers, on_log, cache)
        elif state.is_main_process:  # nothing is trained: what the start knows
            known = leave_plateau(config, student, tokenizers[0], blocks)
            record = {"step": 0, "held_out_mlm": known["held_out_mlm"]}
            runs.append_metrics(working / "metrics.jsonl", record)
        names = {"teachers": " and ".join(config.shares), "first": next(iter(config.shares))}
        kind = type(student).__name__.removesuffix("ForMaskedLM").replace("Bert", "BERT")
        layers = f"{student.config.num_hidden_layers} layers"
        what = f"{kind} with {layers}, {MADE[config.objective].format(**names)}"
        card = model_card(config, config.student, what)
        if config.objective == "longer":
            models.copy_pooler(student, Path(first.name_or_path))
        if state.is_main_process:
            models.save_model(student, tokenizers[0], working, card)
    return folder


def evaluate_model(
    config: EvaluateConfig,
    on_result: OnLog = lambda record: None,
    source: Path | None = None,
    folder: Path | None = None,
) -> list[dict]:
    """The scores.json of each fine-tuning run of a model: every task with every seed.

    The runs are left as runs/<profile>/evaluation/<model>/<task>/seed-<k>, or in `folder`. source:
    the model's folder, if it is not one of the profile. on_result is called with each result. The
    model "bag-of-words" is the baseline, which has no folder and one seed.
    """
    root = data_root(config.data)
    folder, command = folder or config.folder / "evaluation" / config.model, runs.made_by(config)
    seeds, model, more = config.seeds[:1], BAG_OF_WORDS, dict[str, Any]()
    if config.model != BAG_OF_WORDS:
        source = source or runs.model_folder(config, config.model.removesuffix("-random"))
        seeds, model = config.seeds, runs.model_identity(source, command)
        width = transformers.AutoConfig.from_pretrained(source).hidden_size
        more["precision"] = choose_precision(config.precision, width)
    # Each run ends with a collection of garbage, which need not search what was imported.
    gc.collect()
    gc.freeze()
    results = []
    for name in config.tasks:
        files, splits, recipe = task_source(name, root), None, None
        notes = [files.note] if files.note else []
        hashes = {file.relative_to(root).as_posix(): runs.sha256(file) for file in files.files}
        inputs = {"model": model} | hashes | identities(config, name)
        for seed in seeds:
            run = folder / name / f"seed-{seed}"
            one = single_run(config, name, seed, recipe)
            if not runs.is_finished(run, one, inputs):
                with runs.new_run(run, one, inputs, notes=notes, **more) as working:
                    (working / "metrics.jsonl").unlink(missing_ok=True)  # of an interrupted run
                    if source:
                        splits = splits or read_taught(one, source, load_task(name, root))
                        finetune(one, source, splits, working)
                    else:
                        evaluate_bag_of_words(one, load_task(name, root), working)
            results.append(runs.read_json(run / "scores.json", command))
            recipe = recipe or results[-1]["recipe"]  # of the first seed, for all
            on_result(results[-1])
    return results


def single_run(
    config: EvaluateConfig, task: str, seed: int, recipe: dict[str, Any] | None
) -> EvaluateConfig:
    """The configuration of one run: only what it depends on.

    So a seed or a task that is added later leaves the other runs finished. recipe: what the first
    seed chose; None for the first seed, which tries the grid.
    """
    keep = int(seed in config.seeds[: config.keep_models])
    changes: dict = {"tasks": [task], "seeds": [seed], "keep_models": keep}
    for key in ("protocols", "epochs", "learning_rates", "pooling"):
        changes[key] = {name: one for name, one in getattr(config, key).items() if name == task}
    if recipe:
        changes["epochs"] = {task: [recipe["epochs"]]}
        changes["learning_rates"] = {task: [recipe["learning_rate"]]}
        changes["pooling"] = dict.fromkeys(changes["pooling"], [recipe["pooling"]])
    return config.model_copy(update=changes)


def main() -> None:
    """Make a run as one process of a group: STAGE FOLDER FILE.yaml ... (a later file wins)."""
    stage, folder, *files = sys.argv[1:]
    if stage == "prepare_teacher":
        # The process that started the group judges the teacher.
        prepare_teacher(load(TeacherConfig, *files, require_gate=False), folder=Path(folder))
    else:
        distil_student(load(StudentConfig, *files), folder=Path(folder))


if __name__ == "__main__":
    main()

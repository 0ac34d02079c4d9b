"""Parameters: one frozen pydantic model a notebook. Unknown keys are refused, errors are one line.

`from_notebook` (rolib.parameters) validates the values of a notebook; `rolib.profiles` reads them
from files.
The descriptions below are the one place where the meaning of a parameter is written.
"""

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from rolib.measures import PROTOCOLS
from rolib.parameters import (  # noqa: F401 (all that a notebook needs comes from this module)
    ROOT,
    C,
    Config,
    ConfigError,
    Name,
    Size,
    from_notebook,
    to_dict,
    validate,
)

PRETRAINED = Path(__file__).parent / "data" / "pretrained"  # the shipped models
MAX_POSITIONS = 128  # the longest text, in pieces, of a teacher that is pre-trained on the spot

Count = Annotated[int, Field(ge=1)]
Pieces = Annotated[int, Field(ge=8, le=512)]
Share = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Counts = Annotated[list[Count], Field(min_length=1)]
Rates = Annotated[list[Positive], Field(min_length=1)]
Poolings = Annotated[list[Literal["cls", "mean"]], Field(min_length=1)]
Seeds = Annotated[list[Size], Field(min_length=1)]
TaskName = Literal["upos", "xpos", "ner", "sapn", "sar", "di", "sts"]
TextTask = Literal["sapn", "sar", "di", "sts"]
Tasks = Annotated[list[TaskName], Field(min_length=1)]
Teachers = Annotated[dict[Name, Weight], Field(min_length=1)]
Variants = Annotated[dict[Name, dict], Field(min_length=1)]
Weighting = Literal["fixed", "confidence"]
Strategy = Literal["lift", "intersection", "uld", "none"]
States = Literal["pieces", "words", "first"]
# Of one seed of its fine-tuning ("bert-cased:2"), or of the first.
TaskTeacher = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*(:[0-9]+)?$")]
TaskWeight = Annotated[float, Field(ge=0, le=1)]
# How a student is trained, or one of its controls (`rolib.stages.MADE` says what each is).
Objective = Literal["distill", "mlm", "init-only", "truncated", "longer"]
Control = Literal["mlm", "init-only", "truncated", "longer", "random"]
Part = Literal["robustness", "ablation", "export", "task", "budget"]


def pretrained_names() -> list[str]:
    """The names of the shipped models."""
    return sorted(path.parent.name for path in PRETRAINED.glob("*/manifest.json"))


class TrainingConfig(Config):
    """The recipe that pre-training and distillation share: text, masking, schedule."""

    corpus: str = Field(description='"data", a folder of .txt, .jsonl, .parquet, hub:<id>:<config>')
    corpus_revision: str = Field(description='commit, tag or branch of a hub corpus; else ""')
    data_seed: Size = Field(description="chooses documents and held-out split, one for a profile")
    words_per_source: Size = Field(description="words of each file, subfolder or hub set; 0: all")
    block_length: Pieces = Field(description="pieces in a block, [CLS] and [SEP] included")
    mask_share: float = Field(gt=0, lt=1, description="share of the words that are masked")
    steps: Count = Field(description="optimizer steps")
    batch_size: Count = Field(description="blocks in a micro-batch of one process")
    accumulation: Count = Field(description="micro-batches in a step")
    learning_rate: Positive = Field(description="highest learning rate of AdamW")
    warmup_share: Share = Field(description="share of the steps in which the rate rises")
    weight_decay: Weight = Field(description="decay of the weight matrices")
    log_every: Count = Field(description="steps between two records")
    checkpoint_every: Count = Field(description="steps between checkpoints and held-out losses")
    checkpoint_minutes: Positive = Field(10.0, description="at most between checkpoints")
    num_processes: Count = Field(1, description="GPUs, or processes on the CPU, of this machine")

    @property
    def mask_seed(self) -> int:
        """The seed of the masks."""
        return self.seed

    @model_validator(mode="after")
    def _pinned(self) -> "TrainingConfig":
        if self.corpus.startswith("hub:") and not self.corpus_revision:
            raise ValueError("corpus_revision: empty, but the corpus is on the hub: name a commit")
        hub = self.corpus.removeprefix("hub:").partition(":")[0]
        if self.corpus.startswith("hub:") and Path(hub).is_dir():  # known by its name alone
            raise ValueError(f"corpus: {hub!r} is a folder here: leave out 'hub:'")
        return self


class TeacherConfig(TrainingConfig):
    """01-prepare-teachers: a teacher from the hub, a folder, or pre-trained on the spot."""

    teacher: Name = Field(description="name of the teacher")
    source: str = Field(description='"pretrain", "pretrained" (shipped), a hub id or a folder')
    revision: str = Field(description='commit, tag or branch of a hub model; else ""')
    lowercase: bool = Field(description="lower-case the text; accents are always kept")
    vocab_size: int = Field(ge=100, description="pieces of the vocabulary")
    num_layers: Count = Field(description="transformer layers")
    hidden_size: Count = Field(description="width of the hidden states")
    num_heads: Count = Field(description="attention heads")
    dropout: Share = Field(description="dropout of states and attention")
    require_gate: bool = Field(True, description="stop if it knows little more than frequencies")

    @property
    def shipped(self) -> str:
        """The name of the shipped model that `source` means; "" for another source."""
        name = self.teacher if self.source == "pretrained" else self.source
        return name if name in pretrained_names() else ""

    @model_validator(mode="after")
    def _fits_together(self) -> "TeacherConfig":
        if self.hidden_size % self.num_heads:
            heads = f"{self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            raise ValueError(f"hidden_size: {heads}: change one")
        if self.source == "pretrain" and self.block_length > MAX_POSITIONS:
            positions = f"{self.block_length} is more than the {MAX_POSITIONS} positions"
            raise ValueError(f"block_length: {positions} of a teacher pre-trained here: lower it")
        if self.source == "pretrained" and not self.shipped:
            names = ", ".join(pretrained_names())
            problem = f"no model {self.teacher!r} in the box, which has {names}"
            raise ValueError(f"teacher: {problem}: give source one of these names")
        local = self.source == "pretrain" or self.shipped or Path(self.source).is_dir()
        if not local and not self.revision:
            raise ValueError(f"source: {self.source!r} is no folder: correct it, or set revision")
        return self


class StudentConfig(TrainingConfig):
    """02-distil-student: one student from one or several teachers, or one of its controls."""

    student: Name = Field(description="name of the student")
    teachers: Teachers = Field(description="name: weight; the first gives vocabulary and start")
    # The next three have defaults, since they mean nothing for a single teacher.
    weighting: Weighting = Field("fixed", description="confidence: exp(-entropy) at each position")
    soft_target_strategy: Strategy = Field("lift", description="of a teacher of other vocabulary")
    hidden_states: States = Field("pieces", description="compared by piece, by word, or of first")
    objective: Objective = Field(description="distill, or a control that no teacher teaches")
    num_layers: Count = Field(description="transformer layers of the student")
    layers: list[Size] = Field([], description="of the teacher, to start from; []: alternate ones")
    alpha_ce: Weight = Field(description="weight of the soft targets, T^2 KL")
    alpha_mlm: Weight = Field(description="weight of the masked words, CE")
    alpha_cos: Weight = Field(description="weight of the hidden states, 1 - cos")
    temperature: Positive = Field(description="T, softens both distributions")
    soft_targets: Literal["all", "masked"] = Field(description="tokens with soft targets")
    cached_pieces: Size = Field(0, description="teachers' best pieces to store; 0: no cache")
    freeze_positions: bool = Field(description="keep the position embeddings of the start")

    @property
    def mask_seed(self) -> int:
        """The seed of the masks: with stored answers one for all seeds, which share them."""
        return self.data_seed if self.cached_pieces else self.seed

    @property
    def shares(self) -> dict[str, float]:
        """The teachers of positive weight and their weights, scaled to the sum 1."""
        total = sum(self.teachers.values())
        return {name: weight / total for name, weight in self.teachers.items() if weight}

    @model_validator(mode="after")
    def _something_to_learn(self) -> "StudentConfig":
        first = next(iter(self.teachers))
        if not self.teachers[first]:
            problem = f"{first} has weight 0, but the first gives the student its vocabulary"
            raise ValueError(f"teachers: {problem}: raise it or reorder")
        if self.objective == "distill" and self.alpha_ce + self.alpha_mlm + self.alpha_cos == 0:
            raise ValueError("alpha_ce: 0, as alpha_mlm and alpha_cos are: raise one")
        if self.layers and len(self.layers) != self.num_layers:
            problem = f"{self.layers} are not num_layers {self.num_layers}"
            raise ValueError(f"layers: {problem}: change one")
        if self.cached_pieces and self.soft_targets == "all":
            raise ValueError("cached_pieces: of masked tokens only: set soft_targets to masked")
        return self


class StudyConfig(Config):
    """The models of a study: how often each method is trained, and the controls (Snakefile)."""

    distillation_seeds: Seeds = Field(description="of each student and of controls that train")
    controls: list[Control] = Field(description="of students of one teacher; init-only: of all")
    parts: list[Part] = Field(description="further notebooks that the report waits for")


class EvaluateConfig(Config):
    """03-evaluate-model: fine-tune one model on the tasks."""

    model: Name = Field(description="a teacher or student; <name>-random: from random weights")
    tasks: list[TaskName] = Field(description="measures; []: none, as for another language")
    protocols: dict[TaskName, str] = Field(description="what is read, and the headline score")
    seeds: Seeds = Field(description="fine-tuning seeds")
    keep_models: Size = Field(description="of how many seeds the fine-tuned models are kept")
    max_train_examples: Size = Field(description="training examples of a measure; 0: all")
    max_validation_examples: Size = Field(0, description="validation examples of a measure; 0: all")
    max_test_examples: Size = Field(0, description="test examples of a measure; 0: all")
    max_length: Pieces = Field(description="pieces of a text; the rest is cut or windowed")
    batch_size: Count = Field(description="examples in a step")
    # The grid: each model takes the best product of the next three on validation.
    epochs: dict[TaskName, Counts] = Field(description="epochs of each measure to choose from")
    learning_rates: dict[TaskName, Rates] = Field(description="highest rates to choose from")
    pooling: dict[TextTask, Poolings] = Field(description="states that the head of a text reads")
    warmup_share: Share = Field(description="share of the steps in which the rate rises")
    weight_decay: Weight = Field(description="decay of the weight matrices")
    task_teachers: list[TaskTeacher] = Field([], description='"name" or "name:seed"; []: none')
    alpha_task: TaskWeight = Field(0.0, description="weight of the task teachers; 0: no teacher")
    task_temperature: Positive = Field(1.0, description="T, softens student and task teachers")
    unlabelled: Size = Field(0, description="examples without labels, which task teachers answer")

    @model_validator(mode="after")
    def _every_task_has_a_recipe(self) -> "EvaluateConfig":
        for task, protocol in self.protocols.items():
            if protocol not in PROTOCOLS[task]:
                known = " or ".join(map(repr, PROTOCOLS[task]))
                raise ValueError(f"protocols.{task}: Input should be {known}, got {protocol!r}")
        texts = [task for task in self.tasks if task in get_args(TextTask)]
        for key in ("protocols", "epochs", "learning_rates", "pooling"):
            needed = texts if key == "pooling" else self.tasks
            missing = [task for task in needed if task not in getattr(self, key)]
            if missing:
                raise ValueError(f"{key}: no entry for {', '.join(missing)}: add it")
        return self


class RobustnessConfig(Config):
    """07-measure-robustness: kept fine-tuned models on perturbed test splits."""

    tasks: Tasks = Field(description="measures")
    models: list[Name] = Field(description="models to measure; []: every evaluated model")
    max_test_examples: Size = Field(description="test examples of a measure; 0: all")


class AnalyseConfig(Config):
    """04-analyse-loyalty and 06-report-results: tables and figures from stored predictions."""

    resamples: Count = Field(description="resamples of the bootstrap")


class AblationConfig(AnalyseConfig):
    """09-ablate-ensemble: one student distilled in several ways, on one corpus and budget."""

    student: Name = Field(description="a student of this profile")
    variants: Variants = Field(description="name: the parameters of the student that it changes")
    seeds: Seeds = Field(description="seeds of the distillation and of the fine-tuning")
    steps: Count = Field(description="optimizer steps of each distillation")
    cached_pieces: Size = Field(description="teachers' best pieces to store; 0: no cache")
    tasks: Tasks = Field(description="measures")


class BudgetConfig(AnalyseConfig):
    """12-vary-budget: one student distilled with several numbers of steps."""

    student: Name = Field(description="a student of this profile")
    budgets: list[Count] = Field(min_length=1, description="optimizer steps, rising")
    seeds: Seeds = Field(description="of the distillation")
    tasks: Tasks = Field(description="measures")


class TaskDistillConfig(AnalyseConfig):
    """11-distil-at-task: one student fine-tuned in several ways, with and without teachers."""

    student: Name = Field(description="a student of this profile")
    variants: Variants = Field(description="name: parameters of notebook 03 that it changes")
    seeds: Seeds = Field(description="fine-tuning seeds")
    tasks: Tasks = Field(description="measures")
    max_train_examples: Size = Field(description="labelled examples of a measure; 0: all")
    alpha_task: TaskWeight = Field(description="weight of the task teachers' answers")
    task_temperature: Positive = Field(description="T, softens student and task teachers")


class SpeedConfig(Config):
    """05-measure-speed: size, latency and throughput of every model."""

    sequence_length: Pieces = Field(description="pieces of a text")
    batch_sizes: list[Count] = Field(min_length=1, description="texts in a batch")
    warmup_runs: Count = Field(description="passes that are not counted")
    timed_runs: int = Field(ge=3, description="passes that are timed")


class ExportConfig(SpeedConfig):
    """10-export-student: students as ONNX files, what these cost in score and gain in time."""

    models: list[Name] = Field(min_length=1, description="students to export")
    tasks: Tasks = Field(description="measures whose fine-tuned models are exported")

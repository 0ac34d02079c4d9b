"""Parameters: one frozen pydantic model a notebook. Unknown keys are refused, errors are one line.

`from_notebook` validates the values of a notebook; `rolib.profiles` reads them from files.
The descriptions below are the one place where the meaning of a parameter is written.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rolib.measures import PROTOCOLS

ROOT = Path(__file__).resolve().parents[1]
PRETRAINED = Path(__file__).parent / "data" / "pretrained"  # the shipped models
MAX_POSITIONS = 128  # the longest text, in pieces, of a teacher that is pre-trained on the spot
ASSIGNED = re.compile(r"^(\w+)(?: *:[^=\n]+)? *=(?!=)", re.MULTILINE)  # `name: type = value`

Count = Annotated[int, Field(ge=1)]
Size = Annotated[int, Field(ge=0)]
Pieces = Annotated[int, Field(ge=8, le=512)]
Share = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
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
Precision = Literal["auto", "float32", "bfloat16"]
# How a student is trained, or one of its controls (`rolib.stages.MADE` says what each is).
Objective = Literal["distill", "mlm", "init-only", "truncated", "longer"]
Control = Literal["mlm", "init-only", "truncated", "longer", "random"]
Part = Literal["robustness", "ablation", "export", "task", "budget"]


class ConfigError(ValueError):
    """A parameter that cannot work. The message names its key, its file and the remedy."""


class Config(BaseModel):
    """What every notebook shares (params/<profile>/common.yaml)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    profile: Name = Field(description="results lie in runs/<profile>")
    seed: Size = Field(description="the source of all randomness but the choice of documents")
    data: str = Field(description='"sample", "real" ($ROLIB_DATA, or the download), or a folder')
    precision: Precision = Field("auto", description="of matrix products; auto: bf16 if faster")

    @property
    def folder(self) -> Path:
        """The folder of this profile's results, below $ROLIB_RUNS or runs/ of the repository."""
        return Path(os.environ.get("ROLIB_RUNS") or ROOT / "runs") / self.profile

    def _repr_html_(self) -> str:
        """The table that a notebook shows: parameter, value, meaning, allowed values."""
        import pandas as pd  # late, since every command reads this module

        properties = type(self).model_json_schema()["properties"]
        rows = [
            (name, getattr(self, name), field["description"], allowed_values(field))
            for name, field in properties.items()
        ]
        columns = ["parameter", "value", "meaning", "allowed values"]
        with pd.option_context("display.max_colwidth", None):
            return pd.DataFrame(rows, columns=columns).to_html(index=False)


class TrainingConfig(Config):
    """The recipe that pre-training and distillation share: text, masking, schedule."""

    corpus: str = Field(
        description='"data" (its corpus/), a folder of .txt, .jsonl or .parquet, hub:<id>:<config>'
    )
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
    require_gate: bool = Field(
        True, description="stop if it knows little more than word frequencies"
    )

    @property
    def shipped(self) -> str:
        """The name of the shipped model that `source` means; "" for another source."""
        name = self.teacher if self.source == "pretrained" else self.source
        return name if (PRETRAINED / name / "manifest.json").exists() else ""

    @model_validator(mode="after")
    def _fits_together(self) -> "TeacherConfig":
        if self.hidden_size % self.num_heads:
            heads = f"{self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            raise ValueError(f"hidden_size: {heads}: change one")
        if self.source == "pretrain" and self.block_length > MAX_POSITIONS:
            positions = f"{self.block_length} is more than the {MAX_POSITIONS} positions"
            raise ValueError(f"block_length: {positions} of a teacher pre-trained here: lower it")
        if self.source == "pretrained" and not self.shipped:
            names = sorted(path.parent.name for path in PRETRAINED.glob("*/manifest.json"))
            problem = f"no model {self.teacher!r} in the box, which has {', '.join(names)}"
            raise ValueError(f"teacher: {problem}: give source one of these names")
        local = self.source == "pretrain" or self.shipped or Path(self.source).is_dir()
        if not local and not self.revision:
            problem = f"empty, but source {self.source!r} is no folder"
            raise ValueError(f"revision: {problem}: correct the folder, or name a commit")
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
        if self.cached_pieces and self.soft_targets == "all":
            raise ValueError("cached_pieces: of masked tokens only: set soft_targets to masked")
        return self


class StudyConfig(Config):
    """The models of a study: how often each method is trained, and the controls (Snakefile)."""

    distillation_seeds: Seeds = Field(description="of each student and of controls that train")
    controls: list[Control] = Field(description="of each student of one teacher; random: of all")
    parts: list[Part] = Field(description="further notebooks that the report waits for")


class EvaluateConfig(Config):
    """03-evaluate-model: fine-tune one model on the tasks."""

    model: Name = Field(description="a teacher or student; <name>-random: from random weights")
    tasks: Tasks = Field(description="measures")
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


class AblationConfig(Config):
    """09-ablate-ensemble: one student distilled in several ways, on one corpus and budget."""

    student: Name = Field(description="a student of this profile")
    variants: Variants = Field(description="name: the parameters of the student that it changes")
    seeds: Seeds = Field(description="seeds of the distillation and of the fine-tuning")
    steps: Count = Field(description="optimizer steps of each distillation")
    cached_pieces: Size = Field(description="teachers' best pieces to store; 0: no cache")
    tasks: Tasks = Field(description="measures")


class AnalyseConfig(Config):
    """04-analyse-loyalty and 06-report-results: tables and figures from stored predictions."""

    resamples: Count = Field(description="resamples of the bootstrap")


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


C = TypeVar("C", bound=Config)


def allowed_values(field: dict[str, Any]) -> str:
    """The values that a field of a JSON schema allows, in words: "one of a, b", ">= 1", ..."""
    if "enum" in field:
        return "one of " + ", ".join(map(str, field["enum"]))
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {field[key]}" for key, sign in bounds.items() if key in field]
    named = list(field.get("patternProperties", {}).values())
    for items in [field.get("items"), field.get("additionalProperties"), *named]:
        if isinstance(items, dict) and "type" in items:
            limits.append(f"each {allowed_values(items)}")
    kinds = {"string": "text", "boolean": "true or false", "array": "list", "object": "mapping"}
    kind = kinds.get(field["type"], field["type"])
    return f"{kind} {' and '.join(limits)}".strip()


def validate(kind: type[C], values: dict, default: str, where: dict[str, str] | None = None) -> C:
    """The config of these values. ConfigError: `key (file): what is wrong: the remedy`.

    where: the file of each key; for any other key it is `default`.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        fault = error.errors()[0]
    key = ".".join(str(part) for part in fault["loc"] if part != "[key]")
    message = fault["msg"].removeprefix("Value error, ")
    if not key:  # values that do not fit together: the message names one
        key, message = message.split(": ", 1)
    got = f"{message}, got {fault['input']!r}"
    texts = {
        "extra_forbidden": "unknown key: correct its spelling or remove it",
        "missing": "missing: add it",
        "float_type": f"{got}: write it like 5.0e-5 (YAML reads 5e-5 as text)",
        "value_error": message,
    }
    text = texts.get(fault["type"], f"{got}: correct the value")
    file = (where or {}).get(key.split(".")[0], default)
    raise ConfigError(f"{key} ({file}): {text}")


def from_notebook(kind: type[C], namespace: dict[str, Any]) -> C:
    """The config of a notebook's parameters. It may be called again after a change.

    namespace: the notebook's globals. Read are the fields of `kind`, and every other name that a
    parameters cell assigns, so that a wrong name is refused.
    """
    names = set(kind.model_fields) | parameter_names(namespace.get("In", [])[:-1], kind)
    values = {name: namespace[name] for name in sorted(names) if name in namespace}
    return validate(kind, values, "notebook parameters")


def parameter_names(cells: list[str], kind: type[Config]) -> set[str]:
    """The names that the parameters cells assign, back to the last call of `from_notebook`.

    cells: their sources in the order in which they ran. A parameters cell assigns a field of
    `kind`, or it is the one that papermill adds.
    """
    names: set[str] = set()
    for source in reversed(cells):
        if "from_notebook(" in source:
            break
        assigned = set(ASSIGNED.findall(source))
        if assigned & set(kind.model_fields) or source.startswith("# Parameters"):
            names |= assigned
    return names


def to_dict(config: Config) -> dict[str, Any]:
    """A config as plain JSON values, for config.yaml and for comparing runs."""
    return config.model_dump(mode="json")

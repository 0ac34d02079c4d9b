"""Parameters: one frozen pydantic model a notebook, unknown keys refused, every error one line.

`from_notebook` validates what papermill injected; `load` reads the same keys from `params/<profile>/*.yaml`;
`load_profile` checks a whole profile before the first notebook starts.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator
from typing_extensions import TypedDict  # pydantic takes the one of typing only from Python 3.12

from rolib.measures import PROTOCOLS, TASKS

ROOT = Path(__file__).resolve().parents[1]

Count = Annotated[int, Field(ge=1)]
Size = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
TaskName = Literal[*TASKS]
Tasks = Annotated[list[TaskName], Field(min_length=1)]
Protocols = TypedDict(
    "Protocols", {task: Literal[*protocols] for task, protocols in PROTOCOLS.items()}, total=False
)


class ConfigError(ValueError):
    """A parameter that cannot work; the message names its key, its file and the mend."""


class Config(BaseModel, frozen=True, extra="forbid", strict=True):
    """What every notebook shares (params/<profile>/common.yaml)."""

    profile: Name  # results lie in runs/<profile>
    seed: Size  # the one source of randomness
    data: str  # "sample", "real" ($ROLIB_DATA or the download cache), or a folder in the upstream layout

    @property
    def folder(self) -> Path:
        """Where this profile's results lie: $ROLIB_RUNS or runs/ of the repository, then the profile's name."""
        return Path(os.environ.get("ROLIB_RUNS") or ROOT / "runs") / self.profile


class TrainingConfig(Config):
    """The recipe that pre-training and distillation share: text, masking, schedule (DistilBERT's, see the README)."""

    corpus: str  # "data" (the folder corpus/ of the data root), a folder of .txt files, or hub:<id>:<config>
    corpus_revision: str  # commit, tag or branch of a hub corpus; "" for files
    data_seed: Size  # chooses the documents and the held-out split; one for a whole profile
    words_per_source: Size  # at most so many words of each corpus file or hub set; 0 takes all
    block_length: Annotated[int, Field(ge=8, le=512)]  # pieces in a block, [CLS] and [SEP] included
    mask_share: Annotated[float, Field(gt=0, lt=1)]  # words masked
    steps: Count  # optimizer steps
    batch_size: Count  # blocks in a micro-batch on one device
    accumulation: Count  # micro-batches in a step
    learning_rate: Positive
    warmup_share: Share
    weight_decay: Weight
    log_every: Count  # steps
    checkpoint_every: Count  # steps between checkpoints; the held-out loss is taken there too


class TeacherConfig(TrainingConfig):
    """01-prepare-teachers: a teacher from the hub, a folder, or pre-trained on the spot."""

    teacher: Name
    source: str  # "pretrain", a hub id or a folder
    revision: str  # commit, tag or branch of a hub model; "" for anything else
    lowercase: bool  # accents are always kept
    vocab_size: Annotated[int, Field(ge=100)]
    num_layers: Count
    hidden_size: Count
    num_heads: Count
    dropout: Share

    @model_validator(mode="after")
    def _heads_divide(self):
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size: {self.hidden_size} is not a multiple of num_heads {self.num_heads}: change one"
            )
        return self


class StudentConfig(TrainingConfig):
    """02-distil-student: one student from one or several teachers, or its MLM-only control."""

    student: Name
    # Teachers of this profile and their weights; the first gives the student its vocabulary and its start.
    teachers: Annotated[dict[Name, Weight], Field(min_length=1)]
    # The next three have defaults, since they mean nothing for a single teacher.
    weighting: Literal["fixed", "confidence"] = (
        "fixed"  # "confidence": at each position also by exp(-entropy) of the teacher
    )
    # How a teacher with another vocabulary gives soft targets; see rolib.distillation.alignment and rolib.distillation.losses.
    soft_target_strategy: Literal["lift", "intersection", "uld", "none"] = "lift"
    # States by piece (by word across vocabularies), all by word, or by piece from the first teacher alone.
    hidden_states: Literal["pieces", "words", "first"] = "pieces"
    objective: Literal[
        "distill", "mlm"
    ]  # "mlm": random weights and no teacher, the control on the same budget
    num_layers: Count
    alpha_ce: Weight
    alpha_mlm: Weight
    alpha_cos: Weight
    temperature: Positive
    soft_targets: Literal["all", "masked"]  # the tokens whose teacher distribution is matched
    freeze_positions: bool

    @property
    def shares(self) -> dict[str, float]:
        """The teachers that count and their weights, scaled to the sum 1."""
        total = sum(self.teachers.values())
        return {name: weight / total for name, weight in self.teachers.items() if weight}

    @model_validator(mode="after")
    def _something_to_learn(self):
        first = next(iter(self.teachers))
        if not self.teachers[first]:
            raise ValueError(
                f"teachers: {first} has weight 0, but the first gives the student its vocabulary: raise it or reorder"
            )
        if self.objective == "distill" and self.alpha_ce + self.alpha_mlm + self.alpha_cos == 0:
            raise ValueError(
                "alpha_ce: 0, as alpha_mlm and alpha_cos are: nothing would be learned, raise one"
            )
        return self


class EvaluateConfig(Config):
    """03-evaluate-model: fine-tune one model on the tasks."""

    model: Name  # a teacher or student of this profile, or <name>-random for its shape with random weights
    tasks: Tasks
    protocols: Protocols  # per measure, one of rolib.measures.PROTOCOLS: what is read and which score is the headline
    seeds: Annotated[list[Size], Field(min_length=1)]
    keep_models: bool  # save the fine-tuned model of the first seed
    max_train_examples: Size  # 0 takes all
    max_length: Annotated[int, Field(ge=8, le=512)]  # pieces
    batch_size: Count
    epochs: dict[TaskName, Count]  # per measure
    learning_rates: dict[TaskName, Positive]  # per measure
    warmup_share: Share
    weight_decay: Weight

    @model_validator(mode="after")
    def _every_task_has_a_recipe(self):
        for key in ("protocols", "epochs", "learning_rates"):
            missing = [task for task in self.tasks if task not in getattr(self, key)]
            if missing:
                raise ValueError(f"{key}: no entry for {', '.join(missing)}: add it")
        return self


class RobustnessConfig(Config):
    """07-measure-robustness: kept fine-tuned models on perturbed test splits."""

    tasks: Tasks
    models: list[Name]  # [] takes every evaluated model
    max_test_examples: Size  # 0 takes all


class AblationConfig(Config):
    """09-ablate-ensemble: one student distilled in several ways, on one corpus and budget."""

    student: Name  # of this profile
    variants: Annotated[
        dict[Name, dict], Field(min_length=1)
    ]  # name: the parameters of the student that it changes
    seeds: Annotated[list[Size], Field(min_length=1)]  # of the distillation and of the fine-tuning
    steps: Count  # optimizer steps of each distillation
    tasks: Tasks


class AnalyseConfig(Config):
    """04-analyse-loyalty and 06-report-results: tables and figures from stored predictions."""

    resamples: Count  # of the bootstrap


class SpeedConfig(Config):
    """05-measure-speed: size, latency and throughput of every model."""

    sequence_length: Annotated[int, Field(ge=8, le=512)]  # pieces
    batch_sizes: Annotated[list[Count], Field(min_length=1)]
    warmup_runs: Count
    timed_runs: Annotated[int, Field(ge=3)]


def validate(kind: type[Config], values: dict, default: str, where: dict[str, str] | None = None):
    """Build a config; ConfigError says of the first key at fault `key (file): what is wrong; the mend`.

    where: the file of each key, else it is `default`.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        fault = error.errors()[0]
    key, message = (
        ".".join(str(part) for part in fault["loc"] if part != "[key]"),
        fault["msg"].removeprefix("Value error, "),
    )
    if not key:  # of values that do not go together the message names one
        key, message = message.split(": ", 1)
    got = f"{message}, got {fault['input']!r}"
    text = {
        "extra_forbidden": "unknown key: correct its spelling or remove it",
        "missing": "missing: add it",
        "float_type": f"{got}: write it like 5.0e-5 (YAML reads 5e-5 as text)",
        "value_error": message,
    }.get(fault["type"], f"{got}: correct the value")
    raise ConfigError(f"{key} ({(where or {}).get(key.split('.')[0], default)}): {text}")


def load(kind: type[Config], *files: Path | str, **overrides) -> Config:
    """Read YAML files (a later file wins, overrides win over all) into a validated config.

    Raises ConfigError that names the key and the file at fault.
    """
    values, where = {}, {}
    for file in map(Path, files):
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except FileNotFoundError:
            raise ConfigError(
                f"{file}: no such parameter file; the profiles lie in {ROOT / 'params'}"
            ) from None
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(
                f"{file}: not readable as YAML in UTF-8 ({str(error).splitlines()[0]}): correct it"
            ) from None
        if not isinstance(content, dict):
            raise ConfigError(f"{file}: expected lines of `key: value`")
        values |= content
        where |= dict.fromkeys(content, str(file))
    values |= overrides
    where |= dict.fromkeys(overrides, "override")
    return validate(kind, values, " + ".join(map(str, files)) or "override", where)


def from_notebook(kind: type[Config], namespace: dict) -> Config:
    """Build a config from a notebook's globals, so that a parameter papermill injected under a wrong name is refused.

    Call it before the notebook defines variables of its own; imports, functions and IPython's names do not count.
    """
    plain, shell = str | int | float | list | dict | None, ("In", "Out")
    values = {
        key: value
        for key, value in namespace.items()
        if isinstance(value, plain) and key[0] != "_" and key not in shell
    }
    return validate(kind, values, "notebook parameters")


def load_profile(profile: str, root: Path = ROOT / "params") -> dict:
    """Load and cross-check every parameter file of a profile: {"teachers": ..., "students": ..., "evaluate": ...}.

    Raises ConfigError for a student without its teacher or deeper than it; nothing heavy is imported or read.
    """
    base = Path(root) / profile
    if not base.is_dir():
        known = sorted(path.name for path in Path(root).iterdir() if path.is_dir())
        raise ConfigError(f"profile {profile!r}: no folder {base}; use one of {', '.join(known)}")
    common, training = base / "common.yaml", base / "training.yaml"

    def each(kind, folder, recipe):
        configs = {}
        for file in sorted((base / folder).glob("*.yaml")):
            config = configs[file.stem] = load(kind, common, training, base / recipe, file)
            name = getattr(config, folder[:-1])
            if name != file.stem:
                raise ConfigError(
                    f"{folder[:-1]} ({file}): is {name!r}, must be the file's name {file.stem!r}"
                )
        return configs

    teachers = each(TeacherConfig, "teachers", "pretrain.yaml")
    students = each(StudentConfig, "students", "distill.yaml")
    for name, student in students.items():
        file = base / "students" / f"{name}.yaml"
        check_known(student.teachers, teachers, f"teachers ({file})")
        check_depth(
            student.num_layers, teachers[next(iter(student.teachers))].num_layers, str(file)
        )
    study = {"teachers": teachers, "students": students}
    study["evaluate"] = load(EvaluateConfig, common, base / "evaluate.yaml", model="any")
    others = {
        "speed": SpeedConfig,
        "ablation": AblationConfig,
        "analyse": AnalyseConfig,
        "robustness": RobustnessConfig,
    }
    study |= {name: load(kind, common, base / f"{name}.yaml") for name, kind in others.items()}
    models = [
        name.removesuffix("-random").removesuffix("-mlm") for name in study["robustness"].models
    ]
    check_known(models, teachers | students, f"models ({base / 'robustness.yaml'})")
    check_known(
        study["robustness"].tasks, study["evaluate"].tasks, f"tasks ({base / 'robustness.yaml'})"
    )
    return study


def check_known(names: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise ConfigError for a name that is not one of those that the profile has."""
    for name in names:
        if name not in known:
            raise ConfigError(
                f"{where}: no {name!r} in this profile, which has {', '.join(known)}: correct it, or add it to the profile"
            )


def check_depth(
    student_layers: int, teacher_layers: int, where: str = "notebook parameters"
) -> None:
    """Raise ConfigError when the student is deeper than its teacher."""
    if student_layers > teacher_layers:
        layers = f"{student_layers} > {teacher_layers} layers"
        raise ConfigError(f"num_layers ({where}): student deeper than teacher ({layers}): lower it")


def to_dict(config: Config) -> dict:
    """A config as plain JSON values, for config.yaml and for comparing runs."""
    return config.model_dump(mode="json")

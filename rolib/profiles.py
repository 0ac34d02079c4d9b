"""Parameter files: params/<profile>/*.yaml as validated configs."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from rolib import config
from rolib.config import C, ConfigError

NOTEBOOK = "notebook parameters"  # the source of a value, when it is not a file


def load(kind: type[C], *files: Path | str, **overrides: Any) -> C:
    """The config of YAML files: a later file wins, and overrides win over all files.

    Raises ConfigError that names the key and the file at fault.
    """
    values, where = dict[str, Any](), dict[str, str]()
    contents = [(str(file), read_yaml(Path(file))) for file in files]
    for source, content in [*contents, ("override", overrides)]:
        values |= content
        where |= dict.fromkeys(content, source)
    return config.validate(kind, values, " + ".join(map(str, files)) or "override", where)


def read_yaml(file: Path) -> dict[str, Any]:
    """The keys and values of a parameter file. ConfigError if it cannot be read."""
    if not file.exists():
        raise ConfigError(f"{file}: missing: add it, or correct its name")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{file}: not readable as YAML in UTF-8 ({reason}): correct it") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: expected lines of `key: value`")
    return content


CONTROL = re.compile(r"(-mlm|-init-only|-truncated|-longer|-random)*(-seed-\d+)?$")  # of a name
FURTHER: dict[str, type[config.Config]] = {  # files of notebooks that a profile can do without
    "ablation": config.AblationConfig,
    "budget": config.BudgetConfig,
    "export": config.ExportConfig,
    "robustness": config.RobustnessConfig,
    "task": config.TaskDistillConfig,
}


def load_profile(profile: str, root: Path = config.ROOT / "params") -> dict[str, Any]:
    """Every parameter file of a profile, checked: {"teachers": ..., "evaluate": ..., ...}.

    teachers and students map names to configs, the others are configs; those of `FURTHER` may be
    missing. Raises ConfigError, also for values of several files that do not fit together.
    """
    base = root / profile
    if not base.is_dir():
        known = ", ".join(sorted(path.parent.name for path in root.glob("*/common.yaml")))
        raise ConfigError(f"profile {profile!r}: no folder {base}; there are: {known}")
    common = base / "common.yaml"
    study: dict[str, Any] = {
        "speed": load(config.SpeedConfig, common, base / "speed.yaml"),
        "analyse": load(config.AnalyseConfig, common, base / "analyse.yaml"),
        "study": load(config.StudyConfig, common, base / "study.yaml"),
        "evaluate": load(config.EvaluateConfig, common, base / "evaluate.yaml", model="any"),
        "teachers": load_models(config.TeacherConfig, base, "teacher", "pretrain.yaml"),
        "students": load_models(config.StudentConfig, base, "student", "distill.yaml"),
    }
    if study["speed"].profile != profile:  # its results would replace those of another profile
        raise ConfigError(f"profile ({common}): must be {profile!r}, as its folder is: correct it")
    here = {name: kind for name, kind in FURTHER.items() if (base / f"{name}.yaml").exists()}
    study |= {name: load(kind, common, base / f"{name}.yaml") for name, kind in here.items()}
    check_students(study, base / "students")
    check_known(study["study"].parts, here, f"parts ({base / 'study.yaml'})")
    readers = {"robustness", "export", "task"} & {*study["study"].parts}
    if readers and not study["evaluate"].keep_models:
        problem = "robustness, export and task read fine-tuned models, but keep_models is 0"
        raise ConfigError(f"parts ({base / 'study.yaml'}): {problem}: leave them out or raise it")
    for name in here:
        check_further(study, name, base / f"{name}.yaml")
    return study


def check_further(study: dict[str, Any], name: str, file: Path) -> None:
    """Raise ConfigError for a model, measure or variant in a file of `FURTHER` that cannot work."""
    chosen, students = study[name], study["students"]
    check_known(chosen.tasks, study["evaluate"].tasks, f"tasks ({file})")
    if name in ("robustness", "export"):
        models = [CONTROL.sub("", model) for model in chosen.models]
        return check_known(models, study["teachers"] | students, f"models ({file})")
    check_known([chosen.student], students, f"student ({file})")
    base = study["evaluate"] if name == "task" else students[chosen.student]
    shared = {key: value for key, value in config.to_dict(chosen).items() if hasattr(base, key)}
    for title, variant in getattr(chosen, "variants", {}).items():
        where, values = f"variants.{title} ({file})", config.to_dict(base) | shared | variant
        one = config.validate(type(base), values, where)
        if name == "ablation":
            check_depth(one, study["teachers"][next(iter(one.teachers))].num_layers, where)
        names = getattr(one, "task_teachers", None) or getattr(one, "teachers", [])
        check_known([teacher.partition(":")[0] for teacher in names], study["teachers"], where)


def load_models(kind: type[C], base: Path, role: str, recipe: str) -> dict[str, C]:
    """The config of each teacher or student of a profile's folder, by name."""
    configs = {}
    for file in sorted((base / f"{role}s").glob("*.yaml")):
        shared = [base / "common.yaml", base / "training.yaml", base / recipe]
        configs[file.stem] = load(kind, *shared, file)
        if file.stem in ("ensemble", "bag-of-words") or CONTROL.sub("", file.stem) != file.stem:
            raise ConfigError(f"{role} ({file}): {file.stem!r} has a meaning: take another name")
        if getattr(configs[file.stem], role) != file.stem:
            raise ConfigError(f"{role} ({file}): must be {file.stem!r}, as its file is: correct it")
    return configs


def check_students(study: dict[str, Any], folder: Path) -> None:
    """Raise ConfigError for a student that does not fit the teachers of its profile."""
    teachers = study["teachers"]
    for name, student in study["students"].items():
        file = str(folder / f"{name}.yaml")
        if name in teachers:
            raise ConfigError(f"student ({file}): a teacher has the name {name!r}: take another")
        check_known(student.teachers, teachers, f"teachers ({file})")
        depth = teachers[next(iter(student.teachers))].num_layers
        check_depth(student, depth, f"{file} or distill.yaml")
        for teacher in student.shares:
            if teachers[teacher].source == "pretrain":
                check_positions(student.block_length, config.MAX_POSITIONS, teacher, file)
            if teachers[teacher].data_seed != student.data_seed:
                seeds = f"{student.data_seed}, but {teachers[teacher].data_seed} for {teacher}"
                raise ConfigError(f"data_seed ({file}): {seeds}: set it once, in training.yaml")


def check_known(names: Collection[str], known: Collection[str], where: str) -> None:
    """Raise ConfigError for a name that is not one of those that the profile has."""
    for name in names:
        if name not in known:
            problem = f"no {name!r} in this profile, which has {', '.join(known)}"
            raise ConfigError(f"{where}: {problem}: correct it, or add it to the profile")


def check_depth(student: config.StudentConfig, teacher_layers: int, where: str = NOTEBOOK) -> None:
    """Raise ConfigError when the student is deeper than its teacher, or starts from no layer."""
    if max(student.layers, default=0) >= teacher_layers:
        numbers = f"{student.layers}, but the teacher has 0 to {teacher_layers - 1}"
        raise ConfigError(f"layers ({where}): {numbers}: correct them")
    if student.num_layers > teacher_layers:
        layers = f"{student.num_layers} > {teacher_layers} layers"
        raise ConfigError(f"num_layers ({where}): student deeper than teacher ({layers}): lower it")


def check_positions(block_length: int, positions: int, teacher: str, where: str = NOTEBOOK) -> None:
    """Raise ConfigError for blocks longer than the texts that a teacher can read."""
    if block_length > positions:
        problem = f"{block_length} is more than the {positions} positions of {teacher}"
        raise ConfigError(f"block_length ({where}): {problem}: lower it")

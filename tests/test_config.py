"""Parameters: what loads, and that every fault is one line with key, file and remedy."""

import json
import math
import shutil

import pandas as pd
import pydantic
import pytest
import yaml
from bs4 import BeautifulSoup

from rolib import config, parameters, profiles
from rolib.config import (
    ROOT,
    ConfigError,
    EvaluateConfig,
    SpeedConfig,
    StudentConfig,
    TeacherConfig,
)

PROFILES = sorted(path.name for path in (ROOT / "params").iterdir() if path.is_dir())


@pytest.fixture
def params(tmp_path):
    """A copy of the tiny profile that a test may damage."""
    shutil.copytree(ROOT / "params" / "tiny", tmp_path / "tiny")
    return tmp_path


def change(file, **values):
    """Set keys of a YAML file; None takes a key away."""
    content = yaml.safe_load(file.read_text(encoding="utf-8")) | values
    content = {key: value for key, value in content.items() if value is not None}
    file.write_text(yaml.safe_dump(content), encoding="utf-8")


def refused(params, *parts):
    """Load the profile; the error must be one line that holds every part."""
    with pytest.raises(ConfigError) as error:
        profiles.load_profile("tiny", params)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, message
    return message


# --- what loads -----------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_every_file_of_a_profile_is_read_and_valid(profile, monkeypatch):
    read, load = set(), profiles.load

    def recording(kind, *files, **overrides):
        read.update(files)
        return load(kind, *files, **overrides)

    monkeypatch.setattr(profiles, "load", recording)
    study = profiles.load_profile(profile)
    assert read == set((ROOT / "params" / profile).rglob("*.*"))
    assert {part.profile for part in (study["evaluate"], study["analyse"], study["speed"])} == {
        profile
    }
    assert study["teachers"] and study["students"]
    for student in study["students"].values():
        for teacher in student.teachers:
            assert student.num_layers <= study["teachers"][teacher].num_layers


@pytest.mark.parametrize("profile", [name for name in PROFILES if name != "few"])
def test_every_variant_of_the_task_distillation_is_valid(profile):
    study = profiles.load_profile(profile)
    task, base = study["task"], config.to_dict(study["evaluate"])
    assert task.student in study["students"]
    assert {"gold", "ensemble"} <= set(task.variants)
    for name, variant in task.variants.items():
        checked = config.validate(EvaluateConfig, base | variant, name)
        for teacher in checked.task_teachers:
            known, _, seed = teacher.partition(":")
            assert known in study["teachers"]
            assert int(seed or 1) in study["evaluate"].seeds


def test_task_teachers_and_their_weight_are_checked(params):
    def evaluate(**changes):
        base = config.to_dict(profiles.load_profile("tiny", params)["evaluate"])
        return config.validate(EvaluateConfig, base | changes, "here")

    assert evaluate(task_teachers=["a:2"], alpha_task=1.0).task_teachers == ["a:2"]
    for wrong in ({"task_teachers": ["a:b"]}, {"alpha_task": 1.1}, {"task_temperature": 0.0}):
        with pytest.raises(ConfigError, match=rf"^{next(iter(wrong))}.* \(here\): "):
            evaluate(**wrong)


def test_shares_of_the_teachers(student_config):
    assert student_config(teachers={"a": 1.0, "b": 3.0}).shares == {"a": 0.25, "b": 0.75}
    assert student_config(teachers={"a": 2.0, "b": 0.0}).shares == {"a": 1.0}
    for teachers, message in [
        ({"a": 0.0, "b": 1.0}, "teachers: a has weight 0"),
        ({}, "at least 1"),
        ({"a": -1.0}, "greater than or equal"),
    ]:
        with pytest.raises(pydantic.ValidationError, match=message):
            student_config(teachers=teachers)


def test_values_come_from_the_files(params):
    change(params / "tiny" / "common.yaml", seed=7)
    change(params / "tiny" / "distill.yaml", temperature=3.5)
    change(params / "tiny" / "students" / "distil-cased.yaml", temperature=4)  # its own file wins
    study = profiles.load_profile("tiny", params)
    assert {name: student.temperature for name, student in study["students"].items()} == {
        "distil-cased": 4,
        "distil-multi": 3.5,
        "distil-uncased": 3.5,
    }
    assert study["speed"].seed == 7 and isinstance(study["students"]["distil-cased"], StudentConfig)
    assert (
        study["teachers"]["bert-uncased"].lowercase is True
        and study["teachers"]["bert-cased"].lowercase is False
    )


def test_a_later_file_wins_and_an_override_wins_over_all(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "{profile: x, seed: 1, data: sample, precision: auto, warmup_runs: 1, timed_runs: 3}",
        encoding="utf-8",
    )
    (tmp_path / "b.yaml").write_text(
        "{seed: 2, sequence_length: 64, batch_sizes: [1, 2]}", encoding="utf-8"
    )
    loaded = profiles.load(SpeedConfig, tmp_path / "a.yaml", tmp_path / "b.yaml", timed_runs=9)
    assert (loaded.seed, loaded.timed_runs, loaded.batch_sizes) == (2, 9, [1, 2])


def test_a_config_is_frozen(student_config):
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        student_config().temperature = 3.0


def test_a_config_as_plain_values(student_config):
    values = config.to_dict(student_config(learning_rate=5e-5))
    assert StudentConfig(**values) == student_config(learning_rate=5e-5)
    assert yaml.safe_load(yaml.safe_dump(values)) == values == json.loads(json.dumps(values))


def test_the_folder_of_the_results(student_config, monkeypatch, tmp_path):
    monkeypatch.delenv("ROLIB_RUNS", raising=False)
    assert student_config().folder == ROOT / "runs" / "toy"
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    assert student_config().folder == tmp_path / "toy"


# --- faults ---------------------------------------------------------------------------------------


def test_an_unknown_key(params):
    file = params / "tiny" / "training.yaml"
    change(file, lerning_rate=1e-3)
    refused(params, "lerning_rate", file, "unknown key: correct its spelling or remove it")


def test_an_unknown_key_is_named_before_the_one_that_it_replaced(params):
    file = params / "tiny" / "distill.yaml"
    change(file, temperature=None, temprature=2.0)
    refused(params, "temprature", file, "unknown key: correct its spelling or remove it")


def test_a_missing_key(params):
    change(params / "tiny" / "distill.yaml", temperature=None)
    refused(params, "temperature", "distill.yaml", "missing: add it")


def test_a_float_that_yaml_reads_as_text(params):
    file = params / "tiny" / "pretrain.yaml"
    change(file, learning_rate="5e-5")
    assert "learning_rate: 5e-5\n" in file.read_text(encoding="utf-8")  # as people write it
    refused(params, "learning_rate", file, "'5e-5'", "write it like 5.0e-5")


def test_a_float_inside_a_table_that_yaml_reads_as_text(params):
    file = params / "tiny" / "evaluate.yaml"
    change(file, tasks=["upos"], learning_rates={"upos": ["5e-5"]})
    refused(params, "learning_rates.upos.0", file, "write it like 5.0e-5")


@pytest.mark.parametrize(
    ("name", "key", "value", "hint"),
    [
        ("distill", "temperature", 0.0, "greater than 0, got 0.0"),
        ("distill", "temperature", math.inf, "finite"),
        ("distill", "alpha_ce", -1.0, "greater than or equal to 0, got -1.0"),
        ("distill", "num_layers", 2.0, "valid integer, got 2.0"),
        ("distill", "freeze_positions", "yes please", "valid boolean, got 'yes please'"),
        ("distill", "soft_targets", "some", "'all' or 'masked', got 'some'"),
        ("distill", "objective", "destil", "'truncated' or 'longer', got 'destil'"),
        ("training", "mask_share", 1.0, "less than 1, got 1.0"),
        ("training", "weight_decay", -0.1, "got -0.1"),
        ("training", "block_length", 513, "less than or equal to 512, got 513"),
        ("training", "batch_size", True, "valid integer, got True"),
        ("training", "accumulation", 0, "got 0"),
        ("training", "corpus", 7, "valid string, got 7"),
        ("common", "seed", -1, "got -1"),
        ("common", "seed", "1", "valid integer, got '1'"),
        ("common", "profile", "../tiny", "got '../tiny'"),
        ("pretrain", "learning_rate", 0.0, "greater than 0"),
        (
            "evaluate",
            "tasks",
            ["upos", "sentiment"],
            "Input should be 'upos', 'xpos', 'ner', 'sapn', 'sar', 'di' or 'sts', got 'sentiment'",
        ),
        ("robustness", "tasks", [], "at least 1 item"),
        ("evaluate", "seeds", 1, "valid list, got 1"),
        (
            "evaluate",
            "protocols.upos",
            {"upos": "f1"},
            "Input should be 'accuracy' or 'macro_f1', got 'f1'",
        ),
        (
            "evaluate",
            "protocols.pos",
            {"pos": "accuracy"},
            "Input should be 'upos', 'xpos', 'ner', 'sapn', 'sar', 'di' or 'sts', got 'pos'",
        ),
        ("evaluate", "keep_models", True, "valid integer, got True"),
        ("evaluate", "epochs.upos", {"upos": 3}, "valid list, got 3"),
        ("evaluate", "learning_rates.upos", {"upos": []}, "at least 1 item"),
        ("evaluate", "pooling.sar.0", {"sar": ["max"]}, "'cls' or 'mean', got 'max'"),
        ("evaluate", "pooling.ner", {"ner": ["cls"]}, "'sapn', 'sar', 'di' or 'sts', got 'ner'"),
        ("evaluate", "max_length", 4, "got 4"),
        ("speed", "timed_runs", 2, "greater than or equal to 3, got 2"),
    ],
)
def test_an_impossible_value(params, name, key, value, hint):
    file = params / "tiny" / f"{name}.yaml"
    change(file, **{key.split(".")[0]: value})
    refused(params, key, file, hint)


def test_values_that_do_not_go_together(params, student_config):
    change(params / "tiny" / "pretrain.yaml", hidden_size=30, num_heads=4)
    refused(
        params,
        f"hidden_size ({params / 'tiny' / 'pretrain.yaml'}): "
        "30 is not a multiple of num_heads 4: change one",
    )
    with pytest.raises(ValueError, match="alpha_ce: 0, as alpha_mlm and alpha_cos are"):
        student_config(alpha_ce=0.0, alpha_mlm=0.0, alpha_cos=0.0)
    assert (
        student_config(alpha_ce=0.0, alpha_mlm=0.0, alpha_cos=0.0, objective="mlm").objective
        == "mlm"
    )


def test_a_task_without_a_recipe(params):
    change(params / "tiny" / "evaluate.yaml", tasks=["upos", "xpos", "ner"], epochs={"upos": [1]})
    refused(params, f"epochs ({params / 'tiny' / 'evaluate.yaml'}): no entry for xpos, ner: add it")
    change(params / "tiny" / "evaluate.yaml", epochs={"upos": [1], "pos": [2]})
    refused(params, "epochs.pos", "Input should be 'upos', 'xpos'", "got 'pos'", "evaluate.yaml")
    change(
        params / "tiny" / "evaluate.yaml",
        epochs=dict.fromkeys(["upos", "xpos", "ner"], [1]),
        protocols={"upos": "accuracy", "ner": "strict"},
    )
    refused(params, f"protocols ({params / 'tiny' / 'evaluate.yaml'}): no entry for xpos: add it")


def test_a_student_deeper_than_its_teacher(params, student_config):
    file = params / "tiny" / "students" / "distil-cased.yaml"
    change(file, num_layers=99)
    refused(params, "num_layers", file, "student deeper than teacher (99 > ", "layers): lower it")
    with pytest.raises(
        ConfigError,
        match=r"num_layers \(notebook parameters\): student deeper than teacher \(3 > 2 layers\)",
    ):
        profiles.check_depth(student_config(num_layers=3), 2)
    profiles.check_depth(student_config(num_layers=2), 2)


def test_layers_that_a_teacher_does_not_have(params, student_config):
    file = params / "tiny" / "students" / "distil-cased.yaml"
    change(file, num_layers=1, layers=[7])
    refused(
        params, f"layers ({file} or distill.yaml): [7], but the teacher has 0 to ", ": correct them"
    )
    with pytest.raises(ValueError, match=r"layers: \[0, 1\] are not num_layers 1: change one"):
        student_config(num_layers=1, layers=[0, 1])


def test_a_student_without_its_teacher(params):
    file = params / "tiny" / "students" / "distil-cased.yaml"
    change(file, teachers={"bert-large": 1.0})
    refused(
        params,
        "teachers",
        file,
        "no 'bert-large' in this profile, which has bert-cased, bert-uncased: correct it",
    )


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (
            {"models": ["bert-cased", "bert-large-random"]},
            ["models", "no 'bert-large' in this profile, which has bert-cased"],
        ),
        ({"tasks": []}, ["tasks", "at least 1 item"]),
    ],
)
def test_robustness_that_does_not_fit_the_study(params, changes, parts):
    file = params / "tiny" / "robustness.yaml"
    change(file, **changes)
    refused(params, file, *parts)


def test_robustness_of_a_measure_that_nobody_learned(params):
    change(params / "tiny" / "evaluate.yaml", tasks=["upos", "ner"])
    for name in ("ablation", "budget", "export", "task"):
        (params / "tiny" / f"{name}.yaml").unlink()
    change(
        params / "tiny" / "robustness.yaml",
        tasks=["upos", "sts"],
        models=["distil-cased-mlm", "bert-cased-random"],
    )
    refused(
        params,
        "tasks",
        "robustness.yaml",
        "no 'sts' in this profile, which has upos, ner: correct it, or add it to the profile",
    )


@pytest.mark.parametrize(
    ("name", "changes", "parts"),
    [
        ("ablation", {"student": "distil-mutli"}, ["student", "no 'distil-mutli' in this profile"]),
        ("budget", {"student": "bert-cased"}, ["student", "no 'bert-cased' in this profile"]),
        ("task", {"student": "nobody"}, ["student", "no 'nobody' in this profile"]),
        ("budget", {"tasks": ["di", "sts"]}, ["tasks", "no '", "' in this profile, which has "]),
        (
            "ablation",
            {"variants": {"uld": {"soft_target_stratgy": "uld"}}},
            ["variants.uld", "soft_target_stratgy", "unknown key"],
        ),
        ("task", {"variants": {"gold": {"alpha_tsk": 1.0}}}, ["variants.gold", "alpha_tsk"]),
        (
            "task",
            {"variants": {"one": {"task_teachers": ["bert-large:2"]}}},
            ["variants.one", "no 'bert-large' in this profile, which has bert-cased"],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_further_notebook_that_does_not_fit_the_study(params, name, changes, parts):
    file = params / "tiny" / f"{name}.yaml"
    change(params / "tiny" / "evaluate.yaml", tasks=["upos", "ner", "sapn"])
    change(params / "tiny" / "export.yaml", tasks=["upos"])
    for other in ("ablation", "budget", "robustness", "task"):
        change(params / "tiny" / f"{other}.yaml", tasks=["upos"])
    profiles.load_profile("tiny", params)
    change(file, **changes)
    refused(params, file, *parts)


def test_robustness_may_name_controls_and_further_seeds(params):
    models = ["distil-cased-init-only", "distil-cased-mlm-seed-2", "bert-cased-random"]
    change(params / "tiny" / "robustness.yaml", models=models)
    assert profiles.load_profile("tiny", params)["robustness"].models == models


def test_a_student_with_the_name_of_a_teacher(params):
    (params / "tiny" / "students" / "distil-cased.yaml").rename(
        params / "tiny" / "students" / "bert-cased.yaml"
    )
    change(params / "tiny" / "students" / "bert-cased.yaml", student="bert-cased")
    refused(params, "bert-cased.yaml", "a teacher has the name 'bert-cased': take another")


@pytest.mark.parametrize("name", ["ensemble", "bag-of-words", "small-mlm", "small-seed-2"])
def test_a_name_that_means_something_else_in_the_tables(params, name):
    file = params / "tiny" / "students" / f"{name}.yaml"
    (params / "tiny" / "students" / "distil-cased.yaml").rename(file)
    change(file, student=name)
    refused(params, f"{name}.yaml", f"{name!r} has a meaning: take another name")


@pytest.mark.parametrize(
    ("shared", "variant", "told"),
    [
        ({"cached_pieces": 8}, {"soft_targets": "all"}, "cached_pieces: of masked tokens only"),
        ({}, {"num_layers": 9}, "num_layers (variants.lift"),
        ({}, {"layers": [9]}, "layers (variants.lift"),
    ],
)
def test_a_variant_is_checked_as_the_notebook_runs_it(params, shared, variant, told):
    change(params / "tiny" / "ablation.yaml", variants={"lift": variant}, **shared)
    with pytest.raises(ConfigError) as caught:
        profiles.load_profile("tiny", params)
    assert told.split(":")[0] in str(caught.value) and "ablation.yaml" in str(caught.value)


def test_a_name_that_is_not_its_files(params):
    file = params / "tiny" / "teachers" / "bert-cased.yaml"
    change(file, teacher="bert")
    refused(params, "teacher", file, "must be 'bert-cased', as its file is")


def test_a_missing_file(params):
    (params / "tiny" / "speed.yaml").unlink()
    refused(params, params / "tiny" / "speed.yaml", "missing: add it")


def test_a_copied_profile_that_keeps_its_old_name(params):
    (params / "tiny").rename(params / "own")
    with pytest.raises(
        ConfigError, match=r"profile \(.*common.yaml\): must be 'own', as its folder"
    ):
        profiles.load_profile("own", params)


def test_a_missing_profile(params):
    with pytest.raises(ConfigError, match=r"profile 'huge': no folder .*huge; there are: tiny$"):
        profiles.load_profile("huge", params)


@pytest.mark.parametrize("text", ["seed: [1\n", "a: b: c", "\tseed: 1"])
def test_a_file_that_is_no_yaml(params, text):
    file = params / "tiny" / "speed.yaml"
    file.write_text(text, encoding="utf-8")
    refused(params, file, "not readable as YAML", "correct it")


def test_a_file_that_holds_no_keys(params):
    file = params / "tiny" / "speed.yaml"
    file.write_text("- 1\n- 2\n", encoding="utf-8")
    refused(params, file, "expected lines of `key: value`")
    file.write_text("# nothing yet\n", encoding="utf-8")
    refused(params, "sequence_length", "missing: add it")


def test_a_file_in_another_encoding(params):
    file = params / "tiny" / "speed.yaml"
    file.write_bytes("# măsurători\nwarmup_runs: 1\n".encode("iso8859_16"))
    refused(params, file, "UTF-8")


def test_an_override_at_fault(tmp_path):
    with pytest.raises(ConfigError, match=r"^timed_runs \(override\): .*got 1: correct the value$"):
        profiles.load(
            SpeedConfig,
            ROOT / "params/tiny/common.yaml",
            ROOT / "params/tiny/speed.yaml",
            timed_runs=1,
        )


# --- notebooks ------------------------------------------------------------------------------------

CELL = """profile: str = "tiny"
seed: int = 1
data = "sample"  # a comment
precision = "float32"
sequence_length = 32
batch_sizes = [1, 2]
warmup_runs = 1
timed_runs = 3
"""
CALL = "config = from_notebook(SpeedConfig, globals())\nconfig"


@pytest.fixture
def notebook():
    """The globals of a notebook in its config cell, after its parameters cell."""
    shell = {"In": ["", "import math\nscratch = 3", CELL, CALL], "Out": {}, "scratch": 3}
    exec(CELL, shell)
    return shell


def run_cells(notebook, *cells):
    """Run further cells, the last of them the config cell."""
    for cell in cells:
        exec(cell, notebook)
    notebook["In"] = [*notebook["In"], *cells, CALL]


def test_from_notebook_reads_the_parameters_alone(notebook):
    loaded = config.from_notebook(SpeedConfig, notebook)
    assert config.to_dict(loaded) == {
        **{
            "profile": "tiny",
            "seed": 1,
            "data": "sample",
            "precision": "float32",
            "sequence_length": 32,
            "batch_sizes": [1, 2],
        },
        **{"warmup_runs": 1, "timed_runs": 3},
    }


@pytest.mark.parametrize(
    ("injected", "message"),
    [
        ({"timed_run": 5}, r"^timed_run \(notebook parameters\): unknown key"),
        ({"timed_runs": "5"}, r"^timed_runs \(notebook parameters\): .*valid integer, got '5'"),
        ({"timed_runs": 1}, r"^timed_runs \(notebook parameters\): .*got 1: correct the value$"),
    ],
)
def test_from_notebook_refuses_what_papermill_injected_wrongly(notebook, injected, message):
    [(name, value)] = injected.items()
    notebook["In"].pop()
    run_cells(notebook, f"# Parameters\n{name} = {value!r}\n")
    with pytest.raises(ConfigError, match=message):
        config.from_notebook(SpeedConfig, notebook)


def test_from_notebook_reads_changed_parameters_again(notebook):
    assert config.from_notebook(SpeedConfig, notebook).timed_runs == 3
    run_cells(notebook, "import os", "table = [1]\nname = 'x'", CELL.replace("= 3", "= 7"))
    assert config.from_notebook(SpeedConfig, notebook).timed_runs == 7
    run_cells(notebook, CELL.replace("timed_runs", "timed_run"))
    with pytest.raises(ConfigError, match=r"^timed_run \(notebook parameters\): unknown key"):
        config.from_notebook(SpeedConfig, notebook)
    run_cells(notebook, CELL)
    assert config.from_notebook(SpeedConfig, notebook).timed_runs == 3


def test_from_notebook_misses_a_parameter(notebook):
    del notebook["batch_sizes"]
    with pytest.raises(
        ConfigError, match=r"^batch_sizes \(notebook parameters\): missing: add it$"
    ):
        config.from_notebook(SpeedConfig, notebook)


def test_from_notebook_reads_text_floats(notebook, teacher_config):
    values = config.to_dict(teacher_config()) | {"learning_rate": "5e-5"}
    with pytest.raises(
        ConfigError, match=r"^learning_rate \(notebook parameters\): .*write it like 5\.0e-5"
    ):
        config.from_notebook(TeacherConfig, values)


def test_a_cell_with_a_command_of_ipython_is_no_parameters_cell():
    cells = [CELL, "%time steps = 3", "extra = 1", "# Parameters\nseeed = 2"]
    assert parameters.parameter_names(cells, SpeedConfig) == set(SpeedConfig.model_fields) | {
        "seeed"
    }


# --- the table that a notebook shows --------------------------------------------------------------


KINDS = [kind for name, kind in vars(config).items() if name.endswith("Config")]


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_a_description(kind):
    for name, field in kind.model_fields.items():
        assert field.description and len(field.description) < 80, name


def test_the_table_shows_value_meaning_and_allowed_values(student_config, teacher_config):
    page = BeautifulSoup(student_config(temperature=3.5)._repr_html_(), "html.parser")
    head, *rows = [
        [cell.text for cell in row.find_all(["th", "td"])] for row in page.find_all("tr")
    ]
    assert head == ["parameter", "value", "meaning", "allowed values"]
    rows = pd.DataFrame(rows, columns=head).set_index("parameter")
    assert list(rows.index) == list(StudentConfig.model_fields)
    assert rows.loc["temperature"].tolist() == [
        "3.5",
        "T, softens both distributions",
        "number > 0",
    ]
    allowed = rows["allowed values"]
    assert allowed["soft_targets"] == "one of all, masked"
    assert allowed["block_length"] == "integer >= 8 and <= 512"
    assert allowed["teachers"] == "mapping each number >= 0"
    assert allowed["freeze_positions"] == "true or false"
    assert "each integer >= 0" in allowed_of(EvaluateConfig)["seeds"]
    assert allowed_of(TeacherConfig)["dropout"] == "number >= 0 and < 1"


def allowed_of(kind):
    properties = kind.model_json_schema()["properties"]
    return {name: parameters.allowed_values(field) for name, field in properties.items()}


# --- blocks, seeds and revisions ------------------------------------------------------------------


def test_blocks_longer_than_a_teacher_reads_are_refused(params, teacher_config, student_config):
    with pytest.raises(ValueError, match="block_length: 129 is more than the 128 positions"):
        teacher_config(block_length=129)
    assert teacher_config(block_length=129, source="some/hub", revision="main").block_length == 129
    change(params / "tiny" / "students" / "distil-cased.yaml", block_length=129)
    refused(params, "block_length", "distil-cased.yaml", "128 positions of bert-cased: lower it")


def test_the_documents_are_split_alike_for_teachers_and_students(params):
    change(params / "tiny" / "students" / "distil-cased.yaml", data_seed=2)
    refused(params, "data_seed", "distil-cased.yaml", "2, but 1 for bert-cased", "training.yaml")


def test_what_comes_from_the_hub_needs_a_revision(teacher_config, student_config, tmp_path):
    with pytest.raises(ValueError, match="corpus_revision: empty, .*: name a commit"):
        student_config(corpus="hub:some/corpus:ro")
    with pytest.raises(ValueError, match="source: 'some/model' is no folder"):
        teacher_config(source="some/model")
    assert teacher_config(source=str(tmp_path)).revision == ""

"""What every notebook's parameters share: their base, their check, one-line errors, a table.

`rolib.config` has the parameters themselves.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

CHECKOUT = Path(__file__).resolve().parents[1]
# The repository; where rolib is installed without it, the folder in which Python was started.
ROOT = CHECKOUT if (CHECKOUT / "pyproject.toml").exists() else Path.cwd()
ASSIGNED = re.compile(r"^(\w+)(?: *:[^=\n]+)? *=(?!=)", re.MULTILINE)  # `name: type = value`
Size = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
Precision = Literal["auto", "float32", "bfloat16"]


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
        """The folder of this profile's results, below $ROLIB_RUNS or ROOT/runs."""
        return ROOT / (os.environ.get("ROLIB_RUNS") or "runs") / self.profile

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
        return kind.model_validate(values)
    except ValidationError as error:
        # A wrong name first: it explains why the right one is missing.
        fault = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
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

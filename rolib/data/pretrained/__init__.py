"""The small models in the box: two teachers and three students, trained on real Romanian text.

A model folder is a plain Hugging Face folder. Its weights are stored in half precision;
`from_pretrained` reads them as float32. `make pretrained` trains all of them again.
"""

from functools import cache
from pathlib import Path

import yaml

from rolib.config import PRETRAINED, ConfigError, pretrained_names
from rolib.runs import check_files

MADE_BY = "`make pretrained`"


def pretrained_folder(name: str) -> Path:
    """The folder of a shipped model, whose files have the checksums of its manifest.

    ConfigError for an unknown name; for a missing or damaged file see `check_files`.
    """
    folder = PRETRAINED / name
    if name not in pretrained_names():
        raise ConfigError(f"no shipped model {name!r}: use one of {', '.join(pretrained_names())}")
    check_files(folder, f"`git checkout`, or {MADE_BY}")
    return folder


@cache
def first_teachers() -> dict[str, str]:
    """The first teacher of each shipped model, in order of teachers; a teacher has itself."""
    found = {}
    for name in pretrained_names():
        settings = yaml.safe_load((PRETRAINED / name / "config.yaml").read_text(encoding="utf-8"))
        found[name] = next(iter(settings.get("teachers", [name])))
    return dict(sorted(found.items(), key=lambda pair: (pair[1], pair[0])))

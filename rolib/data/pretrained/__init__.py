"""The small models in the box: two teachers and three students, trained on real Romanian text.

`make pretrained` trains them again by the recipe of params/mini and calls

    python -m rolib.data.pretrained runs/mini

which copies the models of a profile here, in half precision. A model folder is a plain Hugging Face
folder; `from_pretrained` reads it as float32.
"""

import json
import sys
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file

from rolib.config import PRETRAINED, ConfigError
from rolib.runs import read_json, sha256, write_json, write_text

MADE_BY = "`make pretrained`"
CHECKED = ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json")


def pretrained_names() -> list[str]:
    """The names of the shipped models."""
    return sorted(path.parent.name for path in PRETRAINED.glob("*/manifest.json"))


def pretrained_folder(name: str) -> Path:
    """The folder of a shipped model, whose files have the checksums of its manifest.

    ConfigError for an unknown name, or for a missing or damaged file.
    """
    folder = PRETRAINED / name
    if name not in pretrained_names():
        raise ConfigError(f"no shipped model {name!r}: use one of {', '.join(pretrained_names())}")
    for file, checksum in read_json(folder / "manifest.json", MADE_BY)["files"].items():
        if not (folder / file).exists() or sha256(folder / file) != checksum:
            problem = f"{folder / file} is missing or damaged"
            raise ConfigError(f"{problem}: get it again with `git checkout`, or run {MADE_BY}")
    return folder


def ship(source: Path, folder: Path) -> None:
    """Copy the finished model of the run folder `source` to `folder`, weights in half precision."""
    manifest = read_json(source / "manifest.json", "`make study PROFILE=mini`")
    weights = load_file(source / "model.safetensors")
    halves = {name: weight.to(torch.float16) for name, weight in weights.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(halves, folder / "model.safetensors", {"format": "pt"})
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        content = json.loads((source / file).read_text(encoding="utf-8"))
        write_text(folder / file, json.dumps(content, ensure_ascii=False, separators=(",", ":")))
    write_text(folder / "config.yaml", (source / "config.yaml").read_text(encoding="utf-8"))
    texts = yaml.safe_load((PRETRAINED / "texts.yaml").read_text(encoding="utf-8"))
    card = (source / "README.md").read_text(encoding="utf-8")
    card += "\nWeights in half precision. Small: for teaching and demonstration. Trained on:\n\n"
    card += "".join(f"- {text['file']} ({text['source']}): {text['licence']}\n" for text in texts)
    write_text(folder / "README.md", card)
    manifest["texts"] = texts
    manifest["files"] = {file: sha256(folder / file) for file in CHECKED}
    write_json(folder / "manifest.json", manifest)


def main(runs: Path) -> None:
    """Copy every teacher and every student that has a teacher from the profile's folder `runs`."""
    for source in sorted([*runs.glob("teachers/*"), *runs.glob("students/*")]):
        if not source.name.endswith("-mlm"):
            ship(source, PRETRAINED / source.name)
            print(PRETRAINED / source.name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

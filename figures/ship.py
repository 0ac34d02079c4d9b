"""Copy a profile's trained models into the box, in half precision.

python figures/ship.py runs/mini
"""

import json
import sys
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file

from rolib.config import PRETRAINED, ConfigError
from rolib.runs import MODEL_FILES, read_json, sha256, write_json, write_text


def ship(source: Path, folder: Path) -> None:
    """Copy the finished model of the run folder `source` to `folder`, weights in half precision."""
    manifest = read_json(source / "manifest.json", "`make study PROFILE=mini`")
    listed = yaml.safe_load((PRETRAINED / "texts.yaml").read_text(encoding="utf-8"))
    if manifest["inputs"]["corpus"] != listed["corpus"]:
        raise ConfigError(f"{source}: trained on another corpus than texts.yaml has: correct it")
    weights = load_file(source / "model.safetensors")
    halves = {name: weight.to(torch.float16) for name, weight in weights.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(halves, folder / "model.safetensors", {"format": "pt"})
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        content = json.loads((source / file).read_text(encoding="utf-8"))
        write_text(folder / file, json.dumps(content, ensure_ascii=False, separators=(",", ":")))
    for file in ("config.yaml", "metrics.jsonl"):
        write_text(folder / file, (source / file).read_text(encoding="utf-8"))
    texts = listed["texts"]
    card = (source / "README.md").read_text(encoding="utf-8")
    card += "\nWeights in half precision. Small: for teaching and demonstration. Trained on:\n\n"
    card += "".join(f"- {text['file']} ({text['source']}): {text['licence']}\n" for text in texts)
    write_text(folder / "README.md", card)
    files = {file: sha256(folder / file) for file in MODEL_FILES}
    write_json(folder / "manifest.json", manifest | {"texts": texts, "files": files})


def main(runs: Path) -> None:
    """Copy the trained teachers and the first student of each method from the folder `runs`.

    A teacher that was itself taken out of the box stays as it is there.
    """
    for source in sorted([*runs.glob("teachers/[!.]*"), *runs.glob("students/[!.]*")]):
        settings = yaml.safe_load((source / "config.yaml").read_text(encoding="utf-8"))
        trained = settings.get("source", "pretrain") == "pretrain"
        distilled = settings.get("objective", "distill") == "distill"
        if trained and distilled and "-seed-" not in source.name:
            ship(source, PRETRAINED / source.name)
            print(PRETRAINED / source.name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

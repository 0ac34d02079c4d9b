"""Train what a test has saved, as one process of a group: torchrun --nproc-per-node 2
tests/train_saved.py FOLDER (not a test)."""

import os
import sys
from pathlib import Path

import torch

from rolib.distillation import loop

folder = Path(sys.argv[1])
student = loop.train(folder=folder, **torch.load(folder / "arguments.pt", weights_only=False))
if os.environ["RANK"] == "0":
    torch.save(student.state_dict(), folder / "weights.pt")

"""The memory that one training step needs beyond the weights and the optimizer's state.

    python tests/benchmarks/memory.py SHAPE BATCH LENGTH PEER

Each peer runs in a process of its own (`peak_memory`): one step over a single block makes the
optimizer's state, then the resident memory is read, then one whole step runs. The peak less what
was resident before is the result; the gradients are part of it. Linux only.
"""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks import machine
from benchmarks.shapes import SHAPES, make_world

GIGABYTE = 1e9


def status(key: str, file: str = "/proc/self/status") -> float:
    """A value of /proc in bytes."""
    lines = Path(file).read_text().splitlines()
    return 1024 * float(next(line.split()[1] for line in lines if line.startswith(key + ":")))


def fitting_batch(vocab: int, length: int, largest: int = 16) -> int:
    """The largest batch for which the plain recipe and TextBrewer fit into the free memory.

    Measured at 4 x 512: they hold eleven and twelve copies of all logits at once.
    """
    room, batch = 0.9 * status("MemAvailable", "/proc/meminfo"), largest
    while batch > 1 and 12.5 * 4 * batch * length * vocab + 2 * GIGABYTE > room:
        batch //= 2
    return batch


def measure(shape_name: str, batch: int, length: int, peer: str) -> float:
    """Megabytes of one step of a peer, in this process."""
    from benchmarks.training import make_peer

    machine.use_threads()
    world = make_world(SHAPES[shape_name]._replace(batch=batch, length=length), 2 * batch)
    job = make_peer(peer, world)
    job.step([0])
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    job.step(list(range(batch)))
    return (status("VmHWM") - before) / 1e6


def peak_memory(shape_name: str, batch: int, length: int, peer: str) -> float:
    """`measure` in a process of its own. Raises RuntimeError with its last line if it fails."""
    command = [sys.executable, __file__, shape_name, str(batch), str(length), peer]
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["killed: too little memory"])[-1]
        raise RuntimeError(f"memory of {peer} at {batch} x {length}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    name, batch, length, peer = sys.argv[1:]
    print(json.dumps(measure(name, int(batch), int(length), peer)))

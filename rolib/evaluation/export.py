"""ONNX: small and quick files of fine-tuned models and bare students, checked before they are kept.

The folder of an export needs only `onnxruntime` and `tokenizers`, as its README.md shows.
"""

from functools import partial
from pathlib import Path
from string import Template
from types import SimpleNamespace
from typing import Any

import numpy
import torch
import transformers
from safetensors.numpy import load_file
from torch import Tensor, nn

from rolib import runs
from rolib.config import Config
from rolib.evaluation import heads

try:
    import onnxruntime
    from onnxruntime.quantization import quantize_dynamic
except ImportError as error:
    raise ImportError(f"{error.name} is missing: run pip install -e '.[onnx]'") from error

# For each file the `difference` from PyTorch that it may have. int8 is refused only for gross
# errors, such as a lost attention mask. Scores and loyalty tell what rounding costs.
FILES = {"model.onnx": 1e-4, "model-int8.onnx": 0.5}
TEXT = "Ana are mere și pere. "
REPEATS = [(1, 3), (1,), (500,), (3, 20, 9)]  # of TEXT, in the batches on which files are checked
FIELDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


class OnnxModel(nn.Module):
    """An ONNX file that predicts and is timed by the code for PyTorch models.

    It runs on the CPU, with as many threads as PyTorch has when it is made.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Threads that go on looking for work would slow the model whose turn is next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = partial(onnxruntime.InferenceSession, providers=["CPUExecutionProvider"])
        # This fusion is slower than its parts: 5 of 45 ms of a 6-layer student, onnxruntime 1.32.
        self.session = session(file, options, disabled_optimizers=["SkipLayerNormFusion"])
        self.config = transformers.AutoConfig.from_pretrained(file.parent)
        self.place = nn.Parameter(torch.empty(0))  # callers look here for the device of inputs

    def forward(self, **inputs: Tensor) -> SimpleNamespace:
        """The output (B, ...) under both names that callers ask for. A missing input is zero."""
        zeros, needed = torch.zeros_like(inputs["input_ids"]), self.session.get_inputs()
        arrays = {each.name: inputs.get(each.name, zeros).numpy() for each in needed}
        output = torch.from_numpy(self.session.run(None, arrays)[0])
        return SimpleNamespace(logits=output, last_hidden_state=output)


def load(place: Path) -> Any:
    """An ONNX file, or the model of a folder as it was fine-tuned; of a bare student its encoder.

    The encoder's states are what others build on. The head for masked words would cost more time
    than the encoder of a small model.
    """
    if place.suffix == ".onnx":
        return OnnxModel(place)
    name = transformers.AutoConfig.from_pretrained(place).architectures[0]
    kind = transformers.AutoModel if name.endswith("MaskedLM") else getattr(transformers, name)
    model = kind.from_pretrained(place)
    model.pooler = None  # of a bare BERT: nothing trained it
    heads.apply_pooling(model)
    return model.eval()


def difference(model: nn.Module, other: nn.Module, inputs: dict[str, Tensor]) -> float:
    """The largest difference of outputs, as a share of the model's largest; inf for a NaN."""
    with torch.inference_mode():
        expected, found = model(**inputs)[0], other(**inputs).logits
    share = (found - expected).abs().max() / expected.abs().max()
    return share.nan_to_num(torch.inf).item()


def export_model(config: Config, source: Path, name: str) -> Path:
    """The folder runs/<profile>/onnx/<name>: the model of `source` as ONNX files, with a README.

    RuntimeError, and no folder, if the outputs of a file differ from PyTorch's by more than FILES
    allows, on any batch of REPEATS.
    """
    folder = config.folder / "onnx" / name
    shared = Config(**config.model_dump(include=set(Config.model_fields)))
    inputs = {"model": runs.sha256(source / "model.safetensors")}
    inputs["onnxruntime"] = onnxruntime.__version__
    if runs.is_finished(folder, shared, inputs):
        return folder
    model, tokenizer = load(source), transformers.AutoTokenizer.from_pretrained(source)
    model.set_attn_implementation("eager")  # of this the exporter makes the quicker graph
    longest, differences = model.config.max_position_embeddings, dict.fromkeys(FILES, 0.0)
    padded = {"padding": True, "truncation": True, "max_length": longest, "return_tensors": "pt"}
    pairs = [([TEXT * n for n in numbers], [TEXT] * len(numbers)) for numbers in REPEATS]
    batches = [dict(tokenizer(*pair, **padded)) for pair in pairs]
    axes = {key: {0: "texts", 1: "pieces"} for key in batches[0]}  # of any size
    options: dict[str, Any] = {"dynamo": True, "external_data": False, "dynamic_shapes": axes}
    options |= {"input_names": list(axes), "output_names": ["outputs"], "verbose": False}
    with runs.new_run(folder, shared, inputs, differences=differences) as working:
        model.config.save_pretrained(working)
        if (source / heads.WHITENING).exists():  # of a bi-encoder: its scores need it
            arrays: Any = load_file(source / heads.WHITENING)
            numpy.savez(working / "whitening.npz", **arrays)
        torch.onnx.export(model, (), working / "model.onnx", kwargs=batches[0], **options)
        quantize_dynamic(working / "model.onnx", working / "model-int8.onnx")
        for file, allowed in FILES.items():
            other = OnnxModel(working / file)
            differences[file] = max(difference(model, other, batch) for batch in batches)
            if differences[file] > allowed:
                problem = f"differs from PyTorch by {differences[file]:.2g}, more than {allowed}"
                remedy = "do not use it, install requirements.txt and export again"
                raise RuntimeError(f"{working / file}: {problem}: {remedy}")
        tokenizer.backend_tokenizer.enable_truncation(longest)
        tokenizer.backend_tokenizer.enable_padding(pad_id=tokenizer.pad_token_id)
        tokenizer.save_pretrained(working)
        arrays = [f'"{key}": numpy.array([text.{FIELDS[key]} for text in batch])' for key in axes]
        parts = {"name": name, "inputs": ",\n          ".join(arrays)}
        template = Template(Path(__file__).with_name("onnx-readme.md").read_text(encoding="utf-8"))
        runs.write_text(working / "README.md", template.substitute(parts))
    return folder

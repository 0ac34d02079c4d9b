"""Models for a measure: an encoder with the head that a tagger, a text or a pair of texts needs."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput

from rolib.config import EvaluateConfig
from rolib.distillation.losses import task_loss
from rolib.measures import Task

WHITENING = "whitening.safetensors"  # beside a kept bi-encoder


def mean_state(states: Tensor, mask: Tensor) -> Tensor:
    """The mean (B, H) of the states (B, T, H) where the mask (B, T) is 1, without the padding."""
    weights = mask.unsqueeze(-1)
    return (states * weights).sum(1) / weights.sum(1)


class BiEncoder(nn.Module):
    """Similarity of two texts: the cosine of their whitened mean states; they are read separately.

    See Reimers & Gurevych 2019 (arXiv 1908.10084). The mean states of a model that was pre-trained
    on masked words point into nearly one direction. Whitening gives them the mean 0 and equal
    variances (Su et al. 2021, arXiv 2103.15316). The score, in [-1, 1], is learned as gold / 5.
    """

    mean: Tensor  # (H,)
    matrix: Tensor  # (H, H)

    def __init__(self, encoder: Any, folder: Path) -> None:
        """encoder: its last_hidden_state is read. folder: that of a kept model has a whitening."""
        super().__init__()
        self.encoder, self.config, width = encoder, encoder.config, encoder.config.hidden_size
        stored = {"mean": torch.zeros(width), "matrix": torch.eye(width)}
        if (folder / WHITENING).exists():
            stored = load_file(folder / WHITENING)
        for name, value in stored.items():
            self.register_buffer(name, value)

    def mean_states(self, **inputs: Tensor) -> Tensor:
        """(B, H), before the whitening. inputs (B, T), with attention_mask."""
        states = self.encoder(**inputs).last_hidden_state.float()
        return mean_state(states, inputs["attention_mask"].float())

    @torch.no_grad()
    def fit_whitening(self, states: Tensor) -> None:
        """Take the whitening from mean states (N, H), those of the training texts."""
        variances, axes = torch.linalg.eigh(torch.cov(states.T))
        # The addend keeps noise small: directions in which the texts hardly differ.
        self.matrix.copy_(axes / (variances + 0.01 * variances.max()).sqrt())
        self.mean.copy_(states.mean(0))

    def forward(self, labels: Tensor | None = None, **inputs: Tensor) -> SequenceClassifierOutput:
        """Scores as logits (B, 1), and the mean squared error as loss if there are labels (B,).

        inputs (2B, T), with attention_mask: the B first texts, then the B second texts.
        """
        first, second = ((self.mean_states(**inputs) - self.mean) @ self.matrix).float().chunk(2)
        scores = nn.functional.cosine_similarity(first, second)
        loss = None if labels is None else nn.functional.mse_loss(scores, labels)
        return SequenceClassifierOutput(loss=loss, logits=scores.unsqueeze(-1))

    def save_pretrained(self, folder: Path) -> None:
        """Save the encoder as a plain Hugging Face folder, and the whitening beside it."""
        self.encoder.save_pretrained(folder)
        save_file({"mean": self.mean, "matrix": self.matrix.contiguous()}, folder / WHITENING)


def load_for_task(
    folder: Path, task: Task, labels: list[str], random_weights: bool, pooling: str = ""
) -> transformers.PreTrainedModel | BiEncoder:
    """The model of `folder` with a head for the task; with `random_weights` only its shape is used.

    The head is new if the folder has none; its dropout is that of the encoder. pooling: what the
    head of a classifier reads, the state of [CLS] ("cls") or the mean of all states ("mean"); "":
    as saved with the fine-tuned model.
    """
    kinds = {"tagging": transformers.AutoModelForTokenClassification}
    kind = kinds.get(task.kind, transformers.AutoModelForSequenceClassification)
    options: dict[str, Any] = {"num_labels": 1, "problem_type": "regression"}
    if labels:
        names = dict(enumerate(labels))
        options = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    elif task.protocol == "bi-encoder":
        kind, options = transformers.AutoModel, {}
    plan = transformers.AutoConfig.from_pretrained(folder, dtype=torch.float32, **options)
    if plan.model_type == "distilbert":  # as a BERT has it; 0.2 would set students apart
        plan.seq_classif_dropout = plan.dropout
    model = kind.from_config(plan) if random_weights else kind.from_pretrained(folder, config=plan)
    if kind is transformers.AutoModelForSequenceClassification:
        model.config.pooling = pooling or getattr(plan, "pooling", "cls")
        apply_pooling(model)
    return BiEncoder(model, folder) if task.protocol == "bi-encoder" else model


def apply_pooling(model: transformers.PreTrainedModel) -> None:
    """Let the head of a model read the mean of the states, if its configuration says so."""
    if getattr(model.config, "pooling", "cls") == "mean":
        model.base_model.register_forward_hook(mean_to_head, with_kwargs=True)


def mean_to_head(
    encoder: nn.Module, _: tuple, inputs: dict[str, Tensor], output: BaseModelOutput
) -> BaseModelOutput:
    """A hook after an encoder: the head reads the mean of the states.

    Models that are pre-trained on masked words alone never trained the state of [CLS].
    """
    states = output.last_hidden_state
    mean = mean_state(states, inputs["attention_mask"]).unsqueeze(1)
    # DistilBERT's head reads the first state, BERT's what the pooler makes of it.
    output.last_hidden_state = mean.to(states.dtype)
    pooler: Any = getattr(encoder, "pooler", None)
    if pooler is not None:
        output.pooler_output = pooler(output.last_hidden_state)
    return output


def loss_of_rows(
    model: nn.Module, batch: dict[str, Tensor], rows: list[dict[str, Any]], config: EvaluateConfig
) -> Tensor:
    """The loss () of a batch: the model's own, cross-entropy or the squared error of a score.

    If the rows have teachers' answers (`soft`), it is the `task_loss` of their units: words, at
    their first piece, or examples.
    """
    if "soft" not in rows[0]:
        return model(**batch).loss
    labels = batch.pop("labels")
    words = [torch.tensor(row["words"], device=labels.device) for row in rows]
    units = nn.utils.rnn.pad_sequence(words, batch_first=True, padding_value=-1) >= 0  # (B, T)
    gold = labels.reshape(units.shape)[units]
    student = model(**batch).logits.float().reshape(*units.shape, -1)[units]
    teacher = torch.from_numpy(np.concatenate([row["soft"] for row in rows])).to(labels.device)
    return task_loss(student, gold, teacher, config.alpha_task, config.task_temperature)

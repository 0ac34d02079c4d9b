"""The DistilBERT recipe written plainly: the peer that every speed-up is measured against.

The step of `distiller.py` in Hugging Face's distillation scripts (Sanh et al. 2019): logits of all
positions from student and teacher, those of real pieces selected by a mask, KL divergence times
T^2, cross-entropy over all positions of which only the masked ones have a label, cosine loss of
the last hidden states; weights 5 / 2 / 1; AdamW with betas 0.9 and 0.98, gradients clipped at 5.
All in float32, with the models of transformers. It reads the batches that rolib reads, so that
losses can be compared.
"""

import copy

import torch
from benchmarks.shapes import Job, World
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup


class Recipe(Job):
    """The plain recipe on a world's student and first teacher."""

    def __init__(self, world: World):
        self.world, config = world, world.config
        self.student, self.teacher = copy.deepcopy(world.start).train(), world.teachers[0].eval()
        self.optimizer, self.schedule = optimizer_of(self.student, config)
        self.temperature = config.temperature
        self.alphas = config.alpha_ce, config.alpha_mlm, config.alpha_cos
        self.ce_loss = nn.KLDivLoss(reduction="batchmean")
        self.mlm_loss = nn.CrossEntropyLoss(ignore_index=-100)
        self.cos_loss = nn.CosineEmbeddingLoss(reduction="mean")

    def loss(self, indices: list[int], soft_targets: str = "all") -> Tensor:
        """The loss over these blocks, with its graph.

        soft_targets: "masked" is the scripts' option restrict_ce_to_mask. It is not timed.
        """
        view = self.world.read(indices)[0]
        inputs = {"input_ids": view["input_ids"], "attention_mask": view["attention_mask"]}
        inputs["output_hidden_states"] = True
        student = self.student(**inputs)
        with torch.no_grad():
            teacher = self.teacher(**inputs)
        mask = view["attention_mask"].bool()
        vocab = student.logits.size(-1)
        soft = mask if soft_targets == "all" else view["labels"] > -1
        chosen = soft.unsqueeze(-1).expand_as(student.logits)
        s_logits = torch.masked_select(student.logits, chosen).view(-1, vocab)
        t_logits = torch.masked_select(teacher.logits, chosen).view(-1, vocab)
        loss_ce = self.ce_loss(
            nn.functional.log_softmax(s_logits / self.temperature, dim=-1),
            nn.functional.softmax(t_logits / self.temperature, dim=-1),
        )
        loss_mlm = self.mlm_loss(student.logits.view(-1, vocab), view["labels"].view(-1))
        s_states, t_states = student.hidden_states[-1], teacher.hidden_states[-1]
        chosen = mask.unsqueeze(-1).expand_as(s_states)
        s_states = torch.masked_select(s_states, chosen).view(-1, s_states.size(-1))
        t_states = torch.masked_select(t_states, chosen).view(-1, t_states.size(-1))
        loss_cos = self.cos_loss(s_states, t_states, s_states.new_ones(len(s_states)))
        alpha_ce, alpha_mlm, alpha_cos = self.alphas
        loss = alpha_ce * loss_ce * self.temperature**2
        return loss + alpha_mlm * loss_mlm + alpha_cos * loss_cos

    def step(self, indices: list[int]) -> float:
        """One optimizer step; returns the loss."""
        loss = self.loss(indices)
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 5.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        return loss.item()


def optimizer_of(student: nn.Module, config) -> tuple[torch.optim.AdamW, object]:
    """AdamW and the linear schedule of the recipe."""
    trained = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
    plain = [p for name, p in trained if "bias" in name or "LayerNorm.weight" in name]
    decayed = [p for name, p in trained if "bias" not in name and "LayerNorm.weight" not in name]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}]
    groups.append({"params": plain, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), eps=1e-6)
    warmup = round(config.warmup_share * config.steps)
    return optimizer, get_linear_schedule_with_warmup(optimizer, warmup, config.steps)

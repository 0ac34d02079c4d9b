"""Whole-word masking for masked language models.

Devlin et al. 2019; whole words: the BERT repository, May 2019.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast as Tokenizer

from rolib.distillation.alignment import shared_positions, word_starts
from rolib.distillation.losses import IGNORE

Array = np.ndarray
Draw = Callable[[int], Array]  # n -> n random pieces
View = dict[str, Any]  # a batch in the pieces of one tokenizer; see MaskingCollator
Collate = Callable[[list[dict], int], list[View]]  # blocks, epoch -> the views of a batch


def choose_words(words: int, rng: np.random.Generator, mask_share: float) -> Array:
    """The mask decision of each word of a block, (words,).

    0: the word stays as it is. Else 1 plus a random number in [0, 1), from which `mask_pieces`
    chooses between [MASK], a random piece and the piece itself. mask_share * words of them are
    masked on average, at least one.
    """
    decisions = np.zeros(words)
    if words:
        # Rounding up or down at random keeps the expected share exact for short blocks.
        count = max(1, int(mask_share * words + rng.random()))
        chosen = rng.choice(words, size=min(count, words), replace=False)
        decisions[chosen] = 1 + rng.random(len(chosen))
    return decisions


def mask_pieces(
    input_ids: Array, word_ids: Array, decisions: Array, mask_id: int, draw: Draw | None = None
) -> tuple[Array, Array]:
    """Masked input ids (L,) and labels (L,), -100 where no word was chosen.

    input_ids, word_ids: (L,); word_ids is -1 at special pieces, which are never masked. decisions:
    of `choose_words`. 80 % of the chosen words become [MASK], 10 % random pieces, 10 % stay.
    draw(n) gives n random pieces. Without it the 10 % of random words become [MASK] too.
    """
    decision = np.append(decisions, 0)[word_ids]  # -1 reads the 0 at the end
    labels = np.where(decision >= 1, input_ids, IGNORE)
    hidden = (decision >= 1) & (decision < (1.8 if draw else 1.9))
    masked = np.where(hidden, mask_id, input_ids)
    if draw:
        randomised = (decision >= 1.8) & (decision < 1.9)
        masked[randomised] = draw(int(randomised.sum()))
    return masked, labels


def positions(mask: Tensor) -> Tensor:
    """The positions (N,) in a flattened batch where a mask (B, L) is true."""
    return mask.flatten().nonzero()[:, 0]


def add_positions(views: list[View], soft_targets: str, states: str) -> None:
    """Add to the views the positions that the terms of a loss need, in the flattened batch.

    soft_targets, states: the tokens that are compared with the teachers, "all" or "masked".
    Of each view: padded, whether it has padding; compared, the pieces whose states are compared;
    numbers, the word of each (the number of words for a piece of no word); words, the first pieces
    of the compared words; soft, the pieces whose soft targets are matched (of the first view the
    masked ones come first, of a further view there are those that are a whole word in both);
    soft_rows, their rows in the first view's `soft`, ascending; the same as soft_rows_host, which
    stays on the CPU.
    Of the first view: tokens (all but padding), masked, masked_words (first pieces of words).
    Of a further view: covered, the masked words that are one piece in both views.
    """
    first = views[0]
    masked, tokens = first["labels"] != IGNORE, first["attention_mask"] == 1
    first["tokens"], first["masked"] = positions(tokens), positions(masked)
    first["masked_words"] = positions(masked & word_starts(first["word_ids"]))
    first["soft"] = first["masked"]
    if soft_targets == "all":
        first["soft"] = torch.cat([first["masked"], positions(tokens & ~masked)])
    first["soft_rows"] = torch.arange(len(first["soft"]))
    for view in views:
        compared = view["labels"] != IGNORE if states == "masked" else view["attention_mask"] == 1
        starts = positions(compared & word_starts(view["word_ids"]))
        view["compared"] = positions(compared)
        numbers = torch.searchsorted(starts, view["compared"], right=True) - 1
        inside = view["word_ids"].flatten()[view["compared"]] >= 0
        view["padded"] = not bool(view["attention_mask"].all())
        view["words"], view["numbers"] = starts, torch.where(inside, numbers, len(starts))
    row = torch.full_like(first["labels"].flatten(), -1)
    row[first["soft"]] = first["soft_rows"]
    for view in views[1:]:
        in_first, in_own = shared_positions(first["word_ids"], view["word_ids"])
        rows, order = row[positions(in_first)].sort()
        order = order[rows >= 0]
        view["soft"], view["soft_rows"] = positions(in_own)[order], rows[rows >= 0]
        view["covered"] = positions(in_first & masked)
    for view in views:
        view["soft_rows_host"] = view["soft_rows"].numpy()


@dataclass(eq=False)
class MaskingCollator:
    """Pads blocks to a batch and masks words.

    The masks depend on (seed, epoch, block) only. So a resumed run, another batch size or another
    number of processes masks the same words, and so does every view of a block. A view is the
    block in the pieces of one tokenizer. Several views get no random pieces, since they would not
    read the same words.
    """

    tokenizers: list[Tokenizer]
    mask_share: float
    seed: int
    soft_targets: str = "masked"  # the tokens that are compared with teachers, or "all"
    states: str = "all"  # the tokens whose states are compared, or "masked"

    def __post_init__(self) -> None:
        first = self.tokenizers[0]
        self.plain_ids = np.setdiff1d(np.arange(len(first)), first.all_special_ids)

    def __call__(self, blocks: list[dict], epoch: int = 0) -> list[View]:
        """The views of a batch, the student's first. blocks: index; input_ids, word_ids by view.

        Each view has input_ids, attention_mask, labels and word_ids (-1 at special and padding
        pieces), (B, L), and the positions of `add_positions`.
        """
        views = [self.pad_and_mask(blocks, view, epoch) for view in range(len(self.tokenizers))]
        add_positions(views, self.soft_targets, self.states)
        return views

    def pad_and_mask(self, blocks: list[dict], number: int, epoch: int) -> View:
        """The tensors (B, L) of one view."""
        tokenizer = self.tokenizers[number]
        shape = len(blocks), max(len(block["input_ids"][number]) for block in blocks)
        fill = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0}
        fill |= {"labels": IGNORE, "word_ids": -1}
        batch = {name: np.full(shape, value) for name, value in fill.items()}
        for row, block in enumerate(blocks):
            rng = np.random.default_rng([self.seed, epoch, block["index"]])
            ids = np.asarray(block["input_ids"][number])
            words = np.asarray(block["word_ids"][number])
            decisions = choose_words(words.max() + 1, rng, self.mask_share)
            draw = (lambda n: rng.choice(self.plain_ids, n)) if len(self.tokenizers) == 1 else None
            masked, labels = mask_pieces(ids, words, decisions, tokenizer.mask_token_id, draw)
            values = {"input_ids": masked, "attention_mask": 1, "labels": labels, "word_ids": words}
            for name, value in values.items():
                batch[name][row, : len(ids)] = value
        return {name: torch.from_numpy(value) for name, value in batch.items()}

"""Whole-word masking for masked language models (Devlin et al. 2019; whole words: the BERT repository, May 2019)."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from rolib.distillation.alignment import shared_positions
from rolib.distillation.losses import IGNORE


def choose_words(words: int, rng: np.random.Generator, mask_share: float) -> np.ndarray:
    """Choose the words of a block that are masked: (words,) 0 for untouched, else 1 plus a random number in [0, 1).

    That number decides what becomes of the word. The number of masked words is share * words on average, at least one.
    """
    fate = np.zeros(words)
    if words:
        # Rounding up or down at random keeps the expected share exact for short blocks.
        count = max(1, int(mask_share * words + rng.random()))
        chosen = rng.choice(words, size=min(count, words), replace=False)
        fate[chosen] = 1 + rng.random(len(chosen))
    return fate


def mask_pieces(
    input_ids: np.ndarray,
    word_ids: np.ndarray,
    fate: np.ndarray,
    mask_id: int,
    draw: Callable[[int], np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Mask one view of a block as `choose_words` decided: 80 % of the words become [MASK], 10 % random, 10 % stay.

    input_ids, word_ids: (L,); word_ids is -1 at special pieces, which are never masked. draw(n) gives n random
    pieces; without it the words to be random become [MASK] too. Returns (masked input ids, labels), labels -100 where no word was chosen.
    """
    fate = np.append(fate, 0)[word_ids]  # -1 reads the 0 at the end
    labels = np.where(fate >= 1, input_ids, IGNORE)
    masked = np.where((fate >= 1) & (fate < (1.8 if draw else 1.9)), mask_id, input_ids)
    if draw:
        randomised = (fate >= 1.8) & (fate < 1.9)
        masked[randomised] = draw(int(randomised.sum()))
    return masked, labels


class MaskingCollator:
    """Pad blocks to a batch and mask them; what is masked depends on (seed, epoch, block) and on nothing else.

    So a resumed run, another batch size or another number of processes masks the same words, and so does every view of
    a block (one for each tokenizer). Several views get no random pieces: they would read different words there.
    """

    def __init__(self, tokenizers: list, mask_share: float, seed: int):
        self.tokenizers, self.mask_share, self.seed, self.epoch = tokenizers, mask_share, seed, 0
        self.plain_ids = np.setdiff1d(np.arange(len(tokenizers[0])), tokenizers[0].all_special_ids)

    def __call__(self, blocks: list[dict]) -> list[dict[str, torch.Tensor]]:
        """blocks: dicts with index, and input_ids and word_ids of each view.

        Returns for each view input_ids, attention_mask, labels and word_ids (-1 at special and padding pieces), (B, L);
        further views also shared_first and shared, the masks of `alignment.shared_positions` in the first view and in their own.
        """
        views = []
        for view, tokenizer in enumerate(self.tokenizers):
            shape = len(blocks), max(len(block["input_ids"][view]) for block in blocks)
            fill = {
                "input_ids": tokenizer.pad_token_id,
                "attention_mask": 0,
                "labels": IGNORE,
                "word_ids": -1,
            }
            batch = {name: np.full(shape, value) for name, value in fill.items()}
            for row, block in enumerate(blocks):
                rng = np.random.default_rng([self.seed, self.epoch, block["index"]])
                ids, words = (
                    np.asarray(block["input_ids"][view]),
                    np.asarray(block["word_ids"][view]),
                )
                fate = choose_words(words.max() + 1, rng, self.mask_share)
                draw = partial(rng.choice, self.plain_ids) if len(self.tokenizers) == 1 else None
                masked, labels = mask_pieces(ids, words, fate, tokenizer.mask_token_id, draw)
                values = {
                    "input_ids": masked,
                    "attention_mask": 1,
                    "labels": labels,
                    "word_ids": words,
                }
                for name, value in values.items():
                    batch[name][row, : len(ids)] = value
            views.append({name: torch.from_numpy(value) for name, value in batch.items()})
            if view:
                shared = shared_positions(views[0]["word_ids"], views[view]["word_ids"])
                views[view]["shared_first"], views[view]["shared"] = shared
        return views

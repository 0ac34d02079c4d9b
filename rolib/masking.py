"""Whole-word masking for masked language models (Devlin et al. 2019; whole words: the BERT repository, May 2019)."""

import numpy as np
import torch

from rolib.losses import IGNORE


def mask_words(
    input_ids: np.ndarray,
    word_ids: np.ndarray,
    rng: np.random.Generator,
    mask_share: float,
    mask_id: int,
    plain_ids: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Mask whole words of one block: 80 % become [MASK], 10 % random pieces, 10 % stay (the choice is per word).

    input_ids, word_ids: (L,); word_ids is -1 at special tokens, which are never masked. plain_ids: the vocabulary
    indices random pieces are drawn from. Returns (masked input ids, labels), labels -100 where no word was chosen.
    The number of masked words is share * words on average, at least one, drawn without replacement.
    """
    words = np.unique(word_ids[word_ids >= 0])
    labels = np.full_like(input_ids, IGNORE)
    if not len(words):
        return input_ids, labels
    # Rounding up or down at random keeps the expected share exact for short blocks.
    count = max(1, int(mask_share * len(words) + rng.random()))
    chosen = rng.choice(words, size=min(count, len(words)), replace=False)
    fate = np.zeros(word_ids.max() + 1)
    fate[chosen] = 1 + rng.random(len(chosen))  # 0: untouched, 1-1.8: [MASK], 1.8-1.9: random, 1.9-2: kept
    fate = np.where(word_ids >= 0, fate[word_ids], 0)
    labels = np.where(fate >= 1, input_ids, labels)
    masked = np.where((fate >= 1) & (fate < 1.8), mask_id, input_ids)
    randomised = (fate >= 1.8) & (fate < 1.9)
    masked[randomised] = rng.choice(plain_ids, size=int(randomised.sum()))
    return masked, labels


class MaskingCollator:
    """Pad blocks to a batch and mask them; what is masked depends on (seed, epoch, block) and on nothing else.

    So a resumed run, another batch size or another number of processes masks the same words.
    """

    def __init__(self, tokenizer, mask_share: float, seed: int):
        self.tokenizer, self.mask_share, self.seed, self.epoch = tokenizer, mask_share, seed, 0
        self.plain_ids = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)

    def __call__(self, blocks: list[dict]) -> dict[str, torch.Tensor]:
        """blocks: dicts with index, input_ids, word_ids. Returns input_ids, attention_mask, labels, each (B, L)."""
        length = max(len(block["input_ids"]) for block in blocks)
        shape = (len(blocks), length)
        input_ids = np.full(shape, self.tokenizer.pad_token_id)
        attention_mask, labels = np.zeros(shape, dtype=np.int64), np.full(shape, IGNORE)
        for row, block in enumerate(blocks):
            rng = np.random.default_rng([self.seed, self.epoch, block["index"]])
            ids, words = np.asarray(block["input_ids"]), np.asarray(block["word_ids"])
            masked, target = mask_words(ids, words, rng, self.mask_share, self.tokenizer.mask_token_id, self.plain_ids)
            input_ids[row, : len(ids)], labels[row, : len(ids)] = masked, target
            attention_mask[row, : len(ids)] = 1
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        return {key: torch.from_numpy(value) for key, value in batch.items()}

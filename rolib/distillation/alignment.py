"""Two vocabularies over one text: shared words, and the projection of probabilities.

A text is split into words once, and every tokenizer splits each word into pieces of its own.
Where a word is a single piece for both tokenizers, both models predict at the same place. There
the second teacher's distribution can be projected onto the vocabulary of the first. Elsewhere the
words can still be compared: the state of a word is the mean of its pieces' states.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast as Tokenizer

from rolib.config import ConfigError

# What a normaliser may change in Romanian text: case, comma and cedilla letters, accents, digits,
# punctuation, symbols.
PROBES = "Știință ȘTIINȚĂ şcoală Ţară Într-un n-a ÎNȚELEPCIUNE café 12,5% „da” €".split()


def word_starts(word_ids: Tensor) -> Tensor:
    """(B, L) bool: the first piece of each word.

    word_ids: (B, L), -1 at special and padding pieces.
    """
    before = torch.nn.functional.pad(word_ids, (1, 0), value=-1)[:, :-1]
    return (word_ids >= 0) & (word_ids != before)


def word_numbers(word_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers (B, L) of a batch's words from 0, -1 where there is no word; and the pieces of each.

    word_ids: (B, L), -1 at special and padding pieces. The second tensor is (W,).
    """
    numbers = word_starts(word_ids).flatten().cumsum(0).view_as(word_ids) - 1
    numbers = torch.where(word_ids >= 0, numbers, -1)
    return numbers, torch.bincount(numbers[numbers >= 0])


def pool_words(states: Tensor, numbers: Tensor, words: int) -> Tensor:
    """Word states (words, H): the mean of the states of each word's pieces.

    states: (S, H) of pieces; numbers: (S,), the word of each piece, `words` for a piece of no word.
    """
    sums = states.new_zeros(words + 1, states.shape[-1]).index_add(0, numbers, states)
    counts = states.new_zeros(words + 1).index_add(0, numbers, states.new_ones(len(states)))
    return (sums / counts.clamp(min=1)[:, None])[:words]


def shared_positions(word_ids: Tensor, other_word_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Masks (B, L) and (B, L') of the words that are one piece in both views.

    Both masks select the same words in the same order. Raises ValueError for views that do not hold
    the same words.
    """
    numbers, counts = word_numbers(word_ids)
    other_numbers, other_counts = word_numbers(other_word_ids)
    if len(counts) != len(other_counts):
        raise ValueError(f"views of different texts: {len(counts)} and {len(other_counts)} words")
    shared = (counts == 1) & (other_counts == 1)
    shared = torch.cat([shared, shared.new_zeros(1)])  # the last one is for the number -1
    return shared[numbers], shared[other_numbers]


def check_wordpiece(tokenizer: Tokenizer, name: str) -> None:
    """Raise ConfigError unless a tokenizer is a fast WordPiece one, the only kind supported."""
    kind = type(tokenizer.backend_tokenizer.model).__name__ if tokenizer.is_fast else "slow"
    if kind != "WordPiece":
        raise ConfigError(f"{name}: its tokenizer is not a fast WordPiece one; use a BERT model")


def check_normalisers(tokenizer: Tokenizer, other: Tokenizer, names: tuple[str, str]) -> None:
    """Raise ConfigError unless one tokenizer's text can be derived from the other's (`PROBES`).

    A cased and a lower-casing tokenizer agree: lower-casing the cased one's text gives the
    other's. One that keeps case and drops accents and one that does the reverse do not agree.
    """
    for name, each in zip(names, (tokenizer, other), strict=True):
        check_wordpiece(each, name)
    read, read_other = normaliser(tokenizer), normaliser(other)
    for probe in PROBES:
        one, two = read(probe), read_other(probe)
        if read_other(one) != two and read(two) != one:
            texts = f"{names[0]} reads {probe!r} as {one!r} and {names[1]} as {two!r}"
            hint = "take teachers of which one keeps all that the other reads (case, accents)"
            raise ConfigError(f"{texts}, and neither can be derived from the other: {hint}")


def normaliser(tokenizer: Tokenizer) -> Callable[[str], str]:
    """The function that a tokenizer applies to a text before it splits it."""
    step = tokenizer.backend_tokenizer.normalizer
    return step.normalize_str if step else lambda text: text


def same_vocabulary(tokenizer: Tokenizer, other: Tokenizer) -> bool:
    """True if two tokenizers number the same pieces alike and normalise text alike."""
    read, read_other = normaliser(tokenizer), normaliser(other)
    same_text = all(read(probe) == read_other(probe) for probe in PROBES)
    return same_text and tokenizer.get_vocab() == other.get_vocab()


class Projection:
    """The projection of a teacher's probabilities (U pieces) onto the student's vocabulary (C).

    A student's piece c and a teacher's piece u are joined if the teacher's normaliser turns c into
    u (a lower-casing teacher: several c to one u), or the student's normaliser turns u into c.
    Special pieces are joined by role. One index is stored for each piece of the side that keeps
    more. Raises ConfigError for tokenizers that cannot be joined or share no piece.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        teacher_tokenizer: Tokenizer,
        names: tuple[str, str] = ("the student", "the teacher"),
    ):
        check_normalisers(tokenizer, teacher_tokenizer, names)
        own, theirs = Vocabulary(tokenizer), Vocabulary(teacher_tokenizer)
        self.own_size, self.teacher_size = own.size, theirs.size
        derived = (theirs.read(own.read(probe)) == theirs.read(probe) for probe in PROBES)
        self.teacher_reads_less = all(derived)
        fine, coarse = (own, theirs) if self.teacher_reads_less else (theirs, own)
        self.join = fine.counterparts(coarse, coarse.read)
        self.equal = theirs.counterparts(own, str)  # by equal spelling
        if all(self.join[i] == coarse.size for i in fine.pieces.values()):
            hint = "take teachers of one language and script"
            raise ConfigError(f"{names[0]} and {names[1]} have no piece in common: {hint}")

    def to(self, device: torch.device | str) -> "Projection":
        """Move the indices to a device; returns self."""
        self.join, self.equal = self.join.to(device), self.equal.to(device)
        return self

    def lift(self, teacher_probs: Tensor, own_probs: Tensor) -> tuple[Tensor, Tensor]:
        """q (N, C), and the covered mass (N,): the probability that has a counterpart, 0 to 1.

        teacher_probs: (N, U); own_probs: (N, C), the first teacher's at the same places.
        q(c) = p_U(u) p_C(c) / sum of p_C(c') over all c' joined to u. So the mass of a lower-cased
        piece is split among its cased forms as the first teacher splits it. The mass of pieces
        without a counterpart, or with forms that have no probability for the first teacher, goes to
        p_C in proportion. So q sums to 1.
        """
        self._check(teacher_probs, own_probs)
        if not self.teacher_reads_less:
            lifted, covered = self._collect(self.join, teacher_probs, own_probs)
            return lifted + (1 - covered).clamp(min=0)[:, None] * own_probs, covered
        # The last column is for pieces without counterpart.
        size = len(own_probs), self.teacher_size + 1
        forms = own_probs.new_zeros(size).index_add_(1, self.join, own_probs)[:, :-1]
        ratio = own_probs.new_zeros(size)
        least = torch.finfo(forms.dtype).tiny
        torch.div(teacher_probs, forms.clamp(min=least), out=ratio[:, :-1])
        covered = torch.linalg.vecdot(ratio[:, :-1], forms)
        # In place: on a CPU new tensors of this size cost as much time as the arithmetic.
        rest = (1 - covered).clamp(min=0)[:, None]
        # index_select: several times as fast on a CPU as indexing by a tensor.
        return ratio.index_select(1, self.join).add_(rest).mul_(own_probs), covered

    def intersection(self, teacher_probs: Tensor, own_probs: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C): the mass of equally spelled pieces, renormalised; and the covered mass (N,).

        teacher_probs: (N, U); own_probs: (N, C), the result where there is no such piece. The
        baseline of the literature: what the vocabularies do not share is dropped.
        """
        self._check(teacher_probs, own_probs)
        kept, covered = self._collect(self.equal, teacher_probs, own_probs)
        tiny = torch.finfo(kept.dtype).tiny
        scaled = kept / covered[:, None].clamp(min=tiny)
        return torch.where(covered[:, None] > tiny, scaled, own_probs), covered

    def _check(self, teacher_probs: Tensor, own_probs: Tensor) -> None:
        """Raise ValueError for another number of columns than pieces: the result would be wrong."""
        sizes = teacher_probs.shape[1], own_probs.shape[1]
        if sizes != (self.teacher_size, self.own_size):
            expected = f"{self.teacher_size} and {self.own_size} pieces"
            hint = "cut models with padded vocabularies by rolib.distillation.models.fit_vocabulary"
            raise ValueError(f"probabilities over {sizes} columns, but {expected}: {hint}")

    @staticmethod
    def _collect(index: Tensor, teacher_probs: Tensor, own_probs: Tensor) -> tuple[Tensor, Tensor]:
        """The mass of each teacher's piece u moved to index[u], and the mass moved.

        An index past the end drops the mass.
        """
        size = own_probs.shape[1]
        moved = own_probs.new_zeros(len(own_probs), size + 1).index_add_(1, index, teacher_probs)
        return moved[:, :size], moved[:, :size].sum(-1)


class Vocabulary:
    """A tokenizer's plain pieces that it can produce, its special pieces, its normaliser."""

    def __init__(self, tokenizer: Tokenizer):
        self.read, self.size = normaliser(tokenizer), len(tokenizer)
        special = tokenizer.special_tokens_map
        self.roles = {role: tokenizer.convert_tokens_to_ids(special[role]) for role in special}
        self.pieces = {}
        for piece, i in tokenizer.get_vocab().items():
            if i not in self.roles.values() and self.read(piece) == piece:
                self.pieces[piece] = i

    def counterparts(self, other: "Vocabulary", read: Callable[[str], str]) -> Tensor:
        """(size,): the index in `other` of what `read` makes of each piece; other.size for none."""
        index = torch.full((self.size,), other.size)
        for piece, i in self.pieces.items():
            index[i] = other.pieces.get(read(piece), other.size)
        for role, i in self.roles.items():
            index[i] = other.roles.get(role, other.size)
        return index

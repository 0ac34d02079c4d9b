"""Two vocabularies over one text: words, their pieces, and the projection of one vocabulary's probabilities onto another's.

A text is split into words once; every tokenizer cuts each word into pieces of its own. Where a word is a single piece for
two tokenizers, both models predict at the same place, and what the second says about its pieces can be said in pieces of
the first. Elsewhere the words themselves remain comparable: a word's state is the mean of its pieces' states.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rolib.config import ConfigError

# What a normaliser may do to Romanian text: case, comma and cedilla letters, accents, digits, punctuation, symbols.
PROBES = "Știință ȘTIINȚĂ şcoală Ţară Într-un n-a ÎNȚELEPCIUNE café 12,5% „da” €".split()


def word_starts(word_ids: Tensor) -> Tensor:
    """(B, L) bool: the first piece of each word. word_ids: (B, L), -1 at special and padding pieces."""
    before = torch.nn.functional.pad(word_ids, (1, 0), value=-1)[:, :-1]
    return (word_ids >= 0) & (word_ids != before)


def word_numbers(word_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Number the words of a batch from 0. word_ids: (B, L), -1 at special and padding pieces.

    Returns numbers (B, L), -1 where there is no word, and counts (W,), the pieces of each word.
    """
    numbers = word_starts(word_ids).flatten().cumsum(0).view_as(word_ids) - 1
    numbers = torch.where(word_ids >= 0, numbers, -1)
    return numbers, torch.bincount(numbers[numbers >= 0])


def pool_words(hidden: Tensor, word_ids: Tensor) -> Tensor:
    """Word states (W, H): the mean of each word's piece states. hidden: (B, L, H); word_ids: (B, L), see `word_numbers`."""
    numbers, counts = word_numbers(word_ids)
    inside = numbers >= 0
    sums = hidden.new_zeros(len(counts), hidden.shape[-1]).index_add(
        0, numbers[inside], hidden[inside]
    )
    return sums / counts[:, None]


def shared_positions(word_ids: Tensor, other_word_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Where both views write a word as one piece: masks (B, L) and (B, L') that select the same words in the same order.

    Raises ValueError for views that do not hold the same words.
    """
    (numbers, counts), (other_numbers, other_counts) = (
        word_numbers(word_ids),
        word_numbers(other_word_ids),
    )
    if len(counts) != len(other_counts):
        raise ValueError(f"views of different texts: {len(counts)} and {len(other_counts)} words")
    shared = torch.cat(
        [(counts == 1) & (other_counts == 1), counts.new_zeros(1, dtype=torch.bool)]
    )  # the last is for -1
    return shared[numbers], shared[other_numbers]


def check_wordpiece(tokenizer, name: str) -> None:
    """Raise ConfigError for a tokenizer that is not a fast WordPiece one, which everything here relies on."""
    if not tokenizer.is_fast or tokenizer.backend_tokenizer.model.__class__.__name__ != "WordPiece":
        raise ConfigError(f"{name}: its tokenizer is not a fast WordPiece one; use a BERT model")


def check_normalisers(tokenizer, other, names: tuple[str, str]) -> None:
    """Raise ConfigError unless one tokenizer reads all that the other keeps, for Romanian letters (`PROBES`).

    A cased and a lower-casing tokenizer agree: lower-casing what the cased one keeps is what the other reads. One that
    keeps case and drops accents and one that does the reverse do not: neither's pieces can be said in the other's.
    """
    for name, each in zip(names, (tokenizer, other), strict=True):
        check_wordpiece(each, name)
    read, read_other = normaliser(tokenizer), normaliser(other)
    for probe in PROBES:
        one, two = read(probe), read_other(probe)
        if read_other(one) != two and read(two) != one:
            mend = "take teachers of which one keeps all that the other reads (case, accents)"
            raise ConfigError(
                f"{names[0]} reads {probe!r} as {one!r} and {names[1]} as {two!r}, neither tells the other: {mend}"
            )


def normaliser(tokenizer):
    """What a tokenizer does to a text before it cuts it, as a function."""
    step = tokenizer.backend_tokenizer.normalizer
    return step.normalize_str if step else lambda text: text


def same_vocabulary(tokenizer, other) -> bool:
    """True if two tokenizers number the same pieces alike and read text alike: their models' outputs correspond."""
    read, read_other = normaliser(tokenizer), normaliser(other)
    same_text = all(read(probe) == read_other(probe) for probe in PROBES)
    return same_text and tokenizer.get_vocab() == other.get_vocab()


class Projection:
    """Says a teacher's probabilities over its vocabulary (U pieces) in the student's vocabulary (C pieces).

    A student's piece c and a teacher's piece u are joined if u is what the teacher's normaliser makes of c (a lower-casing
    teacher, several c to one u) or, the other way round, c is what the student's makes of u. Special pieces join by role.
    Built once; sparse: one index for each piece of the side that keeps more.
    Raises ConfigError for tokenizers that cannot be joined or share no piece.
    """

    def __init__(
        self, tokenizer, teacher_tokenizer, names: tuple[str, str] = ("the student", "the teacher")
    ):
        check_normalisers(tokenizer, teacher_tokenizer, names)
        own, theirs = Vocabulary(tokenizer), Vocabulary(teacher_tokenizer)
        self.teacher_reads_less = all(
            theirs.read(own.read(probe)) == theirs.read(probe) for probe in PROBES
        )
        fine, coarse = (own, theirs) if self.teacher_reads_less else (theirs, own)
        self.join = fine.counterparts(coarse, coarse.read)
        self.equal = theirs.counterparts(own, str)  # by equal spelling
        if all(self.join[i] == coarse.size for i in fine.pieces.values()):
            raise ConfigError(
                f"{names[0]} and {names[1]} have no piece in common: take teachers of one language and script"
            )

    def to(self, device) -> "Projection":
        """Move the indices to a device; returns self."""
        self.join, self.equal = self.join.to(device), self.equal.to(device)
        return self

    def lift(self, teacher_probs: Tensor, own_probs: Tensor) -> tuple[Tensor, Tensor]:
        """(N, U) over the teacher's pieces and (N, C), the first teacher's at the same places -> (N, C), (N,).

        q(c) = p_U(u) p_C(c) / sum of p_C(c') over all c' joined to u: a lower-cased piece's mass is split among its cased
        forms as the first teacher splits it. Mass on pieces that have no counterpart, or none that the first teacher
        thinks possible, goes to p_C in proportion, so q sums to 1. Also returns the covered mass, what had a counterpart (0 to 1).
        """
        if not self.teacher_reads_less:
            lifted, covered = self._collect(self.join, teacher_probs, own_probs)
            return lifted + (1 - covered).clamp(min=0)[:, None] * own_probs, covered
        size = (
            len(own_probs),
            teacher_probs.shape[1] + 1,
        )  # the last column is for pieces without counterpart
        forms = own_probs.new_zeros(size).index_add_(1, self.join, own_probs)[:, :-1]
        ratio = own_probs.new_zeros(size)
        torch.div(teacher_probs, forms.clamp(min=torch.finfo(forms.dtype).tiny), out=ratio[:, :-1])
        covered = torch.linalg.vecdot(ratio[:, :-1], forms)
        # In place: on a CPU the pages of new tensors of this size cost as much as the arithmetic.
        return ratio[:, self.join].add_((1 - covered).clamp(min=0)[:, None]).mul_(
            own_probs
        ), covered

    def intersection(self, teacher_probs: Tensor, own_probs: Tensor) -> tuple[Tensor, Tensor]:
        """(N, U), (N, C) -> (N, C), (N,): the mass of equally spelled pieces, renormalised; p_C where there is none.

        The baseline of the literature: what the vocabularies do not share is dropped. Also returns the covered mass.
        """
        kept, covered = self._collect(self.equal, teacher_probs, own_probs)
        tiny = torch.finfo(kept.dtype).tiny
        return torch.where(
            covered[:, None] > tiny, kept / covered[:, None].clamp(min=tiny), own_probs
        ), covered

    @staticmethod
    def _collect(index: Tensor, teacher_probs: Tensor, own_probs: Tensor) -> tuple[Tensor, Tensor]:
        """Move the mass of each teacher's piece u to index[u]; what points past the end is lost. Also returns what was moved."""
        size = own_probs.shape[1]
        moved = own_probs.new_zeros(len(own_probs), size + 1).index_add_(1, index, teacher_probs)[
            :, :size
        ]
        return moved, moved.sum(-1)


class Vocabulary:
    """A tokenizer's plain pieces that it can produce, its special pieces by role, and what it makes of a text."""

    def __init__(self, tokenizer):
        self.read, self.size = normaliser(tokenizer), len(tokenizer)
        self.roles = {
            role: tokenizer.convert_tokens_to_ids(piece)
            for role, piece in tokenizer.special_tokens_map.items()
        }
        plain = {
            piece: i for piece, i in tokenizer.get_vocab().items() if i not in self.roles.values()
        }
        self.pieces = {piece: i for piece, i in plain.items() if self.read(piece) == piece}

    def counterparts(self, other: "Vocabulary", read: Callable[[str], str]) -> Tensor:
        """(size,): for each piece the index in the other vocabulary of what `read` makes of it, other.size for none."""
        index = torch.full((self.size,), other.size)
        for piece, i in self.pieces.items():
            index[i] = other.pieces.get(read(piece), other.size)
        for role, i in self.roles.items():
            index[i] = other.roles[role]
        return index

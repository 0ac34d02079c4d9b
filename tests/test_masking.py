"""Whole-word masking: which words, how many, what becomes of them, and on what it depends."""

import itertools

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from rolib.data.corpus import build_blocks
from rolib.distillation.losses import IGNORE
from rolib.distillation.masking import MaskingCollator, choose_words, mask_pieces

steady = settings(deadline=None, derandomize=True, max_examples=200)
MASK = 4


def block(sizes, first_id=100):
    """Distinct pieces of words with these numbers of pieces, between two special tokens."""
    words = [-1, *(word for word, size in enumerate(sizes) for _ in range(size)), -1]
    return np.arange(first_id, first_id + len(words)), np.array(words)


def draw(sizes, seed, share=0.3, plain=range(500, 520)):
    ids, words = block(sizes)
    rng = np.random.default_rng(seed)
    decisions = choose_words(len(sizes), rng, share)
    masked, labels = mask_pieces(
        ids, words, decisions, MASK, lambda count: rng.choice(np.array(plain), size=count)
    )
    return ids, words, masked, labels


def likely(successes, trials, probability):
    """True unless so many successes would come up less than once in a million times."""
    return binomtest(int(successes), int(trials), probability).pvalue > 1e-6


@steady
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=20),
    st.integers(0, 10**6),
    st.floats(0.01, 0.99),
)
def test_whole_words_are_labelled_and_nothing_else_changes(sizes, seed, share):
    ids, words, masked, labels = draw(sizes, seed, share)
    chosen = labels != IGNORE
    assert (labels[chosen] == ids[chosen]).all()
    assert (masked[~chosen] == ids[~chosen]).all()
    assert not chosen[words < 0].any()
    for word in range(len(sizes)):
        here = words == word
        assert chosen[here].all() or not chosen[here].any()
        if chosen[here].any():  # one decision for the whole word
            fates = {
                (masked[here] == MASK).all(),
                (masked[here] == ids[here]).all(),
                (masked[here] >= 500).all(),
            }
            assert fates == {True, False}
    count = len({word for word in words[chosen]})
    assert count == 1 or abs(count - share * len(sizes)) < 1
    assert 1 <= count <= len(sizes)


@pytest.mark.parametrize(("words", "share"), [(7, 0.3), (20, 0.15), (11, 0.5)])
def test_the_mean_share_of_masked_words(words, share):
    draws = 4000
    counts = [(draw([1] * words, seed, share)[3] != IGNORE).sum() for seed in range(draws)]
    low = int(share * words)
    assert set(counts) <= {low, low + 1}
    assert likely(sum(count - low for count in counts), draws, share * words - low)


def test_every_word_is_as_likely():
    chosen = np.array([draw([1] * 10, seed, 0.25)[3][1:-1] != IGNORE for seed in range(4000)])
    assert all(likely(hits, 4000, 0.25) for hits in chosen.sum(0))


def test_eighty_ten_ten():
    mask = random = kept = total = 0
    pieces = []
    for seed in range(1500):
        ids, words, masked, labels = draw([2] * 20, seed)
        first = np.flatnonzero(labels != IGNORE)[::2]  # one piece a word
        mask += (masked[first] == MASK).sum()
        kept += (masked[first] == ids[first]).sum()
        random += (masked[first] >= 500).sum()
        pieces += [piece for piece in masked if piece >= 500]
        total += len(first)
    assert mask + kept + random == total
    assert likely(mask, total, 0.8) and likely(random, total, 0.1) and likely(kept, total, 0.1)
    counts = np.bincount(pieces, minlength=520)[500:]
    assert all(
        likely(count, len(pieces), 1 / 20) for count in counts
    )  # random pieces come evenly from plain_ids
    assert {a != b for a, b in itertools.pairwise(pieces)} == {
        True,
        False,
    }  # each piece of a word is drawn by itself


def test_a_block_without_words_stays_as_it_is():
    ids, words, masked, labels = draw([], 0)
    assert (masked == ids).all() and (labels == IGNORE).all()


# --- the collator ---------------------------------------------------------------------------------


@pytest.fixture
def rows(toy_blocks):
    return [toy_blocks["train"][i] for i in (3, 0, 11, 7)] + [
        {"index": 99, "input_ids": [[2, 50, 3]], "word_ids": [[-1, 0, -1]]}
    ]


def collator(tokenizer, seed=1, epoch=0):
    made = MaskingCollator([tokenizer], 0.3, seed)
    return lambda blocks: made(blocks, epoch)


def test_a_batch_is_padded(toy_tokenizer, rows):
    [batch] = collator(toy_tokenizer)(rows)
    width = max(len(row["input_ids"][0]) for row in rows)
    tensors = {"input_ids", "attention_mask", "labels", "word_ids"}
    assert {batch[name].shape for name in tensors} == {(5, width)}
    places = {"tokens", "masked", "words", "masked_words", "soft", "soft_rows", "soft_rows_host"}
    places |= {"compared", "numbers"}
    assert set(batch) == tensors | places | {"padded"} and batch["padded"]
    assert all(batch[name].ndim == 1 for name in places)
    assert batch["attention_mask"].sum(1).tolist() == [len(row["input_ids"][0]) for row in rows]
    padding = batch["attention_mask"] == 0
    assert padding.any()
    assert (batch["input_ids"][padding] == toy_tokenizer.pad_token_id).all()
    assert (batch["labels"][padding] == IGNORE).all()


def test_labels_are_the_true_pieces_and_special_tokens_have_none(toy_tokenizer, rows):
    [batch] = collator(toy_tokenizer)(rows)
    for ids, labels, row in zip(batch["input_ids"], batch["labels"], rows, strict=True):
        true, words = np.array(row["input_ids"][0]), np.array(row["word_ids"][0])
        ids, labels = ids[: len(true)].numpy(), labels[: len(true)].numpy()
        assert (labels != IGNORE).any()
        assert set(labels[words < 0]) == {IGNORE}
        assert (np.where(labels == IGNORE, ids, labels) == true).all()


def test_random_pieces_are_never_special_tokens(toy_tokenizer):
    assert sorted(
        [*MaskingCollator([toy_tokenizer], 0.3, 1).plain_ids, *toy_tokenizer.all_special_ids]
    ) == list(range(len(toy_tokenizer)))


def test_masks_depend_on_seed_epoch_and_block_alone(toy_tokenizer, rows):
    [whole] = collator(toy_tokenizer)(rows)
    for chosen in ([0], [4, 2], [3, 1, 0], [4, 3, 2, 1, 0]):
        [part] = collator(toy_tokenizer)([rows[i] for i in chosen])
        for row, i in enumerate(chosen):
            length = len(rows[i]["input_ids"][0])
            for key in ("input_ids", "labels"):
                assert part[key][row, :length].tolist() == whole[key][i, :length].tolist()


def test_another_epoch_seed_or_block_masks_other_words(toy_tokenizer, rows):
    def labels(row, **options):
        return collator(toy_tokenizer, **options)([row])[0]["labels"].tolist()

    row = rows[0]
    assert labels(row, seed=1, epoch=2) == labels(row, seed=1, epoch=2)
    variants = [
        labels(row),
        labels(row, epoch=1),
        labels(row, seed=2),
        labels(row, seed=2, epoch=1),
        labels(row | {"index": 5}),
    ]
    assert all(one != other for one, other in itertools.combinations(variants, 2))


@pytest.mark.parametrize("states", ["all", "masked"])
@pytest.mark.parametrize("soft_targets", ["all", "masked"])
def test_positions_are_those_of_plain_loops(toy_tokenizer, lower_tokenizer, soft_targets, states):
    texts = Dataset.from_dict(
        {"text": ["Copilul citește cartea. Știința găsește țara în grădina."]}
    )
    tokenizers = [toy_tokenizer, lower_tokenizer]
    blocks = build_blocks(texts, tokenizers, 24)
    first, second = MaskingCollator(tokenizers, 0.5, 3, soft_targets, states)(list(blocks))
    width, other_width = first["word_ids"].shape[1], second["word_ids"].shape[1]
    wanted = {name: [] for name in ("tokens", "masked", "words", "masked_words", "compared")}
    others_soft, shared, covered = [], {}, []
    for row in range(len(blocks)):
        words, others = first["word_ids"][row].tolist(), second["word_ids"][row].tolist()
        for i, word in enumerate(words):
            place, token = row * width + i, first["attention_mask"][row, i] == 1
            masked, start = first["labels"][row, i] != IGNORE, word >= 0 and words.index(word) == i
            compared = token if states == "all" else masked
            if word >= 0 and words.count(word) == others.count(word) == 1:
                shared[place] = row * other_width + others.index(word)
                if masked:
                    covered.append(place)
            if token and not masked and soft_targets == "all":
                others_soft.append(place)
            holds = {"tokens": token, "masked": masked, "words": start and compared}
            holds |= {"masked_words": masked and start, "compared": compared}
            for name in holds:
                if holds[name]:
                    wanted[name].append(place)
    assert {name: first[name].tolist() for name in wanted} == wanted
    soft = wanted["masked"] + others_soft  # the masked ones come first
    assert first["soft"].tolist() == soft
    assert first["soft_rows"].tolist() == list(range(len(soft)))
    rows = [row for row, place in enumerate(soft) if place in shared]
    assert second["soft_rows"].tolist() == second["soft_rows_host"].tolist() == rows
    assert second["soft"].tolist() == [shared[soft[row]] for row in rows]
    assert second["covered"].tolist() == covered and len(covered) > 1


@pytest.mark.parametrize("states", ["all", "masked"])
def test_compared_pieces_are_numbered_by_word(
    toy_tokenizer, lower_tokenizer, toy_documents, states
):
    tokenizers = [toy_tokenizer, lower_tokenizer]
    blocks = build_blocks(Dataset.from_dict({"text": toy_documents[:6]}), tokenizers, 24)
    views = MaskingCollator(tokenizers, 0.4, 3, states=states)(list(blocks))
    texts = []
    for view in views:
        ids = view["word_ids"].flatten().tolist()
        width = view["word_ids"].shape[1]
        words = {}
        for place, number in zip(view["compared"].tolist(), view["numbers"].tolist(), strict=True):
            if ids[place] < 0:
                assert number == len(view["words"])
            else:
                words.setdefault(number, set()).add((place // width, ids[place]))
        assert sorted(words) == list(range(len(view["words"])))
        assert all(len(places) == 1 for places in words.values())
        texts.append([words[number] for number in sorted(words)])
    assert texts[0] == texts[1]  # the same words in the same order

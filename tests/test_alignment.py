"""Words and pieces of two tokenizers over one text, and the projection of one vocabulary's
probabilities onto the other's."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer

from rolib.config import ConfigError
from rolib.data import corpus
from rolib.data.words import split_words, word_pieces
from rolib.distillation import alignment
from rolib.distillation.alignment import Projection
from rolib.distillation.losses import IGNORE
from rolib.distillation.masking import MaskingCollator

steady = settings(deadline=None, derandomize=True, max_examples=100)
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "aăâbcdeiîlmnorsștțuAĂÎȘȚRO-'0123"
pieces = st.text(alphabet="aăîșțnrAÎȘT", min_size=1, max_size=3)


def make(vocabulary, lowercase):
    listed = SPECIALS + [piece for piece in dict.fromkeys(vocabulary) if piece not in SPECIALS]
    return BertTokenizer(
        vocab={piece: i for i, piece in enumerate(listed)},
        do_lower_case=lowercase,
        strip_accents=False,
    )


def both(vocabulary):
    return [form for piece in vocabulary for form in (piece, f"##{piece}")]


cased = st.lists(pieces, min_size=1, max_size=25, unique=True).map(
    lambda found: make(both(found), False)
)
lowered = st.lists(pieces.map(str.lower), min_size=1, max_size=25, unique=True).map(
    lambda found: make(both(found), True)
)


def distributions(rows, size, seed, power=3.0):
    return torch.softmax(
        torch.randn(rows, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        * power,
        -1,
    )


# --- words and pieces -----------------------------------------------------------------------------


def test_a_word_that_a_tokenizer_cannot_see_is_unknown(toy_tokenizer):
    assert word_pieces(["\ufffd", "casa"], toy_tokenizer)[0] == [toy_tokenizer.unk_token_id]
    assert word_pieces([], toy_tokenizer) == []


# --- views ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def views(_toy_tokenizer, lower_tokenizer, toy_documents):
    tokenizers = [_toy_tokenizer, lower_tokenizer]
    return tokenizers, corpus.build_blocks(
        Dataset.from_dict({"text": toy_documents}), tokenizers, 20
    )


def test_every_view_fits_and_holds_the_same_words(views, toy_documents):
    tokenizers, blocks = views
    words = [word for document in toy_documents for word in split_words(document)]
    for view, tokenizer in enumerate(tokenizers):
        seen = []
        for block in blocks:
            ids, numbers = block["input_ids"][view], block["word_ids"][view]
            assert len(ids) == len(numbers) <= 20
            of_word = [
                [i for i, n in zip(ids, numbers, strict=True) if n == word]
                for word in range(max(numbers) + 1)
            ]
            seen += of_word
        assert seen == word_pieces(words, tokenizer)
    assert any(len(block["input_ids"][0]) != len(block["input_ids"][1]) for block in blocks)


def test_one_view_of_two_is_read_as_alone_where_both_fit(views, toy_documents):
    """The pieces of the first view are those of a single-view block; only where blocks end may
    differ."""
    (tokenizer, _), blocks = views
    alone = corpus.build_blocks(Dataset.from_dict({"text": toy_documents}), [tokenizer], 20)
    flat = [
        [i for block in found for i in block["input_ids"][0][1:-1]] for found in (alone, blocks)
    ]
    assert flat[0] == flat[1]


@steady
@given(st.integers(0, 10**6), st.floats(0.05, 0.9), st.integers(0, 3))
def test_masks_agree_across_views(views, seed, share, epoch):
    tokenizers, blocks = views
    collator = MaskingCollator(tokenizers, share, seed)
    chosen = [blocks[i] for i in np.random.default_rng(seed).choice(len(blocks), 5)]
    batch = collator(chosen, epoch)
    masked = []
    for view, tokenizer in zip(batch, tokenizers, strict=True):
        numbers, _ = alignment.word_numbers(view["word_ids"])
        hidden = view["labels"] != IGNORE
        words = set(numbers[hidden].tolist())
        assert hidden.sum() == sum(int((numbers == word).sum()) for word in words)  # whole words
        changed = {
            number for number in numbers[view["input_ids"] == tokenizer.mask_token_id].tolist()
        }
        masked.append((words, changed))
        # What is not [MASK] is the text itself: no view reads a random piece.
        true = torch.where(hidden, view["labels"], view["input_ids"])
        assert ((view["input_ids"] == true) | (view["input_ids"] == tokenizer.mask_token_id)).all()
    assert masked[0] == masked[1] and masked[0][0] >= masked[0][1]


def test_shared_positions_by_a_loop(views):
    tokenizers, blocks = views
    batch = MaskingCollator(tokenizers, 0.3, 1)([blocks[i] for i in range(7)])
    here, shared = alignment.shared_positions(*(view["word_ids"] for view in batch))
    assert here.shape == batch[0]["input_ids"].shape and shared.shape == batch[1]["input_ids"].shape
    wanted = []
    for row in range(7):
        ours, theirs = batch[0]["word_ids"][row].tolist(), batch[1]["word_ids"][row].tolist()
        for word in range(max(ours) + 1):
            if ours.count(word) == theirs.count(word) == 1:
                wanted.append((row, ours.index(word), theirs.index(word)))
    rows, places = here.nonzero(as_tuple=True)
    other_rows, other_places = shared.nonzero(as_tuple=True)
    assert list(zip(rows.tolist(), places.tolist(), other_places.tolist(), strict=True)) == wanted
    assert rows.tolist() == other_rows.tolist() and len(wanted) > 10


def test_views_of_different_texts_are_refused():
    with pytest.raises(ValueError, match="2 and 1 words"):
        alignment.shared_positions(torch.tensor([[-1, 0, 1, -1]]), torch.tensor([[-1, 0, 0, -1]]))


def test_pooled_states_are_means_by_word(views):
    tokenizers, blocks = views
    view = MaskingCollator(tokenizers, 0.3, 1)([blocks[i] for i in range(5)])[0]
    hidden = torch.randn(*view["input_ids"].shape, 6, dtype=torch.float64)
    states = hidden.flatten(0, 1)[view["compared"]].requires_grad_()
    numbers, words = view["numbers"], len(view["words"])
    by_hand = []
    for row, ids in enumerate(view["word_ids"].tolist()):
        for word in range(max(ids) + 1):
            by_hand.append(hidden[row, [i for i, n in enumerate(ids) if n == word]].mean(0))
    pooled = alignment.pool_words(states, numbers, words)
    torch.testing.assert_close(pooled, torch.stack(by_hand))
    few = numbers[:9].clamp(max=3)
    assert torch.autograd.gradcheck(lambda x: alignment.pool_words(x, few, 3), states[:9])


# --- the projection -------------------------------------------------------------------------------


@steady
@given(cased, lowered, st.integers(0, 99), st.sampled_from(["lift", "intersection"]), st.booleans())
def test_a_projected_distribution_is_one(own, theirs, seed, strategy, swap):
    own, theirs = (theirs, own) if swap else (own, theirs)
    try:
        projection = Projection(own, theirs)
    except ConfigError:
        assume(False)
    own_probs, probs = distributions(5, len(own), seed), distributions(5, len(theirs), seed + 1)
    projected, covered = getattr(projection, strategy)(probs, own_probs)
    assert projected.shape == own_probs.shape and (projected >= 0).all()
    torch.testing.assert_close(projected.sum(-1), torch.ones(5, dtype=torch.float64))
    assert ((covered >= 0) & (covered <= 1 + 1e-12)).all()


@steady
@given(cased | lowered, st.integers(0, 99), st.sampled_from(["lift", "intersection"]))
def test_the_projection_between_equal_tokenizers_is_the_identity(tokenizer, seed, strategy):
    probs, own = distributions(4, len(tokenizer), seed), distributions(4, len(tokenizer), seed + 1)
    projected, covered = getattr(Projection(tokenizer, tokenizer), strategy)(probs, own)
    torch.testing.assert_close(projected, probs)
    torch.testing.assert_close(covered, torch.ones(4, dtype=torch.float64))
    assert alignment.same_vocabulary(tokenizer, tokenizer)


def lift_by_hand(own, theirs, probs, own_probs):
    """Design: q(c) = p_U(f(c)) p_C(c) / sum over f(c') = f(c) of p_C(c'), the rest of the mass to
    p_C. Plain loops."""
    ours, others = own.get_vocab(), theirs.get_vocab()
    f = {c: others.get(piece if piece in SPECIALS else piece.lower()) for piece, c in ours.items()}
    result, covered = np.zeros_like(own_probs), np.zeros(len(probs))
    for row in range(len(probs)):
        for c, u in f.items():
            if u is not None:
                rivals = sum(own_probs[row, other] for other, same in f.items() if same == u)
                result[row, c] = probs[row, u] * own_probs[row, c] / rivals
        covered[row] = result[row].sum()
        result[row] += (1 - covered[row]) * own_probs[row]
    return result, covered


@steady
@given(cased, lowered, st.integers(0, 99))
def test_the_lift_is_the_formula(own, theirs, seed):
    try:
        projection = Projection(own, theirs)
    except ConfigError:
        assume(False)
    own_probs, probs = distributions(3, len(own), seed), distributions(3, len(theirs), seed + 1)
    by_hand = lift_by_hand(own, theirs, probs.numpy(), own_probs.numpy())
    for got, wanted in zip(projection.lift(probs, own_probs), by_hand, strict=True):
        np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-9, atol=1e-12)


def test_a_lower_cased_piece_is_split_among_its_cased_forms():
    own, theirs = make(["ana", "Ana", "ANA", "mere"], False), make(["ana", "pere", "##ana"], True)
    projection = Projection(own, theirs)
    p_c = torch.tensor([[0, 0, 0, 0, 0, 0.1, 0.3, 0.0, 0.6]])
    p_u = torch.tensor([[0, 0, 0, 0, 0, 0.8, 0.2, 0.0]])
    lifted, covered = projection.lift(p_u, p_c)
    assert covered.item() == pytest.approx(0.8)
    expected = torch.tensor([0.8 * 0.25 + 0.2 * 0.1, 0.8 * 0.75 + 0.2 * 0.3, 0.0, 0.2 * 0.6])
    torch.testing.assert_close(lifted[0, 5:], expected)
    kept, mass = projection.intersection(p_u, p_c)
    assert mass.item() == pytest.approx(0.8) and kept[0].tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0]


def test_what_the_first_teacher_rules_out_goes_to_it_in_proportion():
    projection = Projection(make(["ana", "Ana", "mere"], False), make(["ana", "mere"], True))
    p_c = torch.tensor([[0, 0, 0, 0, 0, 0.0, 1e-42, 1.0]])
    lifted, covered = projection.lift(torch.tensor([[0, 0, 0, 0, 0, 0.6, 0.4]]), p_c)
    assert covered.item() == pytest.approx(0.4, abs=1e-3)  # 1e-42 is next to nothing
    torch.testing.assert_close(lifted[0, 5:], torch.tensor([0.0, 0.0, 1.0]), atol=1e-3, rtol=0)


def test_a_cased_teacher_of_a_lower_cased_student():
    """The other way round several of the teacher's pieces are one of the student's: their mass adds
    up."""
    projection = Projection(
        make(["ana", "##ana", "pere"], True), make(["ana", "Ana", "ANA", "##Ana", "mere"], False)
    )
    p_c, p_u = (
        torch.tensor([[0, 0, 0, 0, 0, 0.5, 0.0, 0.5]]),
        torch.tensor([[0, 0, 0, 0, 0, 0.1, 0.2, 0.3, 0.15, 0.25]]),
    )
    lifted, covered = projection.lift(p_u, p_c)
    assert covered.item() == pytest.approx(0.75)
    torch.testing.assert_close(lifted[0, 5:], torch.tensor([0.6 + 0.125, 0.15, 0.125]))


def test_nothing_in_the_intersection_leaves_the_first_teacher():
    projection = Projection(make(["Ana", "mere"], False), make(["mere", "ana"], True))
    p_c, p_u = torch.tensor([[0, 0, 0, 0, 0, 0.7, 0.3]]), torch.tensor([[0, 0, 0, 0, 0, 0.0, 1.0]])
    kept, mass = projection.intersection(p_u, p_c)
    assert mass.item() == 0 and torch.equal(kept, p_c)


def test_a_special_piece_of_one_tokenizer_has_no_counterpart():
    plain, more = make(both(["ana"]), False), make([*both(["ana"]), "[BOS]"], False)
    more.add_special_tokens({"bos_token": "[BOS]"})
    own = np.arange(len(more)) != more.bos_token_id
    for one, other in ((plain, more), (more, plain)):
        join = Projection(one, other).join.tolist()
        assert join.count(len(other)) == (one is more)
    assert Projection(more, plain).join[own].tolist() == list(range(len(plain)))


# --- bad input ------------------------------------------------------------------------------------


def test_vocabularies_without_a_common_piece_are_refused():
    with pytest.raises(
        ConfigError,
        match="bert-a and bert-b have no piece in common: take teachers of one language",
    ):
        Projection(make(["ana"], False), make(["мир"], True), ("bert-a", "bert-b"))


def test_normalisers_that_cannot_be_reconciled_are_refused():
    keeps_case = BertTokenizer(
        vocab={p: i for i, p in enumerate([*SPECIALS, "a"])},
        do_lower_case=False,
        strip_accents=True,
    )
    with pytest.raises(
        ConfigError,
        match="bert-a reads 'Știință' as 'Stiinta' and bert-b as 'știință'.*take teachers",
    ):
        Projection(keeps_case, make(["a"], True), ("bert-a", "bert-b"))


def test_a_tokenizer_that_is_not_wordpiece_is_refused(toy_tokenizer):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    unigram = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.Unigram([("a", 0.0), ("[UNK]", 0.0)], unk_id=1))
    )
    with pytest.raises(
        ConfigError, match="bert-b: its tokenizer is not a fast WordPiece one; use a BERT model"
    ):
        Projection(toy_tokenizer, unigram, ("bert-a", "bert-b"))


def test_same_vocabulary(toy_tokenizer, lower_tokenizer):
    assert alignment.same_vocabulary(toy_tokenizer, toy_tokenizer)
    assert not alignment.same_vocabulary(toy_tokenizer, lower_tokenizer)
    assert not alignment.same_vocabulary(make(["a"], False), make(["a"], True))


@pytest.mark.parametrize("strategy", ["lift", "intersection"])
@pytest.mark.parametrize("padded", ["teacher", "student"])
def test_probabilities_of_padded_vocabularies_are_refused(
    strategy, padded, toy_tokenizer, lower_tokenizer
):
    """Before, `lift` read the padding as pieces without counterpart and gave a wrong result."""
    projection = alignment.Projection(toy_tokenizer, lower_tokenizer)
    own, theirs = torch.rand(3, 200).softmax(-1), torch.rand(3, 150).softmax(-1)
    getattr(projection, strategy)(theirs, own)
    if padded == "teacher":
        theirs = torch.rand(3, 158).softmax(-1)
    else:
        own = torch.rand(3, 208).softmax(-1)
    with pytest.raises(ValueError, match="but 150 and 200 pieces: .*fit_vocabulary"):
        getattr(projection, strategy)(theirs, own)

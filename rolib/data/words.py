"""A text's words, and a word's pieces in the vocabulary of a tokenizer."""

from collections.abc import Sequence

from tokenizers.pre_tokenizers import BertPreTokenizer


def split_words(text: str) -> list[str]:
    """Words and punctuation marks of a normalised text, as BERT's pre-tokenizer cuts them."""
    return [word for word, _ in BertPreTokenizer().pre_tokenize_str(text)]


def word_pieces(words: Sequence[str], tokenizer) -> list[list[int]]:
    """The vocabulary indices of each word's pieces; a word that the tokenizer cannot see is [UNK], so none has no piece."""
    pieces = (
        tokenizer(list(words), add_special_tokens=False, verbose=False)["input_ids"]
        if words
        else []
    )
    return [word or [tokenizer.unk_token_id] for word in pieces]


def piece_spans(text: str, tokenizer) -> list[tuple[str, list[tuple[int, int, int]]]]:
    """Every word of a normalised text with its pieces as (start, end, vocabulary index), character offsets in the text.

    The spans tile the word: each piece reaches to where the next one begins, so no character belongs to none. A piece
    without a character of its own (one character that became two pieces) has start = end.
    """
    result = []
    for word, (first, last) in BertPreTokenizer().pre_tokenize_str(text):
        encoded = tokenizer(word, add_special_tokens=False, return_offsets_mapping=True)
        ids = encoded["input_ids"] or [tokenizer.unk_token_id]
        starts = [first, *(first + start for start, _ in encoded["offset_mapping"][1:])]
        result.append((word, list(zip(starts, [*starts[1:], last], ids, strict=True))))
    return result

"""The words of a text, and the pieces of a word in the vocabulary of a tokenizer."""

from collections.abc import Sequence

from tokenizers import Tokenizer as Backend
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import PreTrainedTokenizerFast as Tokenizer


def split_words(text: str) -> list[str]:
    """The words and punctuation marks of a normalised text, from BERT's pre-tokenizer."""
    return [word for word, _ in BertPreTokenizer().pre_tokenize_str(text)]


def backend(tokenizer: Tokenizer) -> Backend:
    """The tokenizer of the tokenizers library, without truncation and padding."""
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer.backend_tokenizer


def word_pieces(words: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """For each word the vocabulary indices of its pieces.

    Every word has at least one piece: a word that the tokenizer drops as a whole becomes [UNK].
    Equal words share a list.
    """
    different = list(dict.fromkeys(words))
    encoded = backend(tokenizer).encode_batch_fast(different, add_special_tokens=False)
    unknown = [tokenizer.unk_token_id]
    pieces = {word: found.ids or unknown for word, found in zip(different, encoded, strict=True)}
    return [pieces[word] for word in words]


def piece_spans(text: str, tokenizer: Tokenizer) -> list[tuple[str, list[tuple[int, int, int]]]]:
    """The words of a normalised text, each with its pieces as (start, end, vocabulary index).

    start, end: character offsets in the text. The spans cover the word without gaps: each piece
    ends where the next one starts. If one character becomes two pieces, one of them has
    start = end.
    """
    result = []
    for word, (first, last) in BertPreTokenizer().pre_tokenize_str(text):
        encoded = tokenizer(word, add_special_tokens=False, return_offsets_mapping=True)
        ids = encoded["input_ids"] or [tokenizer.unk_token_id]
        starts = [first, *(first + start for start, _ in encoded["offset_mapping"][1:])]
        result.append((word, list(zip(starts, [*starts[1:], last], ids, strict=True))))
    return result

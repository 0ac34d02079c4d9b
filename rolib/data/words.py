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

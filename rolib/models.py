"""Models: tokenizers, teachers, students from alternate teacher layers, plain Hugging Face folders."""

import copy
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.trainers import WordPieceTrainer
from torch import Tensor, nn
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    DistilBertConfig,
    DistilBertForMaskedLM,
    PreTrainedModel,
)

from rolib.alignment import check_wordpiece, split_words
from rolib.config import ConfigError, TeacherConfig

MAX_POSITIONS = 128  # the longest text, in pieces, of a teacher that is pre-trained on the spot
PROBE = "Știință și viață"


def train_tokenizer(texts: Iterable[str], vocab_size: int, lowercase: bool, max_length: int) -> BertTokenizer:
    """Learn a WordPiece vocabulary; accents are kept, also when letters are lower-cased.

    The same texts give the same vocabulary: `tokenizers` numbers the ##letters in the order of a hash map, and breaks
    ties by those numbers (huggingface/tokenizers issue 1794), so here they are numbered beforehand.
    """
    options = {"do_lower_case": lowercase, "strip_accents": False, "model_max_length": max_length}
    normalizer = BertTokenizer(**options).backend_tokenizer.normalizer
    words = Counter(word for text in texts for word in split_words(normalizer.normalize_str(text)))
    letters = Counter()
    for word, count in words.items():
        letters.update(dict.fromkeys(word, count))
    # Letters so rare that they would take the place of real pieces become [UNK].
    alphabet = sorted(letters, key=lambda letter: (-letters[letter], letter))[: max(100, vocab_size // 20)]
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=specials + [f"##{letter}" for letter in sorted(alphabet)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    learner = Tokenizer(WordPiece(unk_token="[UNK]"))
    learner.pre_tokenizer = WhitespaceSplit()
    learner.train_from_iterator((" ".join([word] * count) for word, count in sorted(words.items())), trainer)
    return BertTokenizer(vocab=learner.get_vocab(), **options)


def check_tokenizer(tokenizer, model: PreTrainedModel, lowercase: bool, name: str) -> None:
    """Raise ConfigError for a tokenizer that does not fit its model or that damages Romanian letters."""
    check_wordpiece(tokenizer, name)
    if len(tokenizer) > model.config.vocab_size:
        raise ConfigError(
            f"{name}: the tokenizer has {len(tokenizer)} pieces and the model {model.config.vocab_size}: they do not "
            "belong together, take both from one folder"
        )
    read = tokenizer.backend_tokenizer.normalizer.normalize_str(PROBE)
    if read != (PROBE.lower() if lowercase else PROBE):
        raise ConfigError(
            f"{name}: the tokenizer reads {PROBE!r} as {read!r}: set lowercase to what the teacher was trained with, and "
            "strip_accents to false in its tokenizer_config.json"
        )
    # Without vocabulary files the library makes up a tokenizer of special tokens alone.
    if tokenizer.unk_token_id in tokenizer(PROBE)["input_ids"]:
        raise ConfigError(f"{name}: its tokenizer cannot read {PROBE!r}: check its vocabulary files and the setting of lowercase")
    pieces = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    capitals = sum(piece != piece.lower() for piece in pieces) / len(pieces)
    if (capitals > 0.01) == lowercase:
        kind = "cased" if lowercase else "lower-cased"
        raise ConfigError(f"{name}: its vocabulary is {kind}: set lowercase to {str(not lowercase).lower()}")


@torch.no_grad()
def init_local_attention(model: PreTrainedModel, position_scale: float = 0.05, gain: float = 2.0) -> PreTrainedModel:
    """Start a BERT or DistilBERT of random weights with attention that looks at neighbouring words.

    Position embeddings become sinusoids e(p) (Vaswani et al. 2017, section 3.5) of amplitude `position_scale`. Head h of
    every layer gets the key map K = gain * P, with P the projection onto its share of the fastest sinusoids, and the query
    map Q = gain * P R(d), where the rotation R(d) e(p) = e(p + d) and d = -1, 1, -2, 2 in turn: so Q e(p) meets K e(p + d)
    best. The random weights stay as noise on top. A structured start for attention follows Trockman & Kolter 2023
    (arXiv 2305.09828); the shifts are ours. A small BERT stands at 5.6 nats after a million tokens this way, and at 6.4
    without (LOG.md).
    """
    hidden, heads = model.config.hidden_size, model.config.num_attention_heads
    size = hidden // heads
    table = model.base_model.embeddings.position_embeddings.weight
    rates = torch.exp(torch.arange(0, hidden, 2) * (-math.log(10_000) / hidden))
    angles = torch.arange(len(table))[:, None] * rates
    table.copy_(position_scale * torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :hidden])
    for head in range(heads):
        turns = (-1, 1, -2, 2)[head % 4] * rates
        blocks = [torch.tensor([[c, s], [-s, c]]) for c, s in zip(turns.cos().tolist(), turns.sin().tolist(), strict=True)]
        rotation = torch.block_diag(*blocks)[:hidden, :hidden]
        rows = slice(head * size, (head + 1) * size)
        for layer in attention_maps(model):
            layer["key"].weight[rows] += gain * torch.eye(size, hidden)
            layer["query"].weight[rows] += gain * torch.eye(size, hidden) @ rotation
    return model


def attention_maps(model: PreTrainedModel) -> list[dict[str, nn.Linear]]:
    """The query and key maps of each layer of a BERT or DistilBERT."""
    if model.config.model_type == "bert":
        layers = [layer.attention.self for layer in model.base_model.encoder.layer]
        return [{"query": layer.query, "key": layer.key} for layer in layers]
    layers = [layer.attention for layer in model.base_model.transformer.layer]
    return [{"query": layer.q_lin, "key": layer.k_lin} for layer in layers]


def build_teacher(config: TeacherConfig, tokenizer) -> BertForMaskedLM:
    """A BERT in the shape of the configuration, its weights random but for `init_local_attention`."""
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=4 * config.hidden_size,
            max_position_embeddings=tokenizer.model_max_length,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    return init_local_attention(model)


def load_teacher(config: TeacherConfig) -> tuple[BertForMaskedLM, BertTokenizer]:
    """A BERT teacher and its tokenizer from a hub id or a folder; ConfigError if they are not what the parameters say."""
    source = config.source
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, do_lower_case=config.lowercase, strip_accents=False)
        model = AutoModelForMaskedLM.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"source {source!r}: not a model folder and not to be had from the hub ({reason})") from None
    if model.config.model_type != "bert":
        raise ConfigError(f"source {source!r}: is a {model.config.model_type} model; the teacher must be a BERT")
    shape = model.config
    # DistilBERT's layer norm has this constant built in: another one would make the student a wrong copy without a word.
    if shape.layer_norm_eps != 1e-12:
        raise ConfigError(f"source {source!r}: its layer_norm_eps is {shape.layer_norm_eps}, a DistilBERT student needs 1e-12")
    found = {"num_layers": shape.num_hidden_layers, "hidden_size": shape.hidden_size}
    found |= {"num_heads": shape.num_attention_heads, "vocab_size": shape.vocab_size}
    for key, value in found.items():
        if getattr(config, key) != value:
            raise ConfigError(f"{key}: {getattr(config, key)} in the parameters, but {source} has {value}: correct it")
    check_tokenizer(tokenizer, model, config.lowercase, source)
    return model.eval(), tokenizer


def alternate_layers(teacher_layers: int, num_layers: int) -> list[int]:
    """The teacher layers a student starts from, evenly spaced from the first to the last: 0 2 4 7 9 11 for 6 of 12."""
    if not 1 <= num_layers <= teacher_layers:
        raise ValueError(f"num_layers {num_layers} must lie between 1 and the teacher's {teacher_layers}")
    if num_layers == 1:
        return [0]
    return [round(i * (teacher_layers - 1) / (num_layers - 1)) for i in range(num_layers)]


def student_shape(teacher: BertConfig, num_layers: int) -> DistilBertConfig:
    """The DistilBERT configuration of a student: the teacher's widths, `num_layers` layers."""
    return DistilBertConfig(
        vocab_size=teacher.vocab_size,
        max_position_embeddings=teacher.max_position_embeddings,
        n_layers=num_layers,
        n_heads=teacher.num_attention_heads,
        dim=teacher.hidden_size,
        hidden_dim=teacher.intermediate_size,
        dropout=teacher.hidden_dropout_prob,
        attention_dropout=teacher.attention_probs_dropout_prob,
        activation=teacher.hidden_act,
        pad_token_id=teacher.pad_token_id,
    )


def init_student(teacher: BertForMaskedLM, num_layers: int) -> DistilBertForMaskedLM:
    """A DistilBERT student that starts from alternate layers, the embeddings and the MLM head of its teacher.

    The embedding of segment 0 is added to the positions, since DistilBERT has no segments: with as many layers as the
    teacher the student computes the same function. Sanh et al. 2019, section 3.
    """
    student = DistilBertForMaskedLM(student_shape(teacher.config, num_layers))
    source, target = teacher.state_dict(), {}

    def copy(to: str, start: str):
        target.update({f"{to}.{part}": source[f"{start}.{part}"] for part in ("weight", "bias")})

    embeddings = teacher.bert.embeddings
    positions = embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
    target["distilbert.embeddings.word_embeddings.weight"] = embeddings.word_embeddings.weight
    target["distilbert.embeddings.position_embeddings.weight"] = positions
    copy("distilbert.embeddings.LayerNorm", "bert.embeddings.LayerNorm")
    names = {
        "attention.q_lin": "attention.self.query",
        "attention.k_lin": "attention.self.key",
        "attention.v_lin": "attention.self.value",
        "attention.out_lin": "attention.output.dense",
        "sa_layer_norm": "attention.output.LayerNorm",
        "ffn.lin1": "intermediate.dense",
        "ffn.lin2": "output.dense",
        "output_layer_norm": "output.LayerNorm",
    }
    for i, layer in enumerate(alternate_layers(teacher.config.num_hidden_layers, num_layers)):
        for to, start in names.items():
            copy(f"distilbert.transformer.layer.{i}.{to}", f"bert.encoder.layer.{layer}.{start}")
    copy("vocab_transform", "cls.predictions.transform.dense")
    copy("vocab_layer_norm", "cls.predictions.transform.LayerNorm")
    copy("vocab_projector", "cls.predictions.decoder")
    student.load_state_dict(target, strict=True)
    return student


class MaskedLM(nn.Module):
    """A BERT or DistilBERT that computes vocabulary logits only where they are asked for.

    The vocabulary is a third to a half of a step's work, and most of its rows are not needed.
    """

    def __init__(self, model: PreTrainedModel, mapped_to: Sequence[int] = ()):
        """mapped_to: the widths of teachers whose states are compared through a trainable map; identity at the start."""
        super().__init__()
        self.model = model
        self.maps = nn.ModuleList(nn.Linear(model.config.hidden_size, width, bias=False) for width in mapped_to)
        for linear in self.maps:
            nn.init.eye_(linear.weight)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """input_ids, attention_mask, rows (bool): (B, L). Returns logits (rows.sum(), V), states (B, L, H) and their maps."""
        hidden = self.model.base_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mapped = [linear(hidden) for linear in self.maps]
        if self.model.config.model_type == "bert":
            return self.model.cls(hidden[rows]), hidden, mapped
        states = self.model.activation(self.model.vocab_transform(hidden[rows]))
        return self.model.vocab_projector(self.model.vocab_layer_norm(states)), hidden, mapped


def count_parameters(model: nn.Module) -> int:
    """Distinct parameters; tied weights count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def save_model(model: PreTrainedModel, tokenizer, folder: Path, card: str) -> None:
    """Save weights, tokenizer and model card as a plain Hugging Face folder."""
    model.save_pretrained(folder)
    if model.config.model_type == "distilbert":
        # DistilBERT takes no segments. transformers writes down what a tokenizer was made with, so that is what to change,
        # in a copy: the caller's goes on reading for BERT.
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")

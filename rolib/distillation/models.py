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
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel
from transformers.models.bert import BertConfig, BertForMaskedLM, BertTokenizer
from transformers.models.distilbert import DistilBertConfig, DistilBertForMaskedLM

from rolib.config import ConfigError, TeacherConfig
from rolib.data.words import split_words
from rolib.distillation.alignment import check_wordpiece, normaliser

MAX_POSITIONS = 128  # the longest text, in pieces, of a teacher that is pre-trained on the spot
PROBE = "Știință și viață"
# What a DistilBERT layer calls the parts of a BERT layer.
LAYER_PARTS = {
    "attention.q_lin": "attention.self.query",
    "attention.k_lin": "attention.self.key",
    "attention.v_lin": "attention.self.value",
    "attention.out_lin": "attention.output.dense",
    "sa_layer_norm": "attention.output.LayerNorm",
    "ffn.lin1": "intermediate.dense",
    "ffn.lin2": "output.dense",
    "output_layer_norm": "output.LayerNorm",
}


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, lowercase: bool, max_length: int
) -> BertTokenizer:
    """Learn a WordPiece vocabulary; accents are kept, also when letters are lower-cased.

    The same texts give the same vocabulary: `tokenizers` numbers the ##letters in the order of a hash map, and breaks
    ties by those numbers (huggingface/tokenizers issue 1794), so here they are numbered beforehand.
    """
    options = {"do_lower_case": lowercase, "strip_accents": False, "model_max_length": max_length}
    read = normaliser(BertTokenizer(**options))
    words = Counter(word for text in texts for word in split_words(read(text)))
    counts = Counter()
    for word, count in words.items():
        counts.update(dict.fromkeys(word, count))
    # Letters so rare that they would take the place of real pieces become [UNK].
    letters = sorted(counts, key=lambda letter: (-counts[letter], letter))[
        : max(100, vocab_size // 20)
    ]
    first = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + [
        f"##{letter}" for letter in sorted(letters)
    ]
    alphabet = {"initial_alphabet": letters, "limit_alphabet": len(letters)}
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=first,
        show_progress=False,
        **alphabet,
    )
    learner = Tokenizer(WordPiece(unk_token="[UNK]"))
    learner.pre_tokenizer = WhitespaceSplit()
    learner.train_from_iterator(
        (" ".join([word] * count) for word, count in sorted(words.items())), trainer
    )
    return BertTokenizer(vocab=learner.get_vocab(), **options)


def demand(holds: bool, fault: str) -> None:
    """Raise ConfigError with the fault unless what is demanded holds."""
    if not holds:
        raise ConfigError(fault)


def check_tokenizer(tokenizer, model: PreTrainedModel, lowercase: bool, name: str) -> None:
    """Raise ConfigError for a tokenizer that does not fit its model or that damages Romanian letters."""
    check_wordpiece(tokenizer, name)
    pieces, size = len(tokenizer), model.config.vocab_size
    demand(
        pieces <= size,
        f"{name}: the tokenizer has {pieces} pieces and the model {size}: take both from one folder",
    )
    read = normaliser(tokenizer)(PROBE)
    mend = "set lowercase to what the teacher was trained with, and strip_accents to false in its tokenizer_config.json"
    demand(
        read == (PROBE.lower() if lowercase else PROBE),
        f"{name}: the tokenizer reads {PROBE!r} as {read!r}: {mend}",
    )
    # Without vocabulary files the library makes up a tokenizer of special tokens alone.
    known = tokenizer.unk_token_id not in tokenizer(PROBE)["input_ids"]
    demand(
        known,
        f"{name}: its tokenizer cannot read {PROBE!r}: check its vocabulary files and the setting of lowercase",
    )
    plain = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    cased = sum(piece != piece.lower() for piece in plain) > 0.01 * len(plain)
    kind = "cased" if cased else "lower-cased"
    demand(
        cased != lowercase,
        f"{name}: its vocabulary is {kind}: set lowercase to {str(not cased).lower()}",
    )


@torch.no_grad()
def init_local_attention(
    model: PreTrainedModel, position_scale: float = 0.05, gain: float = 2.0
) -> PreTrainedModel:
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
    table.copy_(
        position_scale * torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :hidden]
    )
    for head in range(heads):
        turns = (-1, 1, -2, 2)[head % 4] * rates
        blocks = [
            torch.tensor([[c, s], [-s, c]])
            for c, s in zip(turns.cos().tolist(), turns.sin().tolist(), strict=True)
        ]
        rotation = torch.block_diag(*blocks)[:hidden, :hidden]
        rows = slice(head * size, (head + 1) * size)
        for query, key in attention_maps(model):
            key.weight[rows] += gain * torch.eye(size, hidden)
            query.weight[rows] += gain * torch.eye(size, hidden) @ rotation
    return model


def attention_maps(model: PreTrainedModel) -> list[tuple[nn.Linear, nn.Linear]]:
    """The query and the key map of each layer of a BERT or DistilBERT."""
    if model.config.model_type == "bert":
        return [
            (layer.attention.self.query, layer.attention.self.key)
            for layer in model.base_model.encoder.layer
        ]
    return [
        (layer.attention.q_lin, layer.attention.k_lin)
        for layer in model.base_model.transformer.layer
    ]


def build_teacher(config: TeacherConfig, tokenizer) -> BertForMaskedLM:
    """A BERT in the shape of the configuration, its weights random but for `init_local_attention`."""
    shape = {"num_hidden_layers": config.num_layers, "num_attention_heads": config.num_heads}
    shape |= {"hidden_size": config.hidden_size, "intermediate_size": 4 * config.hidden_size}
    shape |= {"hidden_dropout_prob": config.dropout, "attention_probs_dropout_prob": config.dropout}
    shape |= {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    return init_local_attention(
        BertForMaskedLM(BertConfig(**shape, max_position_embeddings=tokenizer.model_max_length))
    )


def load_teacher(config: TeacherConfig) -> tuple[BertForMaskedLM, BertTokenizer]:
    """A BERT teacher and its tokenizer from a hub id or a folder; ConfigError if they are not what the parameters say."""
    source, name = config.source, f"source {config.source!r}"
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, do_lower_case=config.lowercase, strip_accents=False
        )
        model = AutoModelForMaskedLM.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{name}: not a model folder and not to be had from the hub ({reason})"
        ) from None
    found = model.config
    demand(
        found.model_type == "bert",
        f"{name}: is a {found.model_type} model; the teacher must be a BERT",
    )
    # DistilBERT's layer norm has this constant built in: another one would make the student a wrong copy without a word.
    epsilon = found.layer_norm_eps
    demand(
        epsilon == 1e-12,
        f"{name}: its layer_norm_eps is {epsilon}, a DistilBERT student needs 1e-12",
    )
    shape = {"num_layers": found.num_hidden_layers, "num_heads": found.num_attention_heads}
    shape |= {"hidden_size": found.hidden_size, "vocab_size": found.vocab_size}
    for key, value in shape.items():
        expected = getattr(config, key)
        demand(
            expected == value,
            f"{key}: {expected} in the parameters, but {source} has {value}: correct it",
        )
    check_tokenizer(tokenizer, model, config.lowercase, source)
    return model.eval(), tokenizer


def alternate_layers(teacher_layers: int, num_layers: int) -> list[int]:
    """The teacher layers a student starts from, evenly spaced from the first to the last: 0 2 4 7 9 11 for 6 of 12."""
    if not 1 <= num_layers <= teacher_layers:
        raise ValueError(
            f"num_layers {num_layers} must lie between 1 and the teacher's {teacher_layers}"
        )
    return [round(i * (teacher_layers - 1) / max(1, num_layers - 1)) for i in range(num_layers)]


def student_shape(teacher: BertConfig, num_layers: int) -> DistilBertConfig:
    """The DistilBERT configuration of a student: the teacher's widths, `num_layers` layers."""
    shape = {
        name: getattr(teacher, name)
        for name in ("vocab_size", "max_position_embeddings", "pad_token_id")
    }
    shape |= {
        "n_layers": num_layers,
        "n_heads": teacher.num_attention_heads,
        "activation": teacher.hidden_act,
    }
    shape |= {"dim": teacher.hidden_size, "hidden_dim": teacher.intermediate_size}
    shape |= {
        "dropout": teacher.hidden_dropout_prob,
        "attention_dropout": teacher.attention_probs_dropout_prob,
    }
    return DistilBertConfig(**shape)


def init_student(teacher: BertForMaskedLM, num_layers: int) -> DistilBertForMaskedLM:
    """A DistilBERT student that starts from alternate layers, the embeddings and the MLM head of its teacher.

    The embedding of segment 0 is added to the positions, since DistilBERT has no segments: with as many layers as the
    teacher the student computes the same function. Sanh et al. 2019, section 3.
    """
    sources = {
        f"distilbert.embeddings.{part}": f"bert.embeddings.{part}"
        for part in ("word_embeddings", "LayerNorm")
    }
    for i, layer in enumerate(alternate_layers(teacher.config.num_hidden_layers, num_layers)):
        for ours, theirs in LAYER_PARTS.items():
            sources[f"distilbert.transformer.layer.{i}.{ours}"] = (
                f"bert.encoder.layer.{layer}.{theirs}"
            )
    head = {
        "transform": "transform.dense",
        "layer_norm": "transform.LayerNorm",
        "projector": "decoder",
    }
    sources |= {f"vocab_{ours}": f"cls.predictions.{theirs}" for ours, theirs in head.items()}
    weights = {}
    for ours, theirs in sources.items():
        weights |= {
            f"{ours}.{name}": value
            for name, value in teacher.get_submodule(theirs).state_dict().items()
        }
    embeddings = teacher.bert.embeddings
    positions = embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
    student = DistilBertForMaskedLM(student_shape(teacher.config, num_layers))
    student.load_state_dict(
        weights | {"distilbert.embeddings.position_embeddings.weight": positions}, strict=True
    )
    return student


class MaskedLM(nn.Module):
    """A BERT or DistilBERT that computes vocabulary logits only where they are asked for.

    The vocabulary is a third to a half of a step's work, and most of its rows are not needed.
    """

    def __init__(self, model: PreTrainedModel, mapped_to: Sequence[int] = ()):
        """mapped_to: the widths of teachers whose states are compared through a trainable map; identity at the start."""
        super().__init__()
        self.model = model
        self.maps = nn.ModuleList(
            nn.Linear(model.config.hidden_size, width, bias=False) for width in mapped_to
        )
        for linear in self.maps:
            nn.init.eye_(linear.weight)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """input_ids, attention_mask, rows (bool): (B, L). Returns logits (rows.sum(), V), states (B, L, H) and their maps."""
        hidden = self.model.base_model(
            input_ids=input_ids, attention_mask=attention_mask
        ).last_hidden_state
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
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names = [
            "input_ids",
            "attention_mask",
        ]
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")

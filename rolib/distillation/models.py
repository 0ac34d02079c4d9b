"""Models: tokenizers, teachers, students from alternate teacher layers, Hugging Face folders."""

import copy
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import constants, errors, snapshot_download
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.trainers import WordPieceTrainer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel
from transformers.models.bert import BertConfig, BertForMaskedLM, BertModel, BertTokenizer
from transformers.models.distilbert import DistilBertConfig, DistilBertForMaskedLM

from rolib.config import MAX_POSITIONS, ConfigError, TeacherConfig
from rolib.data.pretrained import pretrained_folder
from rolib.data.words import split_words
from rolib.distillation.alignment import check_wordpiece, normaliser

PROBE = "Știință și viață"


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, lowercase: bool, max_length: int = MAX_POSITIONS
) -> BertTokenizer:
    """A WordPiece tokenizer learned from texts. Accents are kept, also of lower-cased letters.

    The same texts give the same vocabulary: `tokenizers` numbers the ##letters in the order of a
    hash map and breaks ties by these numbers (huggingface/tokenizers issue 1794), so they get
    their numbers here.
    """
    options = {"do_lower_case": lowercase, "strip_accents": False, "model_max_length": max_length}
    read = normaliser(BertTokenizer(**options))
    words = Counter(word for text in texts for word in split_words(read(text)))
    counts: Counter[str] = Counter()
    for word, count in words.items():
        counts.update(dict.fromkeys(word, count))
    # Rare letters would take the place of real pieces; they become [UNK].
    letters = sorted(counts, key=lambda letter: (-counts[letter], letter))
    letters = letters[: max(100, vocab_size // 20)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=special + [f"##{letter}" for letter in sorted(letters)],
        show_progress=False,
        initial_alphabet=letters,
        limit_alphabet=len(letters),
    )
    learner = Tokenizer(WordPiece(unk_token="[UNK]"))
    learner.pre_tokenizer = WhitespaceSplit()
    lines = (" ".join([word] * count) for word, count in sorted(words.items()))
    learner.train_from_iterator(lines, trainer)
    return BertTokenizer(vocab=learner.get_vocab(), **options)


def require(holds: bool, fault: str) -> None:
    """Raise ConfigError with the message unless a condition holds."""
    if not holds:
        raise ConfigError(fault)


def check_tokenizer(
    tokenizer: BertTokenizer, model: PreTrainedModel, lowercase: bool, name: str
) -> None:
    """Raise ConfigError for a tokenizer that does not fit its model or damages Romanian letters."""
    check_wordpiece(tokenizer, name)
    pieces, size = len(tokenizer), model.config.vocab_size
    sizes = f"the tokenizer has {pieces} pieces and the model {size}"
    require(pieces <= size, f"{name}: {sizes}: take both from one folder")
    read, expected = normaliser(tokenizer)(PROBE), PROBE.lower() if lowercase else PROBE
    hint = "correct lowercase, or set strip_accents to false in its tokenizer_config.json"
    require(read == expected, f"{name}: the tokenizer reads {PROBE!r} as {read!r}: {hint}")
    # Without vocabulary files the library builds a tokenizer of special tokens only. One of another
    # language need not know Romanian letters.
    plain = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    foreign = bool(plain) and not any("ț" in piece for piece in plain)
    known = tokenizer.unk_token_id not in tokenizer(PROBE)["input_ids"]
    fault = f"its tokenizer cannot read {PROBE!r}: check its vocabulary files and lowercase"
    require(known or foreign, f"{name}: {fault}")
    cased = sum(piece != piece.lower() for piece in plain) > 0.01 * len(plain)
    kind = "cased: set lowercase to false" if cased else "lower-cased: set lowercase to true"
    require(cased != lowercase, f"{name}: its vocabulary is {kind}")


def fit_vocabulary(model: PreTrainedModel, tokenizer: BertTokenizer) -> PreTrainedModel:
    """The model without the vocabulary rows that pad it above its tokenizer's pieces.

    Some models have such rows, for speed. Nothing reads them, and they would take part of the
    probability. Students and projections rely on one row for each piece.
    """
    if model.config.vocab_size > len(tokenizer):
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return model


@torch.no_grad()
def init_local_attention(
    model: PreTrainedModel, position_scale: float = 0.05, gain: float = 2.0
) -> PreTrainedModel:
    """The BERT or DistilBERT of random weights, with attention that looks at neighbouring words.

    Position embeddings become sinusoids e(p) (Vaswani et al. 2017, section 3.5) of amplitude
    `position_scale`. Head h of every layer gets the key map K = gain * P, with P the projection
    onto its share of the fastest sinusoids, and the query map Q = gain * P R(d). The rotation
    R(d) e(p) = e(p + d) has d = -1, 1, -2, 2 in turn, so Q e(p) fits K e(p + d) best. The random
    weights remain as noise on top. A structured start for attention follows Trockman & Kolter 2023
    (arXiv 2305.09828); the shifts are ours. LOG.md has the gain in nats.
    """
    hidden, heads = model.config.hidden_size, model.config.num_attention_heads
    size = hidden // heads
    table = model.base_model.embeddings.position_embeddings.weight
    rates = torch.exp(torch.arange(0, hidden, 2) * (-math.log(10_000) / hidden))
    angles = torch.arange(len(table))[:, None] * rates
    waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
    table.copy_(position_scale * waves[:, :hidden])
    for head in range(heads):
        turns = (-1, 1, -2, 2)[head % 4] * rates
        pairs = zip(turns.cos().tolist(), turns.sin().tolist(), strict=True)
        blocks = [torch.tensor([[cos, sin], [-sin, cos]]) for cos, sin in pairs]
        rotation = torch.block_diag(*blocks)[:hidden, :hidden]
        rows = slice(head * size, (head + 1) * size)
        for name, module in model.named_modules():
            if name.endswith((".key", ".k_lin")):
                module.weight[rows] += gain * torch.eye(size, hidden)
            elif name.endswith((".query", ".q_lin")):
                module.weight[rows] += gain * torch.eye(size, hidden) @ rotation
    return model


def build_teacher(config: TeacherConfig, tokenizer: BertTokenizer) -> BertForMaskedLM:
    """A BERT in the shape of the configuration, its weights random but for attention."""
    shape = BertConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=tokenizer.model_max_length,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        hidden_size=config.hidden_size,
        intermediate_size=4 * config.hidden_size,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
    )
    return init_local_attention(BertForMaskedLM(shape))


def fetch_model(config: TeacherConfig) -> Path:
    """The folder of a model: its source, or what a hub id has at a revision, downloaded once.

    The weights are safetensors, or else pytorch_model.bin. ConfigError for what the hub does not
    give, in one line with the remedy.
    """
    files, source = ["*.json", "vocab.txt", "*.safetensors"], config.source
    options: dict[str, Any] = {"revision": config.revision, "ignore_patterns": "*/*"}
    if Path(source).is_dir():
        return Path(source)
    try:
        folder = Path(snapshot_download(source, allow_patterns=files, **options))
        if not any(folder.glob("*.safetensors")):
            snapshot_download(source, allow_patterns="pytorch_model*", **options)
        return folder
    except errors.GatedRepoError:
        problem = f"is gated: ask at {constants.ENDPOINT}/{source}, then run `hf auth login`"
    except errors.RevisionNotFoundError:
        problem = f"has no revision {config.revision!r}: correct revision"
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        problem = "no such folder and no such hub model: correct source, or run `hf auth login`"
    except Exception as error:  # many kinds, from a missing network to a broken transfer
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        remedy = "check the network, HF_HUB_OFFLINE and HF_ENDPOINT, run again, or name a folder"
        problem = f"not available from the hub ({reason}): {remedy}"
    raise ConfigError(f"source {source!r}: {problem}")


def copy_pooler(model: BertForMaskedLM, folder: Path) -> None:
    """Give a BERT the pooler of its folder, if there is one: text classifiers start from it.

    Masked words need none, so transformers leaves it out of a model for them.
    """
    reading = {"config": model.config, "output_loading_info": True}
    encoder, report = BertModel.from_pretrained(folder, **reading)
    model.bert.pooler = None if report["missing_keys"] else encoder.pooler


def load_teacher(config: TeacherConfig) -> tuple[BertForMaskedLM, BertTokenizer]:
    """A BERT teacher and its tokenizer from the shipped models, a hub id or a folder, in float32.

    It has a pooler if its source has one. Raises ConfigError for a model that students cannot start
    from, or that differs from the parameters.
    """
    source, name = config.source, f"source {config.source!r}"
    folder = pretrained_folder(config.shipped) if config.shipped else fetch_model(config)
    try:
        found = AutoConfig.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
        vars(found).pop("auto_map", None)  # it names code of the source, which is not copied
        accents = {"do_lower_case": config.lowercase, "strip_accents": False}
        # The length in the source may be 10**30: texts longer than the model would not be cut.
        safe = {"model_max_length": found.max_position_embeddings, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(folder, **accents, **safe)
        reading = {"config": found, "output_loading_info": True, "trust_remote_code": False}
        model, report = AutoModelForMaskedLM.from_pretrained(folder, **reading)
    except Exception as error:  # damaged files raise many kinds; a pickle is read as weights only
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        problem = f"not a model folder, or its files are damaged ({reason})"
        raise ConfigError(f"{name}: {problem}: correct source, or fetch it again") from None
    require(found.model_type == "bert", f"{name}: is a {found.model_type} model, not a BERT")
    missing = ", ".join(sorted(report["missing_keys"]))
    require(not missing, f"{name}: has no weights for {missing}: take one with its MLM head")
    # A student has one matrix for both, and would get the decoder as its embeddings.
    tied = torch.equal(model.get_output_embeddings().weight, model.get_input_embeddings().weight)
    require(tied, f"{name}: its decoder is not tied to its embeddings, as it is in students")
    # DistilBERT's layer norm has this constant built in; another one would make a wrong student.
    epsilon = found.layer_norm_eps
    require(epsilon == 1e-12, f"{name}: its layer_norm_eps is {epsilon}, students have 1e-12")
    check_tokenizer(tokenizer, model, config.lowercase, source)
    copy_pooler(model, folder)
    fit_vocabulary(model, tokenizer)
    shape = {"num_layers": found.num_hidden_layers, "num_heads": found.num_attention_heads}
    shape |= {"hidden_size": found.hidden_size, "vocab_size": model.config.vocab_size}
    for key, value in shape.items():
        expected = getattr(config, key)
        fault = f"{key}: {expected} in the parameters, but {source} has {value}: correct it"
        require(expected == value, fault)
    return model.eval(), tokenizer


def alternate_layers(teacher_layers: int, num_layers: int) -> list[int]:
    """The teacher layers a student starts from, evenly spaced: 0 2 4 7 9 11 for 6 of 12."""
    if not 1 <= num_layers <= teacher_layers:
        raise ValueError(f"num_layers {num_layers} must lie between 1 and {teacher_layers}")
    step = (teacher_layers - 1) / max(1, num_layers - 1)
    return [round(i * step) for i in range(num_layers)]


def student_shape(teacher: BertConfig, num_layers: int) -> DistilBertConfig:
    """The DistilBERT configuration of a student: the teacher's widths, `num_layers` layers."""
    return DistilBertConfig(
        vocab_size=teacher.vocab_size,
        pad_token_id=teacher.pad_token_id,
        max_position_embeddings=teacher.max_position_embeddings,
        n_layers=num_layers,
        n_heads=teacher.num_attention_heads,
        dim=teacher.hidden_size,
        hidden_dim=teacher.intermediate_size,
        activation=teacher.hidden_act,
        dropout=teacher.hidden_dropout_prob,
        attention_dropout=teacher.attention_probs_dropout_prob,
    )


@torch.no_grad()
def init_student(
    teacher: BertForMaskedLM, num_layers: int, layers: Sequence[int] = ()
) -> DistilBertForMaskedLM:
    """A DistilBERT student from layers, the embeddings and the MLM head of its teacher.

    layers: numbers of the teacher's layers, from 0; none: alternate ones.
    The embedding of segment 0 is added to the positions, since DistilBERT has no segments: with as
    many layers as the teacher the student computes the same function. Sanh et al. 2019, section 3.
    """
    student = DistilBertForMaskedLM(student_shape(teacher.config, num_layers))
    ours, theirs = student.distilbert.embeddings, teacher.bert.embeddings
    positions = theirs.position_embeddings.weight + theirs.token_type_embeddings.weight[0]
    ours.position_embeddings.weight.copy_(positions)
    sources = {
        ours.word_embeddings: theirs.word_embeddings,
        ours.LayerNorm: theirs.LayerNorm,
        student.vocab_transform: teacher.cls.predictions.transform.dense,
        student.vocab_layer_norm: teacher.cls.predictions.transform.LayerNorm,
        student.vocab_projector: teacher.cls.predictions.decoder,
    }
    layers = layers or alternate_layers(teacher.config.num_hidden_layers, num_layers)
    for layer, number in zip(student.distilbert.transformer.layer, layers, strict=True):
        sources[layer] = teacher.bert.encoder.layer[number]
    for module, source in sources.items():
        # The parameters of a layer stand in the same order in both, under other names.
        weights = zip(module.state_dict(), source.state_dict().values(), strict=True)
        module.load_state_dict(dict(weights))
    return student


class Encoded(NamedTuple):
    """What a `MaskedLM` computes. The logits of head states h are decoder(h)."""

    head: Tensor  # (N, H) the states that the decoder reads, at the rows that want logits
    decoder: nn.Linear  # H -> V
    states: Tensor  # (S, H) the last hidden states that are compared
    mapped: list[Tensor]  # these states through each map, (S, width)


class MaskedLM(nn.Module):
    """A BERT or DistilBERT that works on the vocabulary only at the chosen positions.

    The vocabulary is a third to a half of a step's work, and most positions need no logits.
    """

    def __init__(self, model: PreTrainedModel, mapped_to: Sequence[int] = ()):
        """mapped_to: the widths of teachers whose states are compared through a trainable map."""
        super().__init__()
        self.model, size = model, model.config.hidden_size
        self.maps = nn.ModuleList(nn.Linear(size, width, bias=False) for width in mapped_to)
        for parameter in self.maps.parameters():
            nn.init.eye_(parameter)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None, rows: Tensor, compared: Tensor
    ) -> Encoded:
        """input_ids, attention_mask: (B, L), or None where nothing is padded.

        rows (N,) that want logits and compared (S,): positions in the flattened batch (B * L,).
        """
        if attention_mask is not None:
            # In this form transformers does not look into it, for which a GPU would have to wait.
            shape = len(input_ids), 1, input_ids.shape[1], input_ids.shape[1]
            attention_mask = attention_mask[:, None, None].bool().expand(shape)
        encoded = self.model.base_model(input_ids=input_ids, attention_mask=attention_mask)
        every = encoded.last_hidden_state.flatten(0, 1)
        head, states = every.index_select(0, rows), every.index_select(0, compared)
        mapped = [linear(states) for linear in self.maps]
        if self.model.config.model_type == "bert":
            predictions = self.model.cls.predictions
            return Encoded(predictions.transform(head), predictions.decoder, states, mapped)
        head = self.model.vocab_layer_norm(self.model.activation(self.model.vocab_transform(head)))
        return Encoded(head, self.model.vocab_projector, states, mapped)


def save_model(model: PreTrainedModel, tokenizer: BertTokenizer, folder: Path, card: str) -> None:
    """Save weights, tokenizer and model card as a plain Hugging Face folder."""
    model.save_pretrained(folder)
    if model.config.model_type == "distilbert":
        # DistilBERT takes no segments. transformers saves what a tokenizer was made with, so this
        # changes, in a copy: the caller's tokenizer still serves a BERT.
        tokenizer, inputs = copy.deepcopy(tokenizer), ["input_ids", "attention_mask"]
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names = inputs
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")

"""Students as sentence-transformers models: a DeltaNet encoder, a shallower copy of the teacher, or a static table.

Each starts from a teacher's weights, or, as the control of an experiment, from random ones of the same shape.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, StaticEmbedding
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from hf_distill.data.model_pruning import spaced_layers
from hf_distill.losses.hidden import pca_projection
from hf_distill.models.deltanet import HfdDeltaNetConfig, HfdDeltaNetModel

STUDENTS = ("deltanet", "layers", "static")
LONG_LENGTH = 8192
"""Tokens that `encode` reads of a text where no table of positions sets the limit; `embed_document` reads all."""
INITS = ("teacher", "random")
_DROPOUTS = {"hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "dropout"}
_TOKENS_PER_BATCH = 2048
# Mean length of a row of a static table at the start. The cosine does not see it, but Adam's steps are measured against it:
# short rows forget the teacher's in a few steps, long random ones keep their noise.
_ROW_NORMS = {"teacher": 2.0, "random": 0.5}


def build_student(
    kind: str,
    source: SentenceTransformer,
    *,
    init: str = "teacher",
    num_layers: int | None = None,
    static_dim: int = 256,
    seed: int = 42,
    **config_overrides: Any,
) -> SentenceTransformer:
    """Builds an untrained student.

    Args:
        kind: `"deltanet"` (linear-time mixers instead of attention), `"layers"` (some of the source's own layers) or
            `"static"` (one vector a token, no layers).
        source: Whose weights, sizes and tokenizer the student takes; the teacher, or any BERT-like model of the width
            the student shall have. A `"deltanet"` may also start as a copy of a finished DeltaNet, to learn on from
            another teacher.
        init: `"teacher"` copies what fits; `"random"` keeps only the shape: the control of an experiment.
        num_layers: Depth; `None` keeps the source's. Layers are taken evenly spaced, first and last included.
        static_dim: Width of the static table (principal components of the source's vectors).
        seed: Of all random weights.
        **config_overrides: Fields of `HfdDeltaNetConfig`, such as `mixer="delta_flip"`.

    Returns:
        Student with mean pooling and unit-length embeddings. It reads as many tokens as the source; a DeltaNet without
        a table of positions (`position_embedding_type="rotary"` or `"none"`) as many as the override
        `max_position_embeddings` says, by default `LONG_LENGTH`.

    Raises:
        ValueError: If a name is unknown or an argument does not belong to this kind of student.

    Example:
        >>> student = build_student("deltanet", SentenceTransformer("sentence-transformers/all-MiniLM-L6-v2"))
    """
    if kind not in STUDENTS or init not in INITS:
        raise ValueError(f"Student {kind!r} with init {init!r}: the choices are {STUDENTS} and {INITS}.")
    if config_overrides and kind != "deltanet":
        raise ValueError(
            f"{sorted(config_overrides)} configure a DeltaNet student; remove them or set kind='deltanet'."
        )
    if kind == "layers" and is_deltanet(source):
        raise ValueError("A DeltaNet has no attention layers to copy; set kind='deltanet', or another source.")
    set_seed(seed)
    encoder, tokenizer, max_length = source[0].auto_model, source.tokenizer, source.get_max_seq_length()
    if kind == "static":
        return _static(encoder, tokenizer, static_dim, init)
    layers = None if num_layers is None else spaced_layers(num_layers, encoder.config.num_hidden_layers)
    if kind == "deltanet":
        student = _deltanet(encoder, layers, config_overrides)
        if student.config.position_embedding_type != "absolute":
            max_length = student.config.max_position_embeddings
        if init == "random":
            student = HfdDeltaNetModel(HfdDeltaNetConfig(**_fresh(student.config)))
    else:
        student = _shallow(encoder, layers or list(range(encoder.config.num_hidden_layers)), init)
    return wrap_encoder(student, tokenizer, max_length)


def has_position_table(model: SentenceTransformer) -> bool:
    """Whether a table of positions limits the length of a model's texts.

    Args:
        model: A student.

    Returns:
        `False` for a DeltaNet with rotary positions or none.
    """
    return not is_deltanet(model) or model[0].auto_model.config.position_embedding_type == "absolute"


def is_deltanet(model: SentenceTransformer) -> bool:
    """Whether the encoder of a model is a DeltaNet: it has no attention that another one could imitate.

    Args:
        model: A teacher or a student.

    Returns:
        `False` for any other encoder, and for models without one.
    """
    encoder = model[0].auto_model if isinstance(model[0], Transformer) else None
    return isinstance(encoder, PreTrainedModel) and encoder.config.model_type == HfdDeltaNetConfig.model_type


def _deltanet(encoder: PreTrainedModel, layers: list[int] | None, overrides: dict[str, Any]) -> HfdDeltaNetModel:
    """A DeltaNet with the weights of a BERT-like encoder, or a copy of a DeltaNet."""
    if encoder.config.model_type != HfdDeltaNetConfig.model_type:
        if overrides.get("position_embedding_type", "absolute") != "absolute":
            # nothing reads the number then but sentence-transformers: it cuts texts there after loading
            overrides = {"max_position_embeddings": LONG_LENGTH, **overrides}
        return HfdDeltaNetModel.from_teacher(encoder, layer_map=layers, **overrides)
    fields = _fresh(encoder.config)
    wrong = {name: value for name, value in overrides.items() if fields.get(name) != value}
    if wrong or (layers is not None and len(layers) != encoder.config.num_hidden_layers):
        what = ", ".join(f"{name}={value!r}" for name, value in wrong.items()) or f"num_layers={len(layers or [])}"
        raise ValueError(
            f"The student starts as a copy of a finished DeltaNet, which is not built with {what}. Leave that out, or "
            "start from a BERT-like model."
        )
    student = HfdDeltaNetModel(HfdDeltaNetConfig(**fields))
    student.load_state_dict(encoder.state_dict())
    return student.eval()


def _fresh(config: HfdDeltaNetConfig) -> dict[str, Any]:
    """The fields of a configuration that make another one of the same shape."""
    drop = {"architectures", "transformers_version", "_name_or_path", "model_type", "dtype"}
    return {key: value for key, value in config.to_dict().items() if key not in drop}


def _shallow(encoder: PreTrainedModel, layers: list[int], init: str) -> PreTrainedModel:
    """A copy of the encoder with the given layers only, without dropout: its target is the same at every step."""
    config = without_dropout(copy.deepcopy(encoder.config))
    config.num_hidden_layers = len(layers)
    student = type(encoder)(config)
    if init == "teacher":
        chosen = copy.deepcopy(encoder)
        chosen.encoder.layer = torch.nn.ModuleList(chosen.encoder.layer[i] for i in layers)
        student.load_state_dict(chosen.state_dict())
    return student


def without_dropout(config: PretrainedConfig) -> PretrainedConfig:
    """Sets all dropout of a configuration to 0, in place: a student's target is the same at every step.

    Args:
        config: The configuration of a model that is made, or loaded, after this.

    Returns:
        The same configuration.
    """
    for name in _DROPOUTS & config.to_dict().keys():
        setattr(config, name, 0.0)
    return config


def wrap_encoder(
    encoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    head: Sequence[nn.Module] | None = None,
) -> SentenceTransformer:
    """Makes a sentence-transformers model of an encoder and a tokenizer, by way of a folder: its module reads files only.

    Args:
        encoder: The encoder; it is copied.
        tokenizer: Its tokenizer, also one with code of its own, such as `HfdMftTokenizer`.
        max_length: Longest input in tokens.
        head: What comes after the encoder. Default: mean pooling without padding, and length 1.

    Returns:
        The model, on the CPU, without a trace of the folder.

    Example:
        >>> student = wrap_encoder(encoder, HfdMftTokenizer(), 512)
    """
    own_code = not type(tokenizer).__module__.startswith("transformers.")
    options = {"processor_kwargs": {"trust_remote_code": True}} if own_code else {}
    if type(encoder).__module__.startswith("transformers_modules."):
        options |= {"model_kwargs": {"trust_remote_code": True}, "config_kwargs": {"trust_remote_code": True}}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "student"  # a fixed name: transformers keeps a copy of the tokenizer's code under it
        _save_in_this_process(encoder, folder)
        tokenizer.save_pretrained(folder)
        transformer = Transformer(str(folder), max_seq_length=max_length, **options)
    # The folder is gone in a moment: its name must not end up in the saved config or card.
    transformer.auto_model.config._name_or_path = transformer.auto_model.name_or_path = ""
    transformer.tokenizer.name_or_path = ""
    transformer.tokenizer.padding_side = "right"  # as in training; BERT counts its positions from the first column
    if head is None:
        head = [Pooling(transformer.auto_model.config.hidden_size, "mean"), Normalize()]
    return SentenceTransformer(modules=[transformer, *head], device="cpu", trust_remote_code=own_code)


def _save_in_this_process(encoder: PreTrainedModel, folder: Path) -> None:
    """Saves where transformers would write in the first process only: here each has a folder of its own."""
    encoder.should_save_on_this_rank = lambda is_main_process: True
    try:
        encoder.save_pretrained(folder)
    finally:
        del encoder.should_save_on_this_rank


@torch.no_grad()
def _static(encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dim: int, init: str) -> SentenceTransformer:
    """One vector a token: the source's output for that token alone, in `dim` principal directions."""
    rows = tokenizer.backend_tokenizer.get_vocab_size()
    if not 1 <= dim <= encoder.config.hidden_size:
        raise ValueError(f"static_dim={dim} must lie between 1 and the source's width {encoder.config.hidden_size}.")
    weights = (
        torch.randn(rows, dim) * (_ROW_NORMS[init] / dim**0.5)
        if init == "random"
        else _token_vectors(encoder.eval(), tokenizer, rows, dim)
    )
    table = StaticEmbedding(copy.deepcopy(tokenizer.backend_tokenizer), embedding_weights=weights)
    return SentenceTransformer(modules=[table, Normalize()], device="cpu")


def _token_vectors(encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: int, dim: int) -> Tensor:
    """Principal components of each token's own mean-pooled output, damped for frequent tokens.

    The weight `log(1 + id)` stands for the inverse frequency (a word piece vocabulary is sorted by it), as in model2vec.
    """
    vectors = []
    first, last = tokenizer("")["input_ids"]
    for start in range(0, rows, _TOKENS_PER_BATCH):
        ids = [[first, token, last] for token in range(start, min(start + _TOKENS_PER_BATCH, rows))]
        batch = torch.tensor(ids)
        vectors.append(encoder(batch, attention_mask=torch.ones_like(batch)).last_hidden_state.float().mean(1))
    vectors = torch.cat(vectors)
    components, mean = pca_projection(vectors, dim)
    weights = (vectors - mean) @ components.T * torch.log1p(torch.arange(rows, dtype=torch.float32))[:, None]
    return weights * (_ROW_NORMS["teacher"] / weights.norm(dim=-1).mean())


__all__ = [
    "INITS",
    "LONG_LENGTH",
    "STUDENTS",
    "build_student",
    "has_position_table",
    "is_deltanet",
    "spaced_layers",
    "without_dropout",
    "wrap_encoder",
]

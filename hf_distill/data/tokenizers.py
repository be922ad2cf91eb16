"""Tokenizer surgery: a model keeps its layers and gets another tokenizer, with token vectors made of its own.

Each token of the target vocabulary takes the vector of the source token that is spelled the same, where there is one. Else
the source tokenizer cuts it into pieces and their vectors are combined. Special tokens go by role. What is left gets the
mean of all source vectors and a little noise. A report counts how many rows came from where.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_distill.data.embedding_tables import check_vocabulary, follow_tokenizer, replace_vocabulary
from hf_distill.data.surfaces import Reading, SourceVocabulary, surface_forms

STRATEGIES = ("mean", "weighted", "first", "last", "max")
ORIGINS = ("exact", "composed", "special", "bytes", "fallback")
_INITS = ("source", "random")
# Which source token stands in for a special token of the target, the first that the source has.
_ROLES = {
    "eos": ("eos", "sep"),
    "bos": ("bos", "cls"),
    "cls": ("cls", "bos"),
    "sep": ("sep", "eos"),
    "unk": ("unk",),
    "mask": ("mask",),
    "pad": ("pad", "eos"),
}
# Rows without a source lie a tenth of the source's own spread around its mean: near it, yet not all the same.
_NOISE = 0.1


@dataclass(frozen=True)
class TokenSource:
    """Where one row comes from.

    Args:
        how: `"exact"`, `"composed"`, `"special"`, `"bytes"` or `"fallback"`.
        readings: For every surface form of the token the source ids and the characters that each covers.
    """

    how: str
    readings: tuple[Reading, ...] = ()

    @property
    def source_ids(self) -> tuple[int, ...]:
        """All source ids, form after form."""
        return tuple(index for reading in self.readings for index, _ in reading)


@dataclass(frozen=True)
class TokenMap:
    """From target ids to source ids; `token_map[target_id]` is a [`TokenSource`].

    Args:
        sources: One for every target id.
        tokens: The target's strings, for the report.
    """

    sources: Sequence[TokenSource]
    tokens: Sequence[str]

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, target_id: int) -> TokenSource:
        return self.sources[target_id]

    def counts(self) -> dict[str, int]:
        """Number of target ids by origin, all origins named."""
        found = Counter(source.how for source in self.sources)
        return {how: found[how] for how in ORIGINS}


@dataclass(frozen=True)
class SurgeryReport:
    """How a token table was made; `str()` of it is a paragraph for a log or a card.

    Args:
        source_rows: Rows of the source table.
        target_rows: Rows of the new one.
        rows: New rows by origin: `exact`, `composed`, `special`, `bytes`, `fallback`, or `random`.
        strategy: How pieces were combined.
        pieces: Mean number of source tokens of a composed row.
        examples: Some tokens without a source.
        tied: Whether the output embeddings are the input's; `None` for a model without.
        seed: Of the noise, or of all weights.
    """

    source_rows: int
    target_rows: int
    rows: dict[str, int]
    strategy: str = ""
    pieces: float = 0.0
    examples: tuple[str, ...] = field(default=())
    tied: bool | None = None
    seed: int = 42

    def __str__(self) -> str:
        if "random" in self.rows:
            return f"{self.target_rows:,} rows and all layers are random (seed {self.seed}); nothing was taken over."
        share = {how: f"{count:,} {how} ({count / self.target_rows:.1%})" for how, count in self.rows.items()}
        share["composed"] += f" of {self.pieces:.2f} source tokens each on average, by {self.strategy}"
        if self.rows["fallback"]:
            share["fallback"] += f" = mean of all source rows and noise, such as {', '.join(map(repr, self.examples))}"
        head = {
            None: "",
            True: " The output embeddings are tied to them.",
            False: " The output layer got the same map.",
        }
        return f"{self.target_rows:,} rows from a table of {self.source_rows:,}: {'; '.join(share.values())}.{head[self.tied]}"


def token_map(
    target: PreTrainedTokenizerBase,
    source: PreTrainedTokenizerBase,
    special_tokens: Mapping[str, str] | None = None,
) -> TokenMap:
    """Finds for every target token the source tokens that spell the same.

    Args:
        target: Any fast tokenizer, or a Python one with `surface_forms()`, such as `HfdMftTokenizer`.
        source: A fast tokenizer.
        special_tokens: From target tokens to source tokens, before any other rule. Without it special tokens go by
            role (padding to padding, end of sequence to end of sequence or separator, …), then by their string.

    Returns:
        The map.

    Raises:
        ValueError: If a tokenizer is of an unknown kind, or `special_tokens` names a token that its tokenizer lacks.
    """
    vocabulary, forms = SourceVocabulary(source), surface_forms(target)
    special = _special_sources(target, vocabulary, special_tokens or {})
    texts = [
        text
        for index, form in enumerate(forms)
        if isinstance(form, tuple) and index not in special
        for text in form
        if not vocabulary.exact(text)
    ]
    composed = vocabulary.compose(texts)
    sources = []
    for index, form in enumerate(forms):
        if index in special:
            sources.append(special[index])
        elif isinstance(form, bytes):
            sources.append(_from_bytes(form, vocabulary))
        else:
            exact = [bool(vocabulary.exact(text)) for text in form]
            readings = [vocabulary.exact(text) or composed[text] for text in form]
            how = "exact" if all(exact) else "composed"
            readings = tuple(reading for reading in readings if reading)
            sources.append(TokenSource(how, readings) if readings else TokenSource("fallback"))
    strings = {index: token for token, index in target.get_vocab().items()}
    return TokenMap(sources, [strings.get(index, "") for index in range(len(sources))])


@torch.no_grad()
def transplant_embeddings(
    weight: Tensor, token_map: TokenMap, strategy: str = "mean", *, seed: int = 42
) -> tuple[Tensor, SurgeryReport]:
    """Makes the rows of the target vocabulary from a source table.

    Args:
        weight: Source table `(V, D)`.
        token_map: From target ids to source ids.
        strategy: How the rows of several source tokens become one: `"mean"`, `"weighted"` (by the characters each
            covers), `"first"`, `"last"` or `"max"` (largest value of every dimension). Several surface forms of one id
            are averaged afterwards.
        seed: Of the noise in rows without a source. They are drawn from a normal distribution with the mean of all
            source rows and a hundredth of their covariance.

    Returns:
        The table `(W, D)` in the type of the source, and the report.

    Raises:
        ValueError: If the strategy is unknown, or the map points outside the table.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy={strategy!r} is unknown. Choose one of {', '.join(STRATEGIES)}.")
    top = max((max(source.source_ids, default=-1) for source in token_map.sources), default=-1)
    if weight.ndim != 2 or top >= len(weight):
        raise ValueError(
            f"The source tokenizer has ids up to {top}, but the source table is {tuple(weight.shape)}: this is not the "
            "model's own tokenizer."
        )
    table = weight.new_empty(len(token_map), weight.shape[1])
    missing = [index for index, source in enumerate(token_map.sources) if source.how == "fallback"]
    for index, source in enumerate(token_map.sources):
        if len(source.source_ids) == 1:
            table[index] = weight[source.source_ids[0]]
        elif source.readings:
            forms = [_combine(weight, reading, strategy) for reading in source.readings]
            table[index] = torch.stack(forms).mean(dim=0)
    if missing:
        table[missing] = _around_mean(weight, len(missing), seed).to(weight.dtype)
    pieces = [len(s.source_ids) / len(s.readings) for s in token_map.sources if s.how == "composed"]
    return table, SurgeryReport(
        source_rows=len(weight),
        target_rows=len(table),
        rows=token_map.counts(),
        strategy=strategy,
        pieces=sum(pieces) / max(len(pieces), 1),
        examples=tuple(token_map.tokens[index] for index in missing[:5]),
        seed=seed,
    )


def swap_tokenizer(
    model: PreTrainedModel,
    source_tokenizer: PreTrainedTokenizerBase,
    target_tokenizer: PreTrainedTokenizerBase,
    *,
    strategy: str = "mean",
    special_tokens: Mapping[str, str] | None = None,
    init: str = "source",
    seed: int = 42,
) -> tuple[PreTrainedModel, SurgeryReport]:
    """A copy of a model that reads and writes another tokenizer's ids.

    Layers are copied unchanged, tied output embeddings stay tied, an untied output layer gets the same map, and vocabulary
    size, padding, start and end ids in the configuration are the target's.

    Args:
        model: With its own vocabulary; left as it is.
        source_tokenizer: The model's tokenizer, a fast one.
        target_tokenizer: The new one.
        strategy: See [`transplant_embeddings`].
        special_tokens: See [`token_map`].
        init: `"source"` takes the model's weights over. `"random"` draws all of them by the model class's own rule: the
            control of an experiment. One seed gives the same layers for every tokenizer, and for those of as many ids
            the same token vectors, padding aside.
        seed: Of all random numbers; the process's own generator is left alone.

    Returns:
        The new model and the report.

    Raises:
        ValueError: If an argument is unknown, the target has no padding token, the source tokenizer is not the model's, or
            the model cannot take the target.

    Example:
        >>> student, report = swap_tokenizer(model, AutoTokenizer.from_pretrained(name), HfdMftTokenizer())
        >>> print(report)
    """
    if init not in _INITS:
        raise ValueError(f"init={init!r} is unknown. Choose one of {', '.join(_INITS)}.")
    check_vocabulary(model, target_tokenizer)
    if init == "random":
        return _random(model, target_tokenizer, seed)
    sources = token_map(target_tokenizer, source_tokenizer, special_tokens)
    reports: list[SurgeryReport] = []

    def rows(table: Tensor) -> Tensor:
        new, report = transplant_embeddings(table, sources, strategy, seed=seed)
        reports.append(report)
        return new

    student = copy.deepcopy(model)
    tied = replace_vocabulary(student, target_tokenizer, rows)
    return student, replace(reports[0], tied=tied)


def _special_sources(
    target: PreTrainedTokenizerBase, vocabulary: SourceVocabulary, given: Mapping[str, str]
) -> dict[int, TokenSource]:
    """Sources of the target's special tokens, by the given names, by role, by string, or none."""
    names, ids = target.get_vocab(), vocabulary.ids
    for owner, tokens, known in (("target", given, names), ("source", given.values(), ids)):
        unknown = sorted(token for token in tokens if token not in known)
        if unknown:
            raise ValueError(f"special_tokens names {unknown}, which the {owner} tokenizer does not have.")
    found: dict[int, int | None] = {names[token]: ids[source] for token, source in given.items()}
    for role, stand_ins in _ROLES.items():
        index = _id_of(target, role)
        if index is not None and index not in found:
            sources = [_id_of(vocabulary.tokenizer, stand_in) for stand_in in stand_ins]
            found[index] = next((source for source in sources if source is not None), None)
    added = [index for index, token in target.added_tokens_decoder.items() if token.special]
    for index in (*target.all_special_ids, *added):
        found.setdefault(index, ids.get(target.convert_ids_to_tokens(index)))
    return {
        index: TokenSource("fallback") if source is None else TokenSource("special", (((source, 1),),))
        for index, source in found.items()
    }


def _id_of(tokenizer: PreTrainedTokenizerBase, role: str) -> int | None:
    """Id of the special token of a role, if there is one."""
    return getattr(tokenizer, f"{role}_token_id")


def _from_bytes(part: bytes, vocabulary: SourceVocabulary) -> TokenSource:
    """The source of a token that is only a part of a character."""
    reading = vocabulary.from_bytes(part)
    return TokenSource("bytes", (reading,)) if reading else TokenSource("fallback")


def _combine(weight: Tensor, reading: Reading, strategy: str) -> Tensor:
    """One row from the rows of a reading, float32."""
    rows = weight[[index for index, _ in reading]].float()
    if strategy == "first":
        return rows[0]
    if strategy == "last":
        return rows[-1]
    if strategy == "max":
        return rows.amax(dim=0)
    if strategy == "mean":
        return rows.mean(dim=0)
    characters = torch.tensor([float(count) for _, count in reading], device=rows.device)
    return (rows * (characters / characters.sum())[:, None]).sum(dim=0)


def _around_mean(weight: Tensor, count: int, seed: int) -> Tensor:
    """Rows `(count, D)` around the mean of a table, spread as its own rows are, only less."""
    rows = weight.float()
    values, vectors = torch.linalg.eigh(torch.cov(rows.T).reshape(rows.shape[1], -1).double())
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(count, len(values), generator=generator, dtype=torch.float64).to(weight.device)
    return rows.mean(dim=0) + _NOISE * (draws * values.clamp(min=0).sqrt() @ vectors.T).float()


@torch.no_grad()
def _random(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int
) -> tuple[PreTrainedModel, SurgeryReport]:
    """A model of the same shape with random weights.

    The class initialises a table before the layers, so its size would decide what they get. They are drawn first, beside
    a table of one row; what has a row for each token comes from a second model. The class initialises both with the
    source's padding id, whatever the tokenizer, and the row it leaves empty then changes places with the new padding
    row: so the draws never depend on the tokenizer.
    """
    size = max(tokenizer.get_vocab().values()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        layers = _untrained(model, 1).state_dict()
        student = _untrained(model, size)
    for name, value in student.state_dict().items():
        if layers[name].shape == value.shape:
            value.copy_(layers[name])
    student.to(model.device).train(model.training)
    for parameter in student.parameters():  # not the buffers: rotary frequencies stay float32
        parameter.data = parameter.data.to(model.dtype)
    table = student.get_input_embeddings()
    if table.padding_idx is not None:
        pair = [table.padding_idx, tokenizer.pad_token_id]
        table.weight[pair] = table.weight[pair[::-1]]
        table.padding_idx = tokenizer.pad_token_id
    follow_tokenizer(student, tokenizer)
    source_rows = model.get_input_embeddings().num_embeddings
    return student, SurgeryReport(source_rows, size, {"random": size}, seed=seed)


def _untrained(model: PreTrainedModel, vocab_size: int) -> PreTrainedModel:
    """A model of the same class and shape, but for its vocabulary, initialised by the class."""
    config: Any = copy.deepcopy(model.config)
    text = config.get_text_config()
    text.vocab_size = vocab_size
    if (text.pad_token_id or 0) >= vocab_size:  # no table can be made with it; the draws stay the same
        text.pad_token_id = 0
    return type(model)(config)


__all__ = [
    "ORIGINS",
    "STRATEGIES",
    "SurgeryReport",
    "TokenMap",
    "TokenSource",
    "swap_tokenizer",
    "token_map",
    "transplant_embeddings",
]

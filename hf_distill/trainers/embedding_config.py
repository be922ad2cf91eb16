"""Configuration of `EmbeddingDistillTrainer`: which loss terms, with which weights, and how they are computed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from sentence_transformers import SentenceTransformerTrainingArguments

from hf_distill.data.token_ids import IDS_SUFFIX, TOO_LONG
from hf_distill.losses.combine import weight_at
from hf_distill.trainers.distill_args import DistillArguments

TERMS = (
    "contrastive",
    "cosine",
    "l2",
    "hidden",
    "gram",
    "rkd_distance",
    "rkd_angle",
    "spearman",
    "ranking",
    "orthogonality",
    "state_decorrelation",
)
TEACHER_TERMS = frozenset(TERMS) - {"contrastive", "orthogonality", "state_decorrelation"}
"""Terms that compare with a teacher."""
MATCHED_TERMS = frozenset({"cosine", "l2"})
"""Those that compare an embedding with the teacher's number by number, and need its width."""
_PROJECTIONS = ("none", "learned", "pca")


def _weight(default: float, text: str) -> Any:
    """Field of a loss weight: a number, or a schedule such as '{"0": 1.0, "500": 0.1}' over optimiser steps."""
    return field(default=default, metadata={"help": f"Weight of {text}: a number or a schedule {{step: weight}}."})


@dataclass
class EmbeddingDistillConfig(DistillArguments, SentenceTransformerTrainingArguments):
    r"""Arguments of [`EmbeddingDistillTrainer`].

    Every `<term>_weight` is a number, 0 to leave the term out, or a schedule `{step: weight}` (piecewise linear in
    optimiser steps; a JSON string on the command line). All terms with a weight share one student forward pass.

    > Parameters that choose the terms

    Args:
        contrastive_weight: In-batch contrastive loss between anchor and positive; needs pairs.
        cosine_weight: 1 - cosine of student and teacher embedding. The default term.
        l2_weight: Squared distance of student and teacher embedding.
        hidden_weight: Layer-wise hidden states; needs a live teacher with the student's tokenizer.
        gram_weight: Squared differences of the in-batch cosine matrices.
        rkd_distance_weight: Relational distances (Park et al. 2019).
        rkd_angle_weight: Relational angles (Park et al. 2019).
        spearman_weight: 1 - soft rank correlation of the pair similarities.
        ranking_weight: Pairwise ranking of the pair similarities.
        orthogonality_weight: Orthogonality of the student's q, k and v projections (`hfd_deltanet`).
        state_decorrelation_weight: Decorrelation of the fast and slow memory (`hfd_deltanet`).

    > Parameters of the data

    Args:
        ids_column (`str`, *optional*): Column of token ids to train on, such as `"mft_input_ids"`; made by the student's
            tokenizer, without padding. By default the texts are tokenised, or the only id column is taken.
        teacher_column (`str`, *optional*): Column of the teacher's embeddings, such as `"teacher_embedding_final"`; then
            no teacher is needed.
        too_long (`str`, *optional*, defaults to `"truncate"`): What becomes of sequences of more than `max_length` tokens:
            `"truncate"` them, `"drop"` their rows, or `"error"`.

    > Parameters of the terms

    Args:
        contrastive_scale (`float`, *optional*, defaults to 20.0): Inverse temperature.
        contrastive_label_smoothing (`float`, *optional*, defaults to 0.1): Label smoothing.
        spearman_temperature (`float`, *optional*, defaults to 0.2): Softness of the ranks.
        ranking_margin (`float`, *optional*, defaults to 0.05): Scale of the logistic.
        ranking_min_gap (`float`, *optional*, defaults to 0.01): Teacher gaps up to this say nothing.
        matryoshka_dims (`list[int]`, *optional*): Also apply the embedding terms to these prefixes of the embedding.
        hidden_layer_map (`str`, *optional*, defaults to `"auto"`): Teacher layer of each student layer: `"auto"` (the
            student's `config.teacher_layers`, else `"uniform"`), `"uniform"`, `"first"`, `"last"` or a list `[1, 3, 5]`.
        hidden_relative (`bool`, *optional*, defaults to `True`): Divide by the energy of the teacher's states.
        hidden_projection (`str`, *optional*, defaults to `"learned"`): Head between hidden states of different width:
            `"learned"`, `"pca"` (learned, initialised from the teacher's principal directions) or `"none"` (an error).
        embedding_projection (`str`, *optional*, defaults to `"none"`): The same for embeddings of different width.
            Prefer a teacher projected to the student's width (`teachers/projection.py`): then no head is needed.
        gather_across_devices (`bool`, *optional*, defaults to `True`): In-batch terms see the batches of all processes.
    """

    _VALID_DICT_FIELDS = [*DistillArguments._VALID_DICT_FIELDS, "prompts"]

    contrastive_weight: dict | str | float | None = _weight(0.0, "the in-batch contrastive loss")
    cosine_weight: dict | str | float | None = _weight(1.0, "1 - cosine to the teacher's embedding")
    l2_weight: dict | str | float | None = _weight(0.0, "the squared distance to the teacher's embedding")
    hidden_weight: dict | str | float | None = _weight(0.0, "the layer-wise hidden states")
    gram_weight: dict | str | float | None = _weight(0.0, "the in-batch cosine matrices")
    rkd_distance_weight: dict | str | float | None = _weight(0.0, "the relational distances")
    rkd_angle_weight: dict | str | float | None = _weight(0.0, "the relational angles")
    spearman_weight: dict | str | float | None = _weight(0.0, "the soft rank correlation")
    ranking_weight: dict | str | float | None = _weight(0.0, "the pairwise ranking")
    orthogonality_weight: dict | str | float | None = _weight(0.0, "the orthogonality of the projections")
    state_decorrelation_weight: dict | str | float | None = _weight(0.0, "the fast/slow state decorrelation")

    ids_column: str | None = field(
        default=None, metadata={"help": "Column of token ids to train on, such as mft_input_ids. Default: the texts."}
    )
    teacher_column: str | None = field(
        default=None, metadata={"help": "Column of the teacher's embeddings, such as teacher_embedding_final."}
    )
    too_long: str = field(
        default="truncate", metadata={"help": "Sequences of more than max_length tokens: truncate, drop or error."}
    )
    contrastive_scale: float = field(default=20.0, metadata={"help": "Inverse temperature of the contrastive loss."})
    contrastive_label_smoothing: float = field(default=0.1, metadata={"help": "Label smoothing, contrastive loss."})
    spearman_temperature: float = field(default=0.2, metadata={"help": "Softness of the ranks."})
    ranking_margin: float = field(default=0.05, metadata={"help": "Scale of the ranking's logistic."})
    ranking_min_gap: float = field(default=0.01, metadata={"help": "Teacher gaps up to this are ties."})
    matryoshka_dims: list[int] | None = field(
        default=None, metadata={"help": "Also train these prefixes of the embedding, such as 384 256 128 64."}
    )
    hidden_layer_map: str | None = field(
        default="auto", metadata={"help": "auto, uniform, first, last, or a list of teacher layers such as [1,3,5]."}
    )
    hidden_relative: bool = field(default=True, metadata={"help": "Divide by the energy of the teacher's states."})
    hidden_projection: str = field(
        default="learned", metadata={"help": "Head for hidden states of another width: learned, pca or none."}
    )
    embedding_projection: str = field(
        default="none", metadata={"help": "Head for embeddings of another width: learned, pca or none."}
    )
    gather_across_devices: bool = field(
        default=True, metadata={"help": "In-batch terms see the batches of all processes."}
    )

    def __post_init__(self) -> None:
        for term in TERMS:
            name = f"{term}_weight"
            setattr(self, name, _parse_weight(getattr(self, name), name))
        self._check_terms()
        self._check_columns()
        super().__post_init__()

    def _check_terms(self) -> None:
        """Refuses terms and heads that make no sense."""
        if not self.active_terms():
            raise ValueError(
                "No loss term has a weight above 0, so there is nothing to train. Set one, such as cosine_weight=1.0."
            )
        for name in ("hidden_projection", "embedding_projection"):
            if getattr(self, name) not in _PROJECTIONS:
                raise ValueError(f"{name} must be one of {_PROJECTIONS}, but is {getattr(self, name)!r}.")
        if self.matryoshka_dims is not None and (not self.matryoshka_dims or min(self.matryoshka_dims) < 1):
            raise ValueError(f"matryoshka_dims must be positive widths, but is {self.matryoshka_dims}; leave it out.")
        self.layer_map_strategy()

    def _check_columns(self) -> None:
        """Refuses names and rules that no data set can have."""
        if self.ids_column is not None and not self.ids_column.endswith(IDS_SUFFIX):
            raise ValueError(
                f"ids_column={self.ids_column!r} must end in {IDS_SUFFIX!r}, such as 'mft{IDS_SUFFIX}'. Rename the column "
                "with `dataset.rename_column(...)`."
            )
        if self.too_long not in TOO_LONG:
            raise ValueError(f"too_long must be one of {TOO_LONG}, but is {self.too_long!r}.")

    def weights_at(self, step: int) -> dict[str, float]:
        """Weights of all terms at an optimiser step.

        Args:
            step: Optimiser steps done.

        Returns:
            Term -> weight, without the terms whose weight is 0 during the whole run.
        """
        return {
            term: weight_at(getattr(self, f"{term}_weight"), step, f"{term}_weight") for term in self.active_terms()
        }

    def active_terms(self) -> list[str]:
        """Terms whose weight is above 0 at some step."""
        return [term for term in TERMS if _ever_positive(getattr(self, f"{term}_weight"))]

    def layer_map_strategy(self) -> str | list[int]:
        """`hidden_layer_map` as a strategy's name or a list of layers.

        Raises:
            ValueError: If it is neither.
        """
        value = self.hidden_layer_map
        if isinstance(value, list):
            return value
        if value in ("auto", "uniform", "first", "last"):
            return value
        try:
            layers = json.loads(value or "")
        except json.JSONDecodeError:
            layers = None
        if not isinstance(layers, list) or not all(isinstance(layer, int) for layer in layers):
            raise ValueError(
                f"hidden_layer_map must be auto, uniform, first, last or a list such as [1,3,5], but is {value!r}."
            )
        return layers


def _parse_weight(value: Any, name: str) -> float | dict[str, float]:
    """A weight as a number or a schedule, from YAML or the command line, checked."""
    if value is None:
        return 0.0
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(
                f'{name} must be a number or a schedule such as \'{{"0": 1.0, "500": 0.1}}\', but is {value!r}.'
            ) from error
    weight_at(value, 0, name)
    return {str(step): float(weight) for step, weight in value.items()} if isinstance(value, dict) else float(value)


def _ever_positive(value: float | dict[str, float]) -> bool:
    """Whether a weight is above 0 at some step."""
    return max(value.values()) > 0 if isinstance(value, dict) else value > 0


__all__ = ["MATCHED_TERMS", "TEACHER_TERMS", "TERMS", "EmbeddingDistillConfig"]

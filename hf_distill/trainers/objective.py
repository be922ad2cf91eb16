"""The one module that owns the student and its heads, runs the student once and weighs the loss terms.

Because student and heads are ONE `nn.Module`, the optimiser sees all parameters, gradient clipping covers them, and
distributed wrappers synchronise them. The saved student stays free of heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from torch import Tensor, nn
from torch.nn import functional as F

from hf_distill.losses import embedding as E
from hf_distill.losses.combine import weighted_sum
from hf_distill.losses.hidden import hidden_state_loss
from hf_distill.losses.ranking import pairwise_ranking_loss, spearman_loss
from hf_distill.losses.regularizers import orthogonality_loss, state_decorrelation_loss
from hf_distill.trainers.distributed import gather_rows
from hf_distill.trainers.embedding_config import MATCHED_TERMS, EmbeddingDistillConfig

_MAX_RANKED = 64
"""Rows whose similarities to each other are ranked when texts have no partner (memory grows with the third power)."""
_MAX_ANGLE = 96
"""Rows of a batch whose triples are compared (memory grows with the third power)."""


class ProjectionHead(nn.Module):
    """Linear map from the student's width to the teacher's, in float32 also under autocast.

    A shorter input (a Matryoshka prefix) uses the first columns of the weight.

    Args:
        student_width: Columns.
        teacher_width: Rows.
    """

    def __init__(self, student_width: int, teacher_width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(teacher_width, student_width))
        self.bias = nn.Parameter(torch.zeros(teacher_width))
        nn.init.orthogonal_(self.weight)

    @torch.no_grad()
    def set_pca(self, components: Tensor, mean: Tensor) -> None:
        """Starts from principal directions: student coordinates are read as the teacher's principal components.

        A student wider than the teacher has more coordinates than there are components: the last ones start at 0.

        Args:
            components: `(min(student_width, teacher_width), teacher_width)`, orthonormal rows
                (`losses.hidden.pca_projection`).
            mean: `(teacher_width,)`.
        """
        width = min(components.shape[0], self.weight.shape[1])
        self.weight[:, :width] = components[:width].T
        self.weight[:, width:] = 0
        self.bias.copy_(mean)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(..., D <= student_width)` to `(..., teacher_width)`."""
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight[:, : x.shape[-1]], self.bias)


@dataclass
class StudentOutput:
    """What one forward pass of the student gives.

    Args:
        embedding: `(R, D)`, row by row (anchor 0, positive 0, anchor 1, …).
        hidden_states: Embeddings and the output of every layer, `(R, T, D)` each, when asked for.
        states: Fast and slow memory of every layer, when asked for.
    """

    embedding: Tensor
    hidden_states: tuple[Tensor, ...] = ()
    states: list[tuple[Tensor, Tensor]] | None = None


def student_encoder(model: SentenceTransformer) -> nn.Module | None:
    """The transformer inside a sentence-transformers model, `None` for a static embedding table."""
    return model[0].auto_model if isinstance(model[0], Transformer) else None


@contextmanager
def capture_output(encoder: nn.Module, **forward_kwargs: Any) -> Iterator[dict[str, Any]]:
    """Adds keyword arguments to an encoder's next forward and keeps its output, without touching its config.

    sentence-transformers calls `encoder.forward(...)` itself, past all hooks, so the method is what is wrapped.

    Args:
        encoder: Module called inside the context.
        **forward_kwargs: Such as `output_hidden_states=True`.

    Yields:
        A dictionary that holds `"output"` after the forward.
    """
    captured: dict[str, Any] = {}
    forward = encoder.forward
    was_patched = "forward" in encoder.__dict__

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        captured["output"] = forward(*args, **{**kwargs, **forward_kwargs})
        return captured["output"]

    encoder.forward = wrapped
    try:
        yield captured
    finally:
        if was_patched:
            encoder.forward = forward
        else:
            del encoder.forward


class Objective(nn.Module):
    """A student with the heads that only training needs; the base of what trainers wrap and optimise.

    Args:
        model: The student, whose weights are saved on their own.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def head_state(self) -> dict[str, Tensor]:
        """Weights of the heads alone, by name; empty without heads."""
        return {k: v.detach() for k, v in self.state_dict().items() if not k.startswith("model.")}

    def load_head_state(self, state: dict[str, Tensor]) -> None:
        """Restores the heads.

        Raises:
            ValueError: If names or shapes differ from this objective's heads.
        """
        own = self.head_state()
        expected = {k: tuple(v.shape) for k, v in own.items()}
        found = {k: tuple(v.shape) for k, v in state.items()}
        if expected != found:
            raise ValueError(
                f"The checkpoint's heads {found} do not fit this run's {expected}. Resume with the config the checkpoint "
                "was written with, or start a new run."
            )
        for name, value in state.items():
            own[name].copy_(value)


class DistillObjective(Objective):
    """Student, heads and loss terms.

    Args:
        model: The student.
        args: Terms and their parameters.
        teacher_width (`int`, *optional*): Width of the teacher's embedding, where a term needs it.
        teacher_layers (`list[int]`, *optional*): For each student layer the teacher layer (from 0) it imitates.
        teacher_hidden_width (`int`, *optional*): Width of the teacher's hidden states.

    Inputs:
        +--------------------------+-----------------------------+-------------------------------------------+
        | batch                    | shape                       | needed by                                 |
        +==========================+=============================+===========================================+
        | input_ids, attention_mask| `(R, T)`                    | all (R = rows x columns, row by row)      |
        | num_columns              | 1 or 2                      | contrastive needs 2                       |
        | teacher_embedding        | `(R, D_teacher)`            | cosine, l2, gram, rkd, spearman, ranking  |
        | teacher_hidden_states    | tuple of `(R, T, D_hidden)` | hidden                                    |
        | positive_ids             | `(rows,)`                   | contrastive: equal texts are no negatives |
        +--------------------------+-----------------------------+-------------------------------------------+

    Raises:
        ValueError: If widths differ and no projection is chosen; the message names both remedies.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        args: EmbeddingDistillConfig,
        *,
        teacher_width: int | None = None,
        teacher_layers: list[int] | None = None,
        teacher_hidden_width: int | None = None,
    ) -> None:
        super().__init__(model)
        self.args = args
        self.teacher_layers = teacher_layers
        self.embedding_head: ProjectionHead | None = None
        self.hidden_heads: nn.ModuleList | None = None
        terms = set(args.active_terms())
        width = model.get_embedding_dimension()
        if args.matryoshka_dims and max(args.matryoshka_dims) > width:
            raise ValueError(f"matryoshka_dims={args.matryoshka_dims} exceed the student's width of {width}.")
        if teacher_width is not None and terms & MATCHED_TERMS and teacher_width != width:
            if args.embedding_projection == "none":
                raise ValueError(
                    f"The teacher's embeddings have {teacher_width} dimensions, the student's {width}. Project the "
                    "teacher's cache to the student's width (hf_distill.teachers.projection.project_cache), or set "
                    "embedding_projection='pca' or 'learned' for a head that is thrown away after training."
                )
            self.embedding_head = ProjectionHead(width, teacher_width)
        if "hidden" in terms:
            student_width = student_encoder(model).config.hidden_size
            if student_width != teacher_hidden_width:
                if args.hidden_projection == "none":
                    raise ValueError(
                        f"The teacher's hidden states have width {teacher_hidden_width}, the student's {student_width}. "
                        "Set hidden_projection='pca' or 'learned', or hidden_weight=0."
                    )
                heads = (ProjectionHead(student_width, teacher_hidden_width) for _ in teacher_layers)
                self.hidden_heads = nn.ModuleList(heads)

    def forward(self, inputs: dict[str, Any], weights: dict[str, float]) -> dict[str, Tensor]:
        """Runs the student once and computes the terms.

        Args:
            inputs: The batch, see above.
            weights: Term -> weight at this step; a term of weight 0 is not computed.

        Returns:
            `loss` (the weighted sum, with gradient) and every computed term, unweighted and detached.
        """
        weights = {name: weight for name, weight in weights.items() if weight > 0}
        if not weights:
            raise ValueError("All loss weights are 0 at this step; give the schedule a term that is always above 0.")
        student = self._encode(inputs, "hidden" in weights, "state_decorrelation" in weights)
        terms: dict[str, Tensor] = {}
        for name, function in (
            ("cosine", self._matched),
            ("l2", self._matched),
            ("gram", self._relational),
            ("rkd_distance", self._relational),
            ("rkd_angle", self._relational),
            ("spearman", self._ranked),
            ("ranking", self._ranked),
            ("contrastive", self._contrastive),
            ("hidden", self._hidden),
            ("orthogonality", self._regularizer),
            ("state_decorrelation", self._regularizer),
        ):
            if name in weights:
                terms[name] = function(name, student, inputs)
        loss = weighted_sum(terms, weights)
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}

    def _encode(self, inputs: dict[str, Any], hidden: bool, states: bool) -> StudentOutput:
        """The only student forward of a step."""
        features = {key: inputs[key] for key in ("input_ids", "attention_mask", "offsets") if key in inputs}
        wanted = {"output_hidden_states": True} if hidden else {}
        if states:
            wanted["collect_states"] = True
        if not wanted:
            return StudentOutput(self.model(features)["sentence_embedding"])
        with capture_output(student_encoder(self.model), **wanted) as captured:
            embedding = self.model(features)["sentence_embedding"]
        output = captured["output"]
        return StudentOutput(embedding, output.hidden_states or (), output.states if states else None)

    def _nested(self, loss_fn: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor, truncate_b: bool) -> Tensor:
        """`loss_fn(a, b)`, or its mean over the Matryoshka prefixes."""
        if not self.args.matryoshka_dims:
            return loss_fn(a, b)
        return E.matryoshka_loss(loss_fn, a, b, self.args.matryoshka_dims, truncate_teacher=truncate_b)

    def _matched(self, name: str, student: StudentOutput, inputs: dict[str, Any]) -> Tensor:
        """Terms that compare a row with the teacher's row."""
        loss_fn = E.cosine_loss if name == "cosine" else E.l2_loss
        teacher = inputs["teacher_embedding"]
        if self.embedding_head is None:
            return self._nested(loss_fn, student.embedding, teacher, True)
        head = self.embedding_head
        return self._nested(lambda s, t: loss_fn(head(s), t), student.embedding, teacher, False)

    def _everywhere(self, rows: Tensor) -> Tensor:
        """The rows of all processes, in the order of one process with the whole batch."""
        return gather_rows(rows) if self.args.gather_across_devices and self.model.training else rows

    def _relational(self, name: str, student: StudentOutput, inputs: dict[str, Any]) -> Tensor:
        """Terms over pairs or triples of rows; the widths may differ."""
        a, b = self._everywhere(student.embedding), self._everywhere(inputs["teacher_embedding"])
        if name == "rkd_angle":
            return self._nested(E.rkd_angle_loss, a[:_MAX_ANGLE], b[:_MAX_ANGLE], False)
        loss_fn = E.gram_loss if name == "gram" else E.rkd_distance_loss
        return self._nested(loss_fn, a, b, False)

    def _ranked(self, name: str, student: StudentOutput, inputs: dict[str, Any]) -> Tensor:
        """Ranks of similarities: of anchor to positive over the batch, or of each text to the other texts."""
        pairs = inputs["num_columns"] > 1
        a, b = self._everywhere(student.embedding), self._everywhere(inputs["teacher_embedding"])
        if not pairs:
            a, b = a[:_MAX_RANKED], b[:_MAX_RANKED]

        def scores(x: Tensor) -> Tensor:
            return E.row_similarities(x[0::2], x[1::2]) if pairs else E.batch_similarities(x)

        def loss_fn(s: Tensor, t: Tensor) -> Tensor:
            if name == "spearman":
                return spearman_loss(scores(s), scores(t), self.args.spearman_temperature)
            return pairwise_ranking_loss(scores(s), scores(t), self.args.ranking_margin, self.args.ranking_min_gap)

        return self._nested(loss_fn, a, b, False)

    def _contrastive(self, name: str, student: StudentOutput, inputs: dict[str, Any]) -> Tensor:
        """In-batch contrastive loss of anchors and positives."""
        if inputs["num_columns"] != 2:
            raise ValueError(f"The {name} term needs pairs: columns `anchor` and `positive`, or {name}_weight=0.")
        embedding, ids = self._everywhere(student.embedding), self._everywhere(inputs["positive_ids"])

        def loss_fn(anchor: Tensor, positive: Tensor) -> Tensor:
            scale, smoothing = self.args.contrastive_scale, self.args.contrastive_label_smoothing
            return E.contrastive_loss(anchor, positive, scale, smoothing, ids)

        return self._nested(loss_fn, embedding[0::2], embedding[1::2], True)

    def _hidden(self, name: str, student: StudentOutput, inputs: dict[str, Any]) -> Tensor:
        """Mean over the student's layers of the distance to their teacher layer."""
        losses = []
        for index, layer in enumerate(self.teacher_layers):
            own, target = student.hidden_states[index + 1], inputs["teacher_hidden_states"][layer + 1]
            if self.hidden_heads is not None:
                own = self.hidden_heads[index](own)
            losses.append(hidden_state_loss(own, target, inputs["attention_mask"], self.args.hidden_relative))
        return torch.stack(losses).mean()

    def _regularizer(self, name: str, student: StudentOutput, inputs: dict[str, Any]) -> Tensor:
        """Terms that need no teacher."""
        if name == "orthogonality":
            return orthogonality_loss(student_encoder(self.model).projection_weights())
        losses = [state_decorrelation_loss(fast, slow) for fast, slow in student.states]
        return torch.stack(losses).mean()


__all__ = ["DistillObjective", "Objective", "ProjectionHead", "StudentOutput", "capture_output", "student_encoder"]

"""Pure loss functions: tensors in, one scalar out; no model, no I/O, nothing but torch.

Every loss computes in float32 or better under any autocast, ignores padding, is 0 at equality where its definition
says so, and has a finite gradient for B = 1, zero vectors, identical rows and ties.
"""

from __future__ import annotations

from hf_distill.losses.combine import weight_at, weighted_sum
from hf_distill.losses.embedding import (
    batch_similarities,
    contrastive_loss,
    cosine_loss,
    gram_loss,
    l2_loss,
    matryoshka_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    row_similarities,
)
from hf_distill.losses.hidden import hidden_state_loss, layer_map, pca_projection
from hf_distill.losses.ranking import pairwise_ranking_loss, soft_rank, spearman_loss
from hf_distill.losses.regularizers import orthogonality_loss, state_decorrelation_loss

__all__ = [
    "batch_similarities",
    "contrastive_loss",
    "cosine_loss",
    "gram_loss",
    "hidden_state_loss",
    "l2_loss",
    "layer_map",
    "matryoshka_loss",
    "orthogonality_loss",
    "pairwise_ranking_loss",
    "pca_projection",
    "rkd_angle_loss",
    "rkd_distance_loss",
    "row_similarities",
    "soft_rank",
    "spearman_loss",
    "state_decorrelation_loss",
    "weight_at",
    "weighted_sum",
]

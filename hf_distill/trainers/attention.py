"""Which attention kernel a student is trained with on the CPU."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

_SHORT = 128
"""Width of a batch, in tokens, up to which plain matrix products are faster (`tests/benchmarks/bench_attention.py`)."""


def attention_kernel(input_ids: Tensor, recomputed: bool = False) -> AbstractContextManager[None]:
    """Chooses the kernel of `scaled_dot_product_attention` for a training step.

    On the CPU the backward pass of PyTorch's fused kernel takes more time than the rest of a small encoder when
    sentences are short; plain matrix products give the same values and gradients. For long texts, and on other devices,
    PyTorch chooses.

    Args:
        input_ids: Token ids `(B, T)`, `T` padding included.
        recomputed: Whether gradient checkpointing runs the forward pass again, outside of this context: the choice
            would differ there.

    Returns:
        What to run the forward pass in; the backward pass follows it.

    Example:
        >>> with attention_kernel(inputs["input_ids"]):
        ...     loss = objective(inputs, weights)["loss"]
    """
    if recomputed or input_ids.device.type != "cpu" or input_ids.shape[-1] > _SHORT:
        return nullcontext()
    return sdpa_kernel(SDPBackend.MATH)


__all__ = ["attention_kernel"]

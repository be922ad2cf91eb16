"""`embed_document` equals the full forward pass, at any chunk size, with activations that do not grow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_distill.models.deltanet import HfdDeltaNetModel

STREAMABLE = {
    "ridge": {"mixer": "ridge"},
    "ridge_plain": {"mixer": "ridge", "ridge_center": False, "beta_activation": "exp"},
    "ridge_rotary_conv": {"mixer": "ridge", "position_embedding_type": "rotary", "conv_size": 3, "local_size": 5},
    "causal": {"mixer": "delta_causal", "conv_size": 4, "local_size": 3},
    "causal_rotary": {"mixer": "delta_causal", "position_embedding_type": "rotary"},
    "causal_two_decay": {"mixer": "delta_causal", "memory": "two_decay", "use_flux": True, "use_coupling": True},
    "causal_joint": {"mixer": "delta_causal", "memory": "joint_residual", "use_output_gate": True, "conv_size": 2},
}


@pytest.mark.parametrize("name", list(STREAMABLE))
@pytest.mark.parametrize("chunk_size", [1, 7, 32])
def test_streaming_equals_the_full_forward(build: Callable[..., HfdDeltaNetModel], name: str, chunk_size: int) -> None:
    model = build(**STREAMABLE[name])
    ids = torch.randint(1, 50, (1, 23))
    full = model(ids).last_hidden_state.mean(1)
    torch.testing.assert_close(model.embed_document(ids, chunk_size), full, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", ["rotary", "none"])
def test_a_document_far_beyond_the_positions_of_its_source(
    build: Callable[..., HfdDeltaNetModel], positions: str
) -> None:
    """`max_position_embeddings` is 64 here, and no table has so many rows: the text may be of any length."""
    model = build(mixer="ridge", position_embedding_type=positions, conv_size=3, local_size=5)
    ids = torch.randint(1, 50, (1, 8192))
    with torch.no_grad():
        full = model(ids).last_hidden_state.mean(1)
        part = model(ids[:, :512]).last_hidden_state.mean(1)
    torch.testing.assert_close(model.embed_document(ids), full, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(part, full, atol=1e-3), "the end of the text must count"


class _Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return out


@pytest.mark.parametrize("name", ["ridge_rotary_conv", "causal_rotary"])
def test_activations_do_not_grow_with_the_text(build: Callable[..., HfdDeltaNetModel], name: str) -> None:
    model = build(dtype=torch.float32, **STREAMABLE[name])

    def largest(length: int) -> int:
        ids = torch.randint(1, 50, (1, length))
        with _Largest() as seen:
            model.embed_document(ids, chunk_size=32)
        return seen.elements

    short, long = largest(128), largest(512)
    assert long == short
    with _Largest() as seen:
        model(torch.randint(1, 50, (1, 1024)))
    assert seen.elements > 4 * short


def test_refusals_name_the_remedy(build: Callable[..., HfdDeltaNetModel]) -> None:
    ids = torch.randint(1, 50, (1, 9))
    with pytest.raises(ValueError, match="'ridge' or 'delta_causal'"):
        build(mixer="delta_flip").embed_document(ids)
    model = build()
    with pytest.raises(ValueError, match="one text"):
        model.embed_document(ids.expand(2, -1))
    with pytest.raises(ValueError, match="one text"):
        model.embed_document(ids[:, :0])
    with pytest.raises(ValueError, match="chunk_size"):
        model.embed_document(ids, chunk_size=0)
    with pytest.raises(ValueError, match="rotary"):
        model.embed_document(ids.expand(1, -1).repeat(1, 20))
    with pytest.raises(ValueError, match="model.eval"):
        model.train().embed_document(ids)
    model.eval()

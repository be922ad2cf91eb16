"""Short convolutions over time: with fixed taps, and with taps that every token chooses.

A depth-wise `nn.Conv1d` with three or four taps costs as much as the whole linear mixer on a CPU; k shifted multiply-adds
cost a fraction of that. [`short_conv`] is the fast op, [`short_conv_naive`] the same thing through `F.conv1d`.
[`dynamic_conv`] has taps per token and head and multiplies by band matrices; [`dynamic_conv_naive`] is its reference.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Tokens a band matrix: a text of up to 32 is one block, a longer one is cut into blocks of 16.
_SHORT, _BLOCK = 32, 16


class _ShiftedMultiplyAdd(torch.autograd.Function):
    """`y_t = sum_j w_j * x_{t - left + j}` with zeros outside; the backward pass is the same loop with the taps reversed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, left: int) -> Tensor:
        taps = weight.t().contiguous()  # (k, C): one contiguous row a tap
        ctx.left = left
        ctx.save_for_backward(x, taps)
        return _accumulate(x, taps, left)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, taps = ctx.saved_tensors
        size = taps.shape[0]
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = _accumulate(grad, taps.flip(0), size - 1 - ctx.left)
        if ctx.needs_input_grad[1]:
            length = x.shape[1]
            rows = []
            for tap in range(size):
                start, stop = _valid_range(length, tap - ctx.left)
                shifted = x[:, start + tap - ctx.left : stop + tap - ctx.left]
                rows.append((grad[:, start:stop] * shifted).sum((0, 1)))
            grad_weight = torch.stack(rows, dim=-1)
        return grad_x, grad_weight, None


def _valid_range(length: int, shift: int) -> tuple[int, int]:
    """Output positions t for which t + shift lies inside the sequence (an empty range when the tap reaches past it)."""
    start = min(max(0, -shift), length)
    return start, max(start, min(length, length - shift))


def _accumulate(x: Tensor, taps: Tensor, left: int) -> Tensor:
    out = x * taps[left]  # the tap on the position itself; the others only see a part of the sequence
    for tap in range(taps.shape[0]):
        shift = tap - left
        if shift != 0:
            start, stop = _valid_range(x.shape[1], shift)
            out[:, start:stop].addcmul_(x[:, start + shift : stop + shift], taps[tap])
    return out


def _left_reach(kernel_size: int, causal: bool) -> int:
    """How many earlier positions the first tap reaches: all of them when causal, half (rounded up for even k) otherwise."""
    return kernel_size - 1 if causal else kernel_size // 2


def short_conv(x: Tensor, weight: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Depth-wise convolution over time, causal or centered, that pads can neither feed nor receive.

    Args:
        x (`torch.Tensor` of shape `(B, T, C)`): The input.
        weight (`torch.Tensor` of shape `(C, k)`): One filter a channel, in the order of `F.conv1d`: the last tap reads the
            latest position. It is cast to the dtype of `x`.
        mask (`torch.Tensor` of shape `(B, T)`, *optional*): 1 or True at real tokens. Pads are read as zero and give zero.
        causal (`bool`): `True`: position t reads t-k+1 .. t. `False`: it reads t-k//2 .. t+(k-1)//2, for encoders.

    Returns:
        `torch.Tensor` of shape `(B, T, C)` in the dtype of `x`. To stream a causal convolution, put the last k-1 inputs of
        the chunk before in front of `x` and drop the first k-1 outputs.

    Raises:
        ValueError: If `weight` does not have one row a channel.
    """
    if weight.ndim != 2 or weight.shape[0] != x.shape[-1]:
        raise ValueError(f"`weight` has shape {tuple(weight.shape)}; expected (channels={x.shape[-1]}, kernel_size).")
    if mask is not None:
        mask = mask.to(x.dtype).unsqueeze(-1)
        x = x * mask
    out = _ShiftedMultiplyAdd.apply(x, weight.to(x.dtype), _left_reach(weight.shape[1], causal))
    return out if mask is None else out * mask


def short_conv_naive(x: Tensor, weight: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Reference for [`short_conv`]: the same arguments and result, through zero padding and `F.conv1d`."""
    mask = torch.ones_like(x[..., :1]) if mask is None else mask.to(x.dtype).unsqueeze(-1)
    kernel_size = weight.shape[1]
    left = _left_reach(kernel_size, causal)
    padded = F.pad((x * mask).transpose(1, 2), (left, kernel_size - 1 - left))
    out = F.conv1d(padded, weight.to(x.dtype).unsqueeze(1), groups=x.shape[-1])
    return out.transpose(1, 2) * mask


def dynamic_conv(x: Tensor, taps: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Convolution over time whose filter every token chooses for itself, one filter a head.

    Args:
        x (`torch.Tensor` of shape `(B, T, H, D)`): The input.
        taps (`torch.Tensor` of shape `(B, T, H, k)`): The filter at every position, in the order of [`short_conv`].
        mask (`torch.Tensor` of shape `(B, T)`, *optional*): 1 or True at real tokens. Pads are read as zero and give zero.
        causal (`bool`): As in [`short_conv`].

    Returns:
        `torch.Tensor` of shape `(B, T, H, D)` in the dtype of `x`.

    Raises:
        ValueError: If `taps` does not have one filter for every position and head.

    References:
        - Dynamic convolution: https://huggingface.co/papers/1901.10430 (there the taps go through a softmax; here not)
    """
    if taps.shape[:-1] != x.shape[:-1]:
        raise ValueError(f"`taps` has shape {tuple(taps.shape)}; expected (*{tuple(x.shape[:-1])}, kernel_size).")
    if mask is not None:
        mask = mask.to(x.dtype)[:, :, None, None]
        x, taps = x * mask, taps * mask
    return _by_band(x, taps.to(x.dtype), _left_reach(taps.shape[-1], causal))


def _by_band(x: Tensor, taps: Tensor, left: int) -> Tensor:
    """`y_t = sum_j w_{t,j} x_{t - left + j}` with zeros outside, as a matrix product per block of tokens.

    The taps of a block's row r stand in row r of a band matrix, from column r on, and meet the block's tokens and the
    k - 1 around it. For heads of 32 channels that is faster than a multiply-add per tap, whose inner loop is one head.
    """
    length, size = taps.shape[1], taps.shape[-1]
    block = length if length <= _SHORT else _BLOCK
    missing, width = -length % block, block + size - 1
    padded = F.pad(x.transpose(1, 2), (0, 0, left, missing + size - 1 - left))
    windows = padded.unfold(2, width, block).transpose(-1, -2)  # (B, H, blocks, width, D)
    rows = F.pad(taps.transpose(1, 2), (0, block, 0, missing)).unflatten(2, (-1, block))
    # (B, H, blocks, block, width + 1). Read as rows of width, each starts one column further right than the one above.
    band = rows.flatten(-2)[..., : block * width].unflatten(-1, (block, width))
    return (band @ windows).flatten(2, 3)[:, :, :length].transpose(1, 2)


def dynamic_conv_naive(x: Tensor, taps: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Reference for [`dynamic_conv`]: the same arguments and result, by unfolding a window around every position."""
    mask = torch.ones_like(x[..., :1, :1]) if mask is None else mask.to(x.dtype)[:, :, None, None]
    kernel_size = taps.shape[-1]
    left = _left_reach(kernel_size, causal)
    padded = F.pad(x * mask, (0, 0, 0, 0, left, kernel_size - 1 - left))
    windows = padded.unfold(1, kernel_size, 1)  # (B, T, H, D, k)
    return (windows * taps.unsqueeze(-2)).sum(-1) * mask

"""ONNX export of the DeltaNet encoder with a ridge mixer: dynamic batch and length, compared with onnxruntime.

The graph is the model's own forward pass with three operations replaced by equals that ONNX has: the Cholesky solve by
blocked Gauss-Jordan elimination (the matrices are positive definite, so no pivoting is needed), the convolutions by
padded shifts, and the sorting of padding to the end by a scatter that is always done.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_distill.hub.export import bare_model, load_student

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedModel

TOLERANCE = 2e-4
"""Largest difference to torch, relative to the largest entry, that the export lets pass."""
_BLOCK = 8
_OPSET = 18
_SHAPES = ((1, 3), (2, 17), (3, 64), (5, 1))
_INSTALL = "ONNX export needs onnx, onnxscript and onnxruntime: pip install 'hf_distill[onnx]'."


def export_onnx(
    source: SentenceTransformer | PreTrainedModel | str | Path, target: str | Path, *, check: bool = True
) -> Path:
    """Writes the student as one ONNX file; six layers take about a minute.

    Inputs are `input_ids` and `attention_mask`, both int64 `(batch, length)`, padded on either side. Outputs are
    `last_hidden_state` `(batch, length, width)` and, of a `SentenceTransformer`, `sentence_embedding` `(batch, dim)`.

    Args:
        source: A model, or the folder of one or of a run.
        target: The file to write, such as `onnx/model.onnx`.
        check: Run it with onnxruntime on several lengths and paddings, and compare with torch.

    Returns:
        The file.

    Raises:
        ImportError: If the extra `onnx` is not installed.
        ValueError: If the student is no DeltaNet, has another mixer than the ridge, or onnxruntime computes something
            else. Nothing is written then.

    Example:
        >>> export_onnx("runs/deltanet_minilm", "exported/onnx/model.onnx")
        PosixPath('exported/onnx/model.onnx')
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{_INSTALL} ({error})") from error
    model = load_student(source).model if isinstance(source, (str, Path)) else source
    graph = ExportableEncoder(copy.deepcopy(model).to("cpu").float()).eval()
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.onnx")
    try:
        _write(graph, temporary)
        if check:
            compare_onnx(temporary, graph)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


class ExportableEncoder(nn.Module):
    """A student as a function of two tensors.

    Args:
        model: A `SentenceTransformer` over an `HfdDeltaNetModel` with a ridge mixer, or the bare model.

    Raises:
        ValueError: If it is another model.
    """

    def __init__(self, model: SentenceTransformer | PreTrainedModel) -> None:
        super().__init__()
        encoder = bare_model(model)
        if encoder is None or encoder.config.model_type != "hfd_deltanet":
            raise ValueError(
                "Only DeltaNet students (hfd_deltanet) are exported here. For other encoders use optimum: "
                "`optimum-cli export onnx`."
            )
        if encoder.config.mixer != "ridge":
            raise ValueError(
                f"mixer={encoder.config.mixer!r} cannot be exported to ONNX: it loops over chunks, whose number depends on "
                "the length. Only mixer='ridge' can."
            )
        self.encoder = encoder
        self.after = nn.ModuleList([] if model is encoder else list(model)[1:])
        self.sorts = encoder.config.conv_size > 0 or encoder.config.local_size > 0

    @property
    def output_names(self) -> list[str]:
        """Names of what `forward` returns."""
        return ["last_hidden_state", *(["sentence_embedding"] if len(self.after) else [])]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Encodes a batch.

        Args:
            input_ids: `(B, T)`.
            attention_mask: `(B, T)`, 1 at real tokens.

        Returns:
            Hidden states `(B, T, hidden_size)` and, with modules after the encoder, embeddings `(B, D)`.
        """
        place, ids, mask = None, input_ids, attention_mask
        if self.sorts:  # real tokens to the front, as the model does where padding comes before them
            real = attention_mask.cumsum(1)
            padding = (1 - attention_mask).cumsum(1)
            place = torch.where(attention_mask > 0, real, real[:, -1:] + padding) - 1
            ids = torch.zeros_like(input_ids).scatter(1, place, input_ids)
            mask = torch.zeros_like(attention_mask).scatter(1, place, attention_mask)
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        if place is not None:
            hidden = hidden.gather(1, place[:, :, None].expand(-1, -1, hidden.shape[-1]))
        if not len(self.after):
            return (hidden,)
        features = {"token_embeddings": hidden, "attention_mask": attention_mask}
        for module in self.after:
            features = module(features)
        return hidden, features["sentence_embedding"]


def solve_by_elimination(matrix: Tensor, rhs: Tensor) -> Tensor:
    """`A^-1 B` for symmetric positive definite A by blocked Gauss-Jordan elimination, in operations that ONNX has.

    Both sides are divided by A's mean diagonal first: the elimination subtracts 1 from pivots, which must not be large.

    Args:
        matrix: `(..., D, D)`.
        rhs: `(..., D, N)`.

    Returns:
        `(..., D, N)`.
    """
    size = matrix.shape[-1]
    eye = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    scale = (matrix * eye).sum((-1, -2), keepdim=True) / size
    return _eliminate(torch.cat([matrix, rhs], dim=-1) / scale, size, min(_BLOCK, size))[..., size:]


def _eliminate(joined: Tensor, size: int, block: int) -> Tensor:
    """Turns the left `size` columns of `(..., size, size + N)` into the identity, `block` columns at a time."""
    eye = torch.eye(size, dtype=joined.dtype, device=joined.device)
    for start in range(0, size, block):
        stop = min(start + block, size)
        here = torch.tensor(range(start, stop), device=joined.device)
        rows, columns = joined.index_select(-2, here), joined.index_select(-1, here)
        pivot = rows.index_select(-1, here)
        if block == 1:
            joined = joined - (columns - eye[:, start:stop]) * (rows / pivot)
        else:
            own = torch.cat([pivot, eye[start:stop, start:stop].expand_as(pivot)], dim=-1)
            inverse = _eliminate(own, stop - start, 1)[..., stop - start :]
            joined = joined - (columns - eye[:, start:stop]) @ (inverse @ rows)
    return joined


def _shifted_sum(x: Tensor, taps: list[Tensor], left: int) -> Tensor:
    """`y_t = sum_j taps[j] x_{t - left + j}` along dimension 1, with zeros outside."""
    length, size = x.shape[1], len(taps)
    padded = F.pad(x, [0, 0] * (x.ndim - 2) + [left, size - 1 - left])
    return sum(padded[:, tap : tap + length] * weight for tap, weight in enumerate(taps))


def _short_conv(x: Tensor, weight: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """As `ops_conv.short_conv`, by padding."""
    real = torch.ones_like(x[..., :1]) if mask is None else mask.to(x.dtype).unsqueeze(-1)
    left = weight.shape[1] - 1 if causal else weight.shape[1] // 2
    return _shifted_sum(x * real, list(weight.unbind(1)), left) * real


def _dynamic_conv(x: Tensor, taps: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """As `ops_conv.dynamic_conv`, by padding."""
    real = torch.ones_like(x[..., :1, :1]) if mask is None else mask.to(x.dtype)[:, :, None, None]
    left = taps.shape[-1] - 1 if causal else taps.shape[-1] // 2
    return _shifted_sum(x * real, [tap.unsqueeze(-1) for tap in taps.unbind(-1)], left) * real


@contextmanager
def exportable_operations(encoder: PreTrainedModel) -> Iterator[None]:
    """Within, the modules that the encoder's code lives in (a package, or a folder on the Hub) use the equals above.

    Args:
        encoder: The DeltaNet encoder.
    """
    modeling = sys.modules[type(encoder).__module__]
    mixers = sys.modules[type(encoder.layers[0].mixer).__module__]
    ridge = sys.modules[mixers.ridge_solve.__module__]
    with ExitStack() as stack:
        for module, name, replacement in (
            (modeling, "_has_padding_before_tokens", lambda mask: False),
            (mixers, "short_conv", _short_conv),
            (mixers, "dynamic_conv", _dynamic_conv),
            (ridge, "_fewer_tokens_than_channels", lambda keys: False),  # one graph for all lengths
            (ridge, "_SolvePositiveDefinite", SimpleNamespace(apply=solve_by_elimination)),
        ):
            # `create`: a student carries the code it was saved with, which may be older and lack a name.
            stack.enter_context(mock.patch.object(module, name, replacement, create=True))
        yield


def _write(graph: ExportableEncoder, path: Path) -> None:
    """Traces the graph with dynamic axes and writes it without a word about the machine it was traced on."""
    import onnx

    config = graph.encoder.config
    limit = config.max_position_embeddings if config.position_embedding_type == "absolute" else 2**20
    batch, length = torch.export.Dim("batch", max=2**16), torch.export.Dim("length", max=limit)
    ids = torch.arange(2 * min(16, limit)).reshape(2, -1) % config.vocab_size
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    with torch.no_grad(), exportable_operations(graph.encoder):
        program = torch.onnx.export(
            graph,
            (ids, mask),
            dynamo=True,
            opset_version=_OPSET,
            input_names=["input_ids", "attention_mask"],
            output_names=graph.output_names,
            dynamic_shapes={"input_ids": {0: batch, 1: length}, "attention_mask": {0: batch, 1: length}},
            verbose=False,
        )
    proto = program.model_proto
    for part in (proto, proto.graph, *proto.functions):
        del part.metadata_props[:]
    for node in [*proto.graph.node, *(node for function in proto.functions for node in function.node)]:
        del node.metadata_props[:]  # stack traces with local paths
        node.doc_string = ""
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del value.metadata_props[:]
    onnx.save(proto, path)


@torch.no_grad()
def compare_onnx(path: str | Path, graph: ExportableEncoder) -> float:
    """Runs a file with onnxruntime and the encoder with torch, its own operations, on several lengths and paddings.

    Args:
        path: The ONNX file.
        graph: What it was exported from.

    Returns:
        The largest difference, relative to the largest entry.

    Raises:
        ValueError: If it is above `TOLERANCE`.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    generator, worst = torch.Generator().manual_seed(0), 0.0
    for rows, length in _SHAPES:
        ids = torch.randint(0, graph.encoder.config.vocab_size, (rows, length), generator=generator)
        for side in ("none", "right", "left", "inside"):
            mask = _mask(rows, length, side)
            found = session.run(graph.output_names, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
            for name, ours, theirs in zip(graph.output_names, found, _reference(graph, ids, mask), strict=True):
                ours, theirs = torch.from_numpy(ours), theirs
                if name == "last_hidden_state":  # what stands at padding means nothing
                    ours, theirs = ours[mask.bool()], theirs[mask.bool()]
                gap = float((ours - theirs).abs().max() / theirs.abs().max())
                worst = max(worst, gap)
                if not gap <= TOLERANCE:
                    raise ValueError(
                        f"onnxruntime computes something else than torch: {name} differs by {gap:.2g} (relative) for "
                        f"{rows} texts of {length} tokens with padding {side!r}. The file was not written."
                    )
    return worst


def _mask(rows: int, length: int, side: str) -> Tensor:
    """An attention mask whose every row has another number of real tokens, at least one."""
    mask = torch.ones(rows, length, dtype=torch.long)
    for row in range(rows):
        gap = min(row * 3, length - 1)
        if side == "right":
            mask[row, length - gap :] = 0
        elif side == "left":
            mask[row, :gap] = 0
        elif side == "inside":
            mask[row, 1 : 1 + gap] = 0
    return mask


def _reference(graph: ExportableEncoder, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """The same by the encoder itself, which sorts its padding where it must."""
    hidden = graph.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    features = {"token_embeddings": hidden, "attention_mask": mask}
    for module in graph.after:
        features = module(features)
    return (hidden, features["sentence_embedding"]) if len(graph.after) else (hidden,)


__all__ = [
    "TOLERANCE",
    "ExportableEncoder",
    "compare_onnx",
    "export_onnx",
    "exportable_operations",
    "solve_by_elimination",
]

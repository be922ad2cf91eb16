"""How one shard of texts becomes arrays: with a model (sorted, batched by tokens) or with a plain function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from hf_distill.teachers.batching import token_batches
from hf_distill.teachers.live import LiveTeacher
from hf_distill.teachers.manifest import TeacherSpec

Advance = Callable[[np.ndarray, int], None]
EmbedFunction = Callable[[list[str]], "np.ndarray | torch.Tensor"]


@dataclass(frozen=True)
class ShardInput:
    """The rows of one shard.

    Args:
        texts: The texts.
        first_row: Row number of the first text in the whole job, for error messages.
        input_ids: Token ids of each text, if they were given from outside.
    """

    texts: list[str]
    first_row: int
    input_ids: list[np.ndarray] | None = None


@dataclass(frozen=True)
class ModelEncoder:
    """Encode shards with a model.

    Args:
        teacher: The live teacher.
        spec: What to compute.
        tokens_per_batch: Padded tokens of a batch.
        batch_size: Rows of a batch for a teacher without tokens of its own (a static table).
    """

    teacher: LiveTeacher
    spec: TeacherSpec
    tokens_per_batch: int
    batch_size: int

    def encode(self, shard: ShardInput, advance: Advance) -> dict[str, np.ndarray]:
        """Encode one shard.

        Args:
            shard: The rows.
            advance: Called after every batch with its rows (counted from the shard's start) and its tokens.

        Returns:
            The shard's arrays without the text hashes (see [`save_shard`]).
        """
        if not self.teacher.is_transformer:
            return FunctionEncoder(self._embed, self.spec, self.batch_size).encode(shard, advance)
        rows, prompt_length = shard.input_ids, None
        if rows is None:
            rows, prompt_length = self.teacher.tokenize(shard.texts, self.spec.prompt)
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        layers = self.spec.hidden_layers
        out = _Collector(shard, self.spec, {"token_count": offsets[-1:].copy()})
        if layers:
            out.arrays["offsets"] = offsets
        for batch in token_batches(lengths, self.tokens_per_batch):
            ids, mask = self.teacher.pad([rows[i] for i in batch])
            signal = self.teacher.forward(ids, mask, prompt_length, hidden_states=bool(layers))
            out.put("embedding", len(rows), batch, finish_embeddings(signal.embedding, self.spec), owners=batch)
            for layer in layers:
                states = signal.hidden_states[layer]
                tokens = np.concatenate([np.arange(offsets[i], offsets[i + 1]) for i in batch])
                states = states[mask.bool().to(states.device)].float()
                out.put(f"hidden_{layer}", int(offsets[-1]), tokens, states, np.repeat(batch, lengths[batch]))
            advance(batch, int(lengths[batch].sum()))
        return out.arrays

    def _embed(self, texts: list[str]) -> np.ndarray:
        return self.teacher.embed(texts, self.spec.prompt)


@dataclass(frozen=True)
class FunctionEncoder:
    """Encode shards with a plain function, in the order of the texts; also serves vectors computed elsewhere.

    The function gets the texts as they are: the prompt that its spec names is its own affair. Truncation and
    normalisation are applied here, as the spec says.

    Args:
        embed: Takes a list of texts, returns one vector each, ``(n, D)``.
        spec: What to compute.
        batch_size: Texts of one call.
    """

    embed: EmbedFunction
    spec: TeacherSpec
    batch_size: int

    def encode(self, shard: ShardInput, advance: Advance) -> dict[str, np.ndarray]:
        """Encode one shard; see [`ModelEncoder.encode`]."""
        out = _Collector(shard, self.spec, {"token_count": np.zeros(1, dtype=np.int64)})
        rows = len(shard.texts)
        for start in range(0, rows, self.batch_size):
            batch = np.arange(start, min(start + self.batch_size, rows))
            answer = self.embed([shard.texts[i] for i in batch])
            vectors = answer.detach().cpu() if isinstance(answer, torch.Tensor) else torch.from_numpy(np.array(answer))
            if vectors.ndim != 2 or len(vectors) != len(batch):
                raise ValueError(
                    f"The teacher {self.spec.teacher!r} gave an array of shape {tuple(vectors.shape)} for {len(batch)} "
                    f"texts from row {shard.first_row + start} on; it must be ({len(batch)}, D)."
                )
            out.put("embedding", rows, batch, finish_embeddings(vectors.float(), self.spec), owners=batch)
            advance(batch, 0)
        return out.arrays


def finish_embeddings(embeddings: torch.Tensor, spec: TeacherSpec) -> torch.Tensor:
    """Truncate and then normalise embeddings ``(N, D)`` as the spec says."""
    if spec.truncate_dim is not None:
        if spec.truncate_dim > embeddings.shape[1]:
            raise ValueError(
                f"truncate_dim is {spec.truncate_dim}, but the teacher {spec.teacher!r} gives "
                f"{embeddings.shape[1]} dimensions."
            )
        embeddings = embeddings[:, : spec.truncate_dim]
    return torch.nn.functional.normalize(embeddings, dim=1) if spec.normalize else embeddings


@dataclass
class _Collector:
    """Arrays of one shard while they fill up; the gate through which no NaN or infinity passes."""

    shard: ShardInput
    spec: TeacherSpec
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def put(self, name: str, size: int, places: np.ndarray, values: torch.Tensor, owners: np.ndarray) -> None:
        """Store float32 values ``(n, D)`` at ``places`` of the float16 array ``name`` of ``size`` rows.

        Args:
            name: The array.
            size: Its number of rows.
            places: Where each value goes.
            values: The values.
            owners: The text that each value belongs to, for error messages.

        Raises:
            ValueError: If a value is not finite, or too large for float16, or the widths differ.
        """
        half = values.to(torch.float16)
        if not bool(torch.isfinite(half).all()):
            self._refuse(name, values, owners)
        found = half.cpu().numpy()
        array = self.arrays.setdefault(name, np.zeros((size, found.shape[1]), dtype=np.float16))
        if array.shape[1] != found.shape[1]:
            raise ValueError(
                f"The teacher {self.spec.teacher!r} gave {found.shape[1]} dimensions from row "
                f"{self.shard.first_row + int(owners[0])} on, and {array.shape[1]} before."
            )
        array[places] = found

    def _refuse(self, name: str, values: torch.Tensor, owners: np.ndarray) -> None:
        bad = (~torch.isfinite(values.to(torch.float16))).any(dim=1)
        first = int(torch.nonzero(bad)[0])
        owner = int(owners[first])
        where = f"{name} of row {self.shard.first_row + owner}, which starts {self.shard.texts[owner][:60]!r}"
        if bool(torch.isfinite(values[first]).all()):
            raise ValueError(
                f"The teacher {self.spec.teacher!r} gives {float(values[first].abs().max()):.3g} in {where}: too large "
                "for float16 (65504). Normalise the embeddings, or leave out this hidden layer."
            )
        raise ValueError(
            f"The teacher {self.spec.teacher!r} gives NaN or infinity in {where}. Check its weights, try "
            f"dtype='float32' (now {self.spec.dtype!r}), or drop the row. Finished shards are kept."
        )

"""The encoder behind every evaluation: the same vectors as `SentenceTransformer.encode`, in a fraction of the time.

sentence-transformers encodes fixed numbers of texts in float32, the same text as often as it is given. Here every
distinct text is encoded once, texts of like length share a batch, batches hold a like number of tokens instead of
texts, and the transformer runs in bfloat16 where the machine computes in it. `dtype="float32"` turns the last point
off; published test scores are computed so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_distill.teachers.batching import token_batches
from hf_distill.teachers.live import best_dtype

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

DTYPES = ("auto", "float32", "bfloat16", "float16")
_CPU_TOKENS, _ACCELERATOR_TOKENS = 1024, 65536  # measured: larger batches leave a CPU's cache
_TOKENIZE_ROWS = 1024

Features = Mapping[str, Any]


def encode_sorted(
    model: SentenceTransformer,
    texts: Sequence[str],
    *,
    dtype: str = "auto",
    tokens_per_batch: int | None = None,
    prompt: str | None = None,
    prompt_name: str | None = None,
) -> np.ndarray:
    """Embed texts as `model.encode(texts)` does, but each distinct text once, in batches of like length.

    Args:
        model (`SentenceTransformer`): any model that sentence-transformers can run, static tables included. It is put
            into evaluation mode for the call, and back.
        texts (`Sequence[str]`): `N` texts; equal ones are encoded once.
        dtype (`str`, *optional*, defaults to `"auto"`): `"auto"` (bfloat16 where the device computes in it natively,
            else float32), `"float32"`, `"bfloat16"` or `"float16"`. Half precision is autocast around the first
            module only (the transformer); pooling and what follows run in float32.
        tokens_per_batch (`int`, *optional*): tokens in a batch, padding included; 1,024 on CPU, 65,536 elsewhere.
        prompt (`str`, *optional*): text put before each text.
        prompt_name (`str`, *optional*): name of one of the model's own prompts; its default prompt, if any, otherwise.

    Returns:
        `np.ndarray`: float32 `(N, D)`, in the order of `texts`.

    Raises:
        ValueError: an unknown `dtype` or `prompt_name`, or a text for which the model gives NaN or infinity.

    Example:
        >>> vectors = encode_sorted(model, ["a cat", "a dog", "a cat"])
        >>> vectors.shape
        (3, 384)
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; choose one of {', '.join(map(repr, DTYPES))}.")
    precision = best_dtype(model.device) if dtype == "auto" else dtype
    prompt = _prompt_text(model, prompt, prompt_name)
    unique = sorted(dict.fromkeys(texts), key=len, reverse=True)
    if not unique:
        return np.empty((0, model.get_embedding_dimension() or 0), dtype=np.float32)
    budget = tokens_per_batch or (_CPU_TOKENS if model.device.type == "cpu" else _ACCELERATOR_TOKENS)
    was_training = model.training
    model.eval()
    parts, orders = [], []
    try:
        # one autocast context around all batches: it keeps the weights that it has cast
        with torch.inference_mode(), _autocast(model.device, precision):
            for start in range(0, len(unique), _TOKENIZE_ROWS):
                features = model.preprocess(unique[start : start + _TOKENIZE_ROWS], prompt=prompt)
                for rows, batch in _batches(features, budget):
                    parts.append(_forward(model, batch).cpu().numpy())
                    orders.append(rows + start)
    finally:
        model.train(was_training)
    vectors = np.concatenate(parts)
    order = np.concatenate(orders)
    _require_finite(vectors, [unique[i] for i in order])
    row_of = {unique[i]: row for row, i in enumerate(order)}
    return vectors[[row_of[text] for text in texts]]


def _prompt_text(model: SentenceTransformer, prompt: str | None, prompt_name: str | None) -> str | None:
    """Resolve the prompt as `SentenceTransformer.encode` does."""
    if prompt is not None:
        return prompt
    name = prompt_name if prompt_name is not None else model.default_prompt_name
    if name is None:
        return None
    if name not in model.prompts:
        raise ValueError(f"The model has no prompt {name!r}; it has {', '.join(model.prompts) or 'none'}.")
    return model.prompts[name]


def _batches(features: Features, budget: int) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Cut tokenised texts into batches of at most `budget` tokens, and the padding down to each batch's longest text.

    Features without a padded token matrix (a static table has ragged ids and offsets) stay one batch.
    """
    mask = features.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
        yield np.arange(_count_rows(features)), dict(features)
        return
    lengths = mask.sum(dim=1).cpu().numpy()
    for rows in token_batches(lengths, budget):
        index = torch.from_numpy(rows)
        columns = mask[index].any(dim=0)  # works for padding on either side
        batch = {}
        for name, value in features.items():
            if isinstance(value, torch.Tensor) and value.dim() and value.shape[0] == mask.shape[0]:
                value = value[index]
                if value.dim() > 1 and value.shape[1] == mask.shape[1]:
                    value = value[:, columns]
            batch[name] = value
        yield rows, batch


def _count_rows(features: Features) -> int:
    """Count the texts of features that are not padded: by offsets, else by the first dimension."""
    rows = features.get("offsets", features.get("input_ids"))
    if rows is None:
        raise ValueError(
            f"The model's first module gives {sorted(features)}: no attention_mask, offsets or input_ids to batch by."
        )
    return len(rows)


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    """Make the autocast context of a precision, an idle one for float32."""
    half = precision != "float32"
    return torch.autocast(device.type, dtype=getattr(torch, precision) if half else None, enabled=half)


def _forward(model: SentenceTransformer, batch: dict[str, Any]) -> torch.Tensor:
    """Run the model on one batch, under autocast its first module only; float32 `(B, D)`."""
    device = model.device
    features = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    if not torch.is_autocast_enabled(device.type):
        features = model(features)
    else:
        first, *rest = model
        features = first(features)
        half = (torch.bfloat16, torch.float16)
        features = {
            name: value.float() if isinstance(value, torch.Tensor) and value.dtype in half else value
            for name, value in features.items()
        }
        with torch.autocast(device.type, enabled=False):
            for module in rest:
                features = module(features)
    return features["sentence_embedding"].float()[:, : model.truncate_dim]


def _require_finite(vectors: np.ndarray, texts: Sequence[str]) -> None:
    """Refuse NaN and infinity: every score computed from them would be NaN without a reason."""
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise ValueError(
            f"The model gives NaN or infinity for {len(bad)} of {len(texts)} texts, first for {texts[bad[0]][:80]!r}. "
            "Its weights are damaged or training has diverged: load an earlier checkpoint or lower the learning rate."
        )


def count_tokens(
    tokenizer: PreTrainedTokenizerBase | Tokenizer, texts: Iterable[str], max_length: int | None = None
) -> np.ndarray:
    """Count the tokens of texts, special tokens included where the tokenizer adds them.

    Args:
        tokenizer (`PreTrainedTokenizerBase` or `tokenizers.Tokenizer`): the tokenizer, `model.tokenizer` for instance.
        texts (`Iterable[str]`): `N` texts.
        max_length (`int`, *optional*): longer texts count as so many, as a model that truncates sees them.

    Returns:
        `np.ndarray`: int64 `(N,)`.
    """
    from tokenizers import Tokenizer

    texts = list(texts)
    if not texts:
        return np.empty(0, dtype=np.int64)
    if isinstance(tokenizer, Tokenizer):
        rows = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    else:
        rows = tokenizer(texts, padding=False, truncation=False, verbose=False)["input_ids"]
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    return lengths if max_length is None else np.minimum(lengths, max_length)


def normalize_rows(vectors: np.ndarray) -> np.ndarray:
    """Scale rows to length one, float32 `(N, D)`; rows of zeros stay zero."""
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

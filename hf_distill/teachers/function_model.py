"""A teacher that is a plain function, as a sentence-transformers model: what scores a model then scores it, too.

It has no weights of its own: its size is not known here, and it stays on the CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_distill.teachers.encoders import EmbedFunction, finish_embeddings
from hf_distill.teachers.manifest import TeacherSpec

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedTokenizerBase


class FunctionModule(nn.Module):
    """The first module of such a model: texts go in, and come out as vectors.

    Args:
        embed: Takes a list of texts, returns one vector each, `(N, D)`.
        spec: What identifies it; truncation and normalisation are applied as it says.
        tokenizer: What counts its tokens.
        width: Of its vectors, `D`.

    Attributes:
        identity: The fingerprint of the spec as a parameter that never trains: the hash of the model's weights, under
            which its scores are kept, is then the function's.
    """

    def __init__(
        self, embed: EmbedFunction, spec: TeacherSpec, tokenizer: PreTrainedTokenizerBase, width: int
    ) -> None:
        super().__init__()
        self.embed, self.spec, self.tokenizer, self.width = embed, spec, tokenizer, width
        self.max_seq_length = spec.max_seq_length
        digest = list(bytes.fromhex(spec.fingerprint))
        self.identity = nn.Parameter(torch.tensor(digest, dtype=torch.float32), requires_grad=False)

    def get_embedding_dimension(self) -> int:
        """Width of the vectors."""
        return self.width

    def preprocess(self, inputs: list[str], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Carries the texts on: the function cuts them into tokens itself.

        Args:
            inputs: The texts.
            prompt: Text put before each.
            **kwargs: Of other models' tokenizers; a function has no such options.

        Returns:
            `texts`, and the number of each as `input_ids`, `(N, 1)`, for those who count the rows.
        """
        return {"texts": [(prompt or "") + text for text in inputs], "input_ids": torch.arange(len(inputs))[:, None]}

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        """Adds the vectors of the texts as `sentence_embedding`, `(N, D)`, float32."""
        answer = self.embed(features["texts"])
        vectors = answer if isinstance(answer, Tensor) else torch.from_numpy(np.array(answer))
        vectors = finish_embeddings(vectors.float(), self.spec).to(self.identity.device)
        return {**features, "sentence_embedding": vectors}


def function_model(embed: EmbedFunction, spec: TeacherSpec, tokenizer: PreTrainedTokenizerBase) -> SentenceTransformer:
    """Wraps a teacher that is a plain function; it is asked once, for the width of its vectors.

    Args:
        embed: Takes a list of texts, returns one vector each.
        spec: What identifies it.
        tokenizer: What counts its tokens.

    Returns:
        A model that encodes, on the CPU. It cannot be saved or trained.

    Example:
        >>> embed, spec = use_multilingual()
        >>> function_model(embed, spec, use_tokenizer()).encode(["Merhaba dünya."]).shape
        (1, 512)
    """
    from sentence_transformers import SentenceTransformer

    width = spec.truncate_dim or np.shape(embed(["a"]))[1]
    return SentenceTransformer(modules=[FunctionModule(embed, spec, tokenizer, width)], device="cpu")


__all__ = ["FunctionModule", "function_model"]

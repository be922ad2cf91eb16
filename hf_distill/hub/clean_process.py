"""What a student says to a stranger: its folder loaded in a process that cannot import hf_distill, compared bit for bit.

This file is both sides. `check_in_clean_process` starts a fresh interpreter on this very source, which blocks hf_distill,
loads the folder with `trust_remote_code=True` and writes down what it computed. So it imports nothing of the package.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SENTENCES = "SentenceTransformer"
_TEXTS_FILE, _OUTPUTS_FILE = "texts.json", "outputs.safetensors"
_BLOCKED = "hf_distill"
_LENGTH = 32
_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "PYTHONPATH")


@torch.no_grad()
def model_output(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Tensor:
    """The first output (hidden states or logits) of a bare model.

    Args:
        model: On the CPU, in evaluation mode.
        tokenizer: Its tokenizer; without a padding token only the first text is used.
        texts: Some texts of different lengths.

    Returns:
        `(B, T, ...)`.
    """
    texts = list(texts) if tokenizer.pad_token is not None else list(texts[:1])
    length = min(_LENGTH, tokenizer.model_max_length)
    batch = tokenizer(
        texts, padding=tokenizer.pad_token is not None, truncation=True, max_length=length, return_tensors="pt"
    )
    return model(**batch)[0].contiguous()


def sentence_output(model: SentenceTransformer, texts: Sequence[str]) -> Tensor:
    """The embeddings `(B, D)` of a model on the CPU."""
    return model.encode(list(texts), convert_to_tensor=True, show_progress_bar=False).contiguous()


@contextmanager
def one_thread() -> Iterator[None]:
    """Both sides compute with one thread: the order of a sum may depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_in_clean_process(
    folder: str | Path, texts: Sequence[str], expected: dict[str, Tensor], timeout: float = 900
) -> None:
    """Loads a folder where hf_distill cannot be imported, and compares what it computes with what it should.

    Args:
        folder: A self-contained student.
        texts: What to run it on.
        expected: For `"SentenceTransformer"` the `sentence_output`, for `"AutoModel"` (or another Auto class) the
            `model_output`, computed here on the same texts by the model that was exported, under `one_thread`.
        timeout: Seconds after which the other process is given up.

    Raises:
        ValueError: If the folder cannot be loaded there, or an output differs in any bit.
    """
    from safetensors.torch import load_file

    folder = Path(folder).resolve()
    with tempfile.TemporaryDirectory(prefix="hf-distill-clean-") as work:
        (Path(work) / _TEXTS_FILE).write_text(json.dumps(list(texts)), encoding="utf-8")
        environment = {key: value for key, value in os.environ.items() if key not in _SECRETS}
        environment |= {"HF_HOME": work, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment |= {"HF_MODULES_CACHE": str(Path(work) / "modules")}
        source = Path(__file__).read_text(encoding="utf-8")
        command = [sys.executable, "-c", source, str(folder), work, *expected]
        try:
            done = subprocess.run(
                command, cwd=work, env=environment, capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ValueError(
                f"The exported student did not load within {timeout:.0f} s in a clean process."
            ) from error
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            raise ValueError(
                "The exported student does not load where hf_distill is not installed:\n  "
                + "\n  ".join(lines[-6:]).replace(str(folder), folder.name)
                + "\nIts model files may import only torch, transformers, the standard library and each other."
            )
        found = load_file(Path(work) / _OUTPUTS_FILE)
    for name, value in expected.items():
        if not torch.equal(found[name], value.cpu()):
            raise ValueError(
                f"The exported student computes something else than the model it was made of: {name} {_gap(found[name], value)}. "
                "The code, the weights or the tokenizer in the folder are not the model's."
            )


def _gap(found: Tensor, expected: Tensor) -> str:
    """How two outputs differ."""
    if found.shape != expected.shape:
        return f"has the shape {tuple(found.shape)} instead of {tuple(expected.shape)}"
    return f"differs by up to {(found.double() - expected.cpu().double()).abs().max():.3g}"


class _NoLibrary:
    """Finder of modules that finds no hf_distill."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Refuses the library and leaves the rest to the next finder."""
        if name.split(".")[0] == _BLOCKED:
            raise ImportError(f"{_BLOCKED} is blocked in this process")


def _main(folder: str, work: str, *names: str) -> None:
    """The other process: loads the folder in every way asked for and writes the outputs down."""
    sys.meta_path.insert(0, _NoLibrary())
    import transformers
    from safetensors.torch import save_file
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    texts, outputs = json.loads((Path(work) / _TEXTS_FILE).read_text(encoding="utf-8")), {}
    for name in names:
        if name == SENTENCES:
            outputs[name] = sentence_output(SentenceTransformer(folder, trust_remote_code=True, device="cpu"), texts)
            continue
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        model = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True).eval()
        outputs[name] = model_output(model, tokenizer, texts)
    if _BLOCKED in sys.modules:
        raise RuntimeError(f"{_BLOCKED} was imported all the same")
    save_file(outputs, Path(work) / _OUTPUTS_FILE)


if __name__ == "__main__":
    _main(*sys.argv[1:])

__all__ = ["SENTENCES", "check_in_clean_process", "model_output", "one_thread", "sentence_output"]

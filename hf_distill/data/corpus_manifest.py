"""The table of contents of an encoded corpus: which tokenizers, which teacher, which limit, and what was left out."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_distill.teachers.files import replace_file
from hf_distill.teachers.fingerprint import sha256_of_tokenizer

CORPUS_NAME = "corpus.json"
FORMAT = 1
# Tells apart tokenizers that differ only in what they put around a text.
_PROBE = "Merhaba dünya, 2 kitap okudum."


@dataclass(frozen=True)
class TokenizerInfo:
    """One tokenizer of a corpus, and what it made of the texts.

    Args:
        name: Of its class.
        sha256: Over its definition and the ids of a fixed sentence.
        vocab_size: Ids that it may give: the largest one and one more.
        pad_token_id: What a collator pads with.
        tokens: Over all rows that were kept.
        longest: Tokens of the longest row that was kept.
        over_limit: Rows that were left out because of this tokenizer's length; a row may count for several.
        empty: Rows that were left out because this tokenizer gave no token.
    """

    name: str
    sha256: str
    vocab_size: int
    pad_token_id: int
    tokens: int = 0
    longest: int = 0
    over_limit: int = 0
    empty: int = 0

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> TokenizerInfo:
        """Describe a tokenizer.

        Raises:
            ValueError: If it has no padding token.
        """
        if tokenizer.pad_token_id is None:
            raise ValueError("it has no padding token; set one: `tokenizer.pad_token = tokenizer.eos_token`")
        digest = hashlib.sha256(sha256_of_tokenizer(tokenizer).encode())
        digest.update(json.dumps(tokenizer(_PROBE)["input_ids"]).encode())
        vocab_size = max(tokenizer.get_vocab().values()) + 1
        return cls(type(tokenizer).__name__, digest.hexdigest(), vocab_size, int(tokenizer.pad_token_id))


@dataclass(frozen=True)
class CorpusShard:
    """One file of a corpus: its name, its rows and its SHA-256."""

    file: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class CorpusManifest:
    """The contents of a folder that [`encode_corpus`] wrote.

    Args:
        tokenizers: By the name in front of `_input_ids`.
        teacher: The teacher's identity: `teacher` (name), `fingerprint`, `prompt` and, as far as known, the other fields
            of its `TeacherSpec`.
        dim: Width of the teacher's vectors.
        dtype: Of the teacher's vectors.
        max_tokens: Longest row in tokens.
        add_special_tokens: Whether the tokenizers put their special tokens around the texts.
        texts: Texts that were given.
        texts_sha256: Over their hashes, in their order.
        rows: Rows that were kept.
        shards: The files, in order of rows.
        origin: Where the texts come from, as the caller said it.
    """

    tokenizers: dict[str, TokenizerInfo]
    teacher: dict[str, Any]
    dim: int
    dtype: str
    max_tokens: int
    add_special_tokens: bool
    texts: int
    texts_sha256: str
    rows: int
    shards: tuple[CorpusShard, ...]
    origin: dict[str, Any] = field(default_factory=dict)

    @property
    def dropped(self) -> int:
        """Texts that were left out for any tokenizer."""
        return self.texts - self.rows

    def settings(self) -> dict[str, Any]:
        """What decides the bytes besides the texts; two corpora in one folder must agree in it."""
        found = {f"tokenizer {name!r}": info.sha256 for name, info in self.tokenizers.items()}
        names = ("dtype", "max_tokens", "add_special_tokens")
        return {**found, **{name: getattr(self, name) for name in names}, "teacher": self.teacher.get("fingerprint")}

    def save(self, folder: Path) -> None:
        """Write `corpus.json` into the folder, atomically; the same manifest always gives the same bytes."""
        body = {"format": FORMAT, "dropped": self.dropped, **asdict(self)}
        replace_file(folder / CORPUS_NAME, (json.dumps(body, indent=2, ensure_ascii=False) + "\n").encode())

    @classmethod
    def load(cls, folder: str | Path) -> CorpusManifest:
        """Read `corpus.json`.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it is not readable, or of another format.
        """
        path = Path(folder) / CORPUS_NAME
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} holds no {CORPUS_NAME}: there is no encoded corpus, or its job did not finish. Run it "
                "(recipes/encode_corpus.py) again: it goes on from the finished shards."
            )
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            if body.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            body.pop("dropped")
            body["tokenizers"] = {name: TokenizerInfo(**info) for name, info in body["tokenizers"].items()}
            body["shards"] = tuple(CorpusShard(**shard) for shard in body["shards"])
            return cls(**body)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} cannot be read ({error}). Encode the corpus again.") from error


__all__ = ["CORPUS_NAME", "CorpusManifest", "CorpusShard", "TokenizerInfo"]

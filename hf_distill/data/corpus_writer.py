"""The work of `encode_corpus`: shards that are written atomically and found again, each with what decides its bytes.

A shard is first written without the teacher's vectors (`tokenised/`), so that the teacher reads only the texts that were
kept. The key in its metadata covers the texts, the tokenizers and the limit: a shard with another key is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from hf_distill.data.corpus_manifest import CORPUS_NAME, CorpusManifest, CorpusShard
from hf_distill.data.token_ids import IDS_SUFFIX
from hf_distill.teachers.files import replace_file, sha256_of_file
from hf_distill.teachers.manifest import TeacherSpec

if TYPE_CHECKING:
    from accelerate import PartialState

TEACHER_EMBEDDING = "teacher_embedding_final"
DTYPES = {"float16": np.float16, "float32": np.float32}
_METADATA = b"hf_distill"
_BATCH = 1000
_ROWS_OF_A_PROCESS = 250  # fewer are not worth starting one


@runtime_checkable
class TeacherReader(Protocol):
    """A teacher whose vectors are there already: a `TeacherCache`, or an ensemble of several."""

    spec: TeacherSpec
    dim: int

    def embeddings(self, rows: np.ndarray) -> np.ndarray:
        """Vectors `(N, D)` of rows `(N,)`."""

    def rows_for(self, texts: Sequence[str]) -> np.ndarray:
        """Rows `(N,)` of texts."""


def digest_of(hashes: np.ndarray) -> str:
    """Return the SHA-256 over the hashes of texts."""
    return hashlib.sha256(hashes.astype("<u8").tobytes()).hexdigest()


def teacher_identity(spec: TeacherSpec) -> dict[str, Any]:
    """Say who a teacher is, for `corpus.json`.

    Args:
        spec: Of the teacher.

    Returns:
        Its fields and its fingerprint.
    """
    return json.loads(json.dumps({**asdict(spec), "fingerprint": spec.fingerprint}))


@dataclass
class CorpusJob:
    """One call of `encode_corpus`: the shards that are there, those that are missing, and the work on them.

    Args:
        folder: Of the corpus.
        texts: The rows.
        hashes: Their hashes.
        tokenizers: By name.
        base: The manifest as far as it is known.
        shard_rows: Texts of a file, before any are left out.
        num_proc: Processes that tokenise.
    """

    folder: Path
    texts: Sequence[str]
    hashes: np.ndarray
    tokenizers: dict[str, PreTrainedTokenizerBase]
    base: CorpusManifest
    shard_rows: int
    num_proc: int
    counts: list[dict[str, Any]] = field(default_factory=list)
    found: CorpusManifest | None = None

    @cached_property
    def shards(self) -> range:
        """Numbers of the shards."""
        return range(-(-len(self.texts) // self.shard_rows))

    @cached_property
    def state(self) -> PartialState | None:
        """The state of accelerate where there are several processes."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return None
        from hf_distill.teachers.writer import process_state

        return process_state()

    def mine(self) -> range:
        """The shards of this process."""
        return self.shards if self.state is None else self.shards[self.state.process_index :: self.state.num_processes]

    def wait(self) -> None:
        """Wait for the other processes, if there are any."""
        if self.state is not None:
            self.state.wait_for_everyone()

    def file(self, shard: int) -> Path:
        """A finished shard."""
        return self.folder / "data" / f"train-{shard:05d}.parquet"

    def ids_file(self, shard: int) -> Path:
        """A shard without the teacher's vectors."""
        return self.folder / "tokenised" / f"train-{shard:05d}.parquet"

    def key(self, shard: int) -> str:
        """What decides the texts and ids of a shard."""
        hashes = self.hashes[shard * self.shard_rows : (shard + 1) * self.shard_rows]
        settings = {name: value for name, value in self.base.settings().items() if name not in ("teacher", "dtype")}
        return hashlib.sha256((json.dumps(settings) + digest_of(hashes)).encode()).hexdigest()

    def open(self, spec: TeacherSpec | None, overwrite: bool) -> CorpusManifest | None:
        """Look at what is there: the finished corpus itself (returned), another one (refused), or the start of this."""
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"{self.folder} is a file; an encoded corpus needs a folder.")
        if not (self.folder / CORPUS_NAME).is_file() or overwrite:
            return None
        self.found = found = CorpusManifest.load(self.folder)
        teacher = found.teacher if spec is None or _serves(found.teacher, spec) else teacher_identity(spec)
        self._require(replace(self.base, teacher=teacher))
        if found.texts > len(self.texts) or digest_of(self.hashes[: found.texts]) != found.texts_sha256:
            raise ValueError(
                f"{self.folder} already holds a corpus of {found.texts:,} other texts. Choose another folder, or replace "
                "it with overwrite=True (--overwrite). A corpus can only be extended at its end."
            )
        whole = spec is not None and found.texts == len(self.texts)
        files = [(self.folder / shard.file, shard.sha256) for shard in found.shards]
        whole = whole and all(path.is_file() and sha256_of_file(path) == sha256 for path, sha256 in files)
        return found if whole else None

    def _require(self, asked: CorpusManifest) -> None:
        """Refuse to go on where the folder holds a corpus of other settings."""
        if self.found is None:
            return
        here, there = self.found.settings(), asked.settings()
        other = [name for name in {**here, **there} if here.get(name) != there.get(name)]
        if other:
            what = "; ".join(f"{name}: it has {here.get(name)}, asked for is {there.get(name)}" for name in other)
            raise ValueError(
                f"{self.folder} already holds a corpus with other settings ({what}). Choose another folder, or replace it "
                "with overwrite=True (--overwrite)."
            )

    def tokenise(self) -> list[str]:
        """Tokenise the shards that are missing, and return the texts that are short enough for every tokenizer."""
        self.ids_file(0).parent.mkdir(parents=True, exist_ok=True)
        self.file(0).parent.mkdir(parents=True, exist_ok=True)
        for shard in self.mine():
            if self._tokenised(shard) is None:
                table, counts = self._tokenise(shard)
                _write(self.ids_file(shard), table, {"key": self.key(shard), "counts": counts})
        self.wait()
        kept: list[str] = []
        for shard in self.shards:
            path = self._tokenised(shard)
            self.counts.append(_read_metadata(path)["counts"])
            kept += pq.read_table(path, columns=["text"])["text"].to_pylist()
        if not kept:
            raise ValueError(
                f"None of the {len(self.texts):,} texts has 1 to {self.base.max_tokens} tokens for every tokenizer. Raise "
                "max_tokens, or look at the texts."
            )
        return kept

    def _tokenised(self, shard: int) -> Path | None:
        """A file with the texts and ids of a shard, finished or not."""
        for path in (self.ids_file(shard), self.file(shard)):
            if _read_metadata(path).get("key") == self.key(shard):
                return path
        return None

    def _tokenise(self, shard: int) -> tuple[pa.Table, dict[str, Any]]:
        """Texts and ids of a shard without the rows that are left out, and the counts of these."""
        from datasets import Dataset, Features, List, Value

        part = list(self.texts[shard * self.shard_rows : (shard + 1) * self.shard_rows])
        columns = [name + IDS_SUFFIX for name in self.tokenizers]
        features = Features({"text": Value("string"), **{column: List(Value("int32")) for column in columns}})
        encoded = Dataset.from_dict({"text": part}).map(
            _ids_of_batch,
            batched=True,
            batch_size=_BATCH,
            fn_kwargs={"tokenizers": self.tokenizers, "add_special_tokens": self.base.add_special_tokens},
            features=features,
            num_proc=min(self.num_proc, -(-len(part) // _ROWS_OF_A_PROCESS)) if self.num_proc > 1 else None,
            keep_in_memory=True,
            load_from_cache_file=False,
            new_fingerprint=self.key(shard)[:16],
            desc=f"Tokenising {shard + 1}/{len(self.shards)}",
        )
        table = encoded.with_format("arrow")[:]
        lengths = {name: pc.list_value_length(table[name + IDS_SUFFIX]).to_numpy() for name in self.tokenizers}
        keep = np.all([(found > 0) & (found <= self.base.max_tokens) for found in lengths.values()], axis=0)
        counts = {
            name: {
                "tokens": int(found[keep].sum()),
                "longest": int(found[keep].max(initial=0)),
                "over_limit": int((found > self.base.max_tokens).sum()),
                "empty": int((found == 0).sum()),
            }
            for name, found in lengths.items()
        }
        table = table.filter(pa.array(keep)).replace_schema_metadata(None)
        return table.select(["text", *columns]), counts

    def join(self, reader: TeacherReader) -> int:
        """Add the teacher's vectors to the shards that lack them; return the number of those that were finished."""
        self._require(replace(self.base, teacher=teacher_identity(reader.spec)))
        fingerprint, reused = reader.spec.fingerprint, 0
        for shard in self.mine():
            metadata = {"key": self.key(shard), "teacher": fingerprint, "dtype": self.base.dtype}
            metadata["counts"] = self.counts[shard]
            if _read_metadata(self.file(shard)) == metadata:
                reused += 1
                continue
            table = pq.read_table(self._tokenised(shard))
            table = table.select(["text", *(name + IDS_SUFFIX for name in self.tokenizers)])
            vectors = self._vectors(reader, table["text"].to_pylist())
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), reader.dim)
            _write(self.file(shard), table.append_column(TEACHER_EMBEDDING, column), metadata)
        self.wait()
        return reused

    def _vectors(self, reader: TeacherReader, texts: list[str]) -> np.ndarray:
        """The teacher's vectors of texts, without NaN."""
        if not texts:
            return np.empty((0, reader.dim), dtype=DTYPES[self.base.dtype])
        with np.errstate(over="ignore"):
            vectors = np.asarray(reader.embeddings(reader.rows_for(texts))).astype(DTYPES[self.base.dtype])
        wrong = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(wrong):
            raise ValueError(f"The teacher gives NaN or infinity for the text {texts[int(wrong[0])][:60]!r}.")
        return vectors

    def finish(self, reader: TeacherReader) -> CorpusManifest:
        """Write the manifest and remove what is not needed any more."""
        shards = []
        for path in map(self.file, self.shards):
            if rows := pq.read_metadata(path).num_rows:  # `datasets` cannot read a file without rows
                shards.append(CorpusShard(path.relative_to(self.folder).as_posix(), rows, sha256_of_file(path)))
        totals = {name: _total([count[name] for count in self.counts]) for name in self.tokenizers}
        manifest = replace(
            self.base,
            tokenizers={name: replace(info, **totals[name]) for name, info in self.base.tokenizers.items()},
            teacher=teacher_identity(reader.spec),
            dim=reader.dim,
            rows=sum(shard.rows for shard in shards),
            shards=tuple(shards),
        )
        self.wait()
        if self.state is None or self.state.is_main_process:
            manifest.save(self.folder)
            shutil.rmtree(self.ids_file(0).parent, ignore_errors=True)
            for path in set(self.file(0).parent.iterdir()) - {self.folder / shard.file for shard in shards}:
                path.unlink()
        self.wait()
        return manifest


def _ids_of_batch(
    batch: dict[str, list[str]], tokenizers: dict[str, PreTrainedTokenizerBase], add_special_tokens: bool
) -> dict[str, list[list[int]]]:
    """Ids of a batch of texts, uncut, for every tokenizer."""
    options = {"add_special_tokens": add_special_tokens, "truncation": False, "padding": False, "verbose": False}
    options |= {"return_attention_mask": False, "return_token_type_ids": False}
    return {name + IDS_SUFFIX: each(batch["text"], **options)["input_ids"] for name, each in tokenizers.items()}


def _total(counts: list[dict[str, int]]) -> dict[str, int]:
    """The counts of all shards of a tokenizer."""
    total = {key: sum(count[key] for count in counts) for key in ("tokens", "over_limit", "empty")}
    return {**total, "longest": max(count["longest"] for count in counts)}


def _serves(teacher: dict[str, Any], spec: TeacherSpec) -> bool:
    """Whether the teacher of a manifest is the one that is asked for."""
    known = {name: value for name, value in teacher.items() if name != "fingerprint"}
    return not TeacherSpec(**known).differences(spec)


def _write(path: Path, table: pa.Table, metadata: dict[str, Any]) -> None:
    """Write a table as parquet, atomically; the same table always gives the same bytes."""
    sink = BytesIO()
    text = json.dumps(metadata, sort_keys=True).encode()
    pq.write_table(table.replace_schema_metadata({_METADATA: text}), sink, compression="zstd")
    replace_file(path, sink.getvalue())


def _read_metadata(path: Path) -> dict[str, Any]:
    """What `_write` noted in a file; empty where there is no file, or none that is whole."""
    if not path.is_file():
        return {}
    try:
        return json.loads((pq.read_schema(path).metadata or {}).get(_METADATA, b"{}"))
    except pa.ArrowInvalid:
        return {}


__all__ = ["DTYPES", "TEACHER_EMBEDDING", "CorpusJob", "TeacherReader", "digest_of", "teacher_identity"]

"""The writer of teacher caches: resumable, atomic, the same bytes for the same settings.

Rows are cut into shards of a fixed size; each shard is encoded, sorted by length inside, and written in one go. A shard
that is already there is not encoded again, so a job that was killed, interrupted or extended goes on where it was.
Under ``accelerate launch`` with several processes, each takes its share of the shards.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers.utils import logging

from hf_distill.teachers.cached import TeacherCache, teacher_folder
from hf_distill.teachers.callables import USE_MULTILINGUAL, use_multilingual
from hf_distill.teachers.encoders import EmbedFunction, FunctionEncoder, ModelEncoder, ShardInput
from hf_distill.teachers.files import is_disk_full, require_space
from hf_distill.teachers.fingerprint import hash_texts
from hf_distill.teachers.live import LiveTeacher
from hf_distill.teachers.manifest import MANIFEST_NAME, Manifest, ShardInfo, TeacherSpec
from hf_distill.teachers.shards import find_shard, open_shard, save_shard, shard_key
from hf_distill.teachers.signal import WriteReport

if TYPE_CHECKING:
    from accelerate import PartialState
    from sentence_transformers import SentenceTransformer

logger = logging.get_logger(__name__)

SHARD_ROWS, SHARD_ROWS_WITH_HIDDEN = 16384, 1024


def write_cache(
    texts: Sequence[str],
    teacher: LiveTeacher | SentenceTransformer | str | Path | EmbedFunction,
    path: str | Path,
    *,
    spec: TeacherSpec | None = None,
    batch_size: int = 64,
    tokens_per_batch: int | None = None,
    shard_rows: int | None = None,
    signals: tuple[str, ...] | None = None,
    input_ids: Sequence[Sequence[int]] | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> TeacherCache:
    """Write what a teacher says about texts, or finish or extend such a cache.

    The cache lies in a sub-folder of ``path`` that is named after the teacher and its fingerprint, so that several
    teachers live side by side. Row ``i`` of the cache is row ``i`` of ``texts``.

    Args:
        texts: The rows; a list, or a column of a `datasets.Dataset`.
        teacher: A sentence-transformers model, its id or folder, a [`LiveTeacher`], a plain function from a list of
            texts to an array ``(n, D)``, or the name of one (see `teachers/callables.py`).
        path: Folder of the caches.
        spec: What identifies the teacher. Read from the model by default; a plain function must bring its own.
        batch_size: Texts of one call of a plain function or a static table. Transformers are batched by tokens.
        tokens_per_batch: Padded tokens of a batch; by default 4,096 on CPU and 65,536 on accelerators.
        shard_rows: Rows of a shard; by default 16,384, or 1,024 with hidden layers (a shard is built in memory).
        signals: What to store: ``"embedding"`` and ``"hidden_<i>"``. By default what the spec says.
        input_ids: Token ids of each text, special tokens included, where they are already known.
        progress: Show a progress bar.
        overwrite: Replace a cache of other texts that lies in the same place. Its shards are kept.

    Returns:
        The cache, open for reading; its ``report`` says what it cost.

    Raises:
        ValueError: If a row has no text or wrong ids, the spec does not fit the teacher, the place holds the cache of
            other texts, or the teacher gives NaN.
        OSError: If the disk is full. Finished shards are kept.
        KeyboardInterrupt: On Ctrl-C, with a message that says how to go on. Finished shards are kept.

    Example:
        >>> cache = write_cache(dataset["text"], "sentence-transformers/all-MiniLM-L6-v2", "caches")
        >>> cache.embeddings([3, 1, 2]).shape
        (3, 384)
    """
    if batch_size < 1 or (shard_rows is not None and shard_rows < 1) or (tokens_per_batch or 1) < 1:
        raise ValueError("batch_size, shard_rows and tokens_per_batch must be at least 1.")
    hashes, lengths = hash_texts(texts)
    encoder, spec = _prepare(teacher, spec, signals, batch_size, tokens_per_batch)
    ids = None if input_ids is None else _check_ids(input_ids, len(texts), encoder)
    rows = shard_rows or (SHARD_ROWS_WITH_HIDDEN if spec.hidden_layers else SHARD_ROWS)
    job = _Job(teacher_folder(path, spec), spec, texts, hashes, lengths, ids, rows)
    job.folder.mkdir(parents=True, exist_ok=True)
    job.find(overwrite)
    with job.interruptible():
        report = job.encode(encoder, progress)
        job.finish()
    cache = TeacherCache.open(job.folder, spec)
    cache.report = report
    return cache


@dataclass
class _Job:
    """One call of `write_cache`: which shards there are, which are missing, and the work on them."""

    folder: Path
    spec: TeacherSpec
    texts: Sequence[str]
    hashes: np.ndarray
    lengths: np.ndarray
    input_ids: list[np.ndarray] | None
    shard_rows: int
    keys: list[str] = field(default_factory=list)
    shards: list[ShardInfo | None] = field(default_factory=list)

    def _slice(self, shard: int) -> slice:
        return slice(shard * self.shard_rows, min((shard + 1) * self.shard_rows, len(self.texts)))

    def find(self, overwrite: bool) -> None:
        """Look which shards are there, clear the remains of a killed job, and protect a cache of other texts."""
        for shard in range(-(-len(self.texts) // self.shard_rows)):
            part = self._slice(shard)
            ids = None if self.input_ids is None else self.input_ids[part]
            self.keys.append(shard_key(self.spec.fingerprint, self.hashes[part], ids))
            self.shards.append(find_shard(self.folder, self.keys[-1]))
        if not overwrite and (self.folder / MANIFEST_NAME).is_file():
            self._protect()
        _wait()
        if _process()[0] == 0:
            for remains in self.folder.glob(".*.tmp"):
                remains.unlink(missing_ok=True)
        _wait()

    def _protect(self) -> None:
        row = 0
        for shard in Manifest.load(self.folder).shards:
            file = self.folder / shard.file
            if file.is_file():
                old, new = open_shard(file)["text_hash"], self.hashes[row : row + shard.rows]
                if not np.array_equal(old[: len(new)], new):
                    raise ValueError(
                        f"{self.folder} already holds this teacher's cache of other texts: they differ between rows "
                        f"{row} and {row + shard.rows - 1}. Choose another folder, or replace it with overwrite=True "
                        "(--overwrite). A cache can only be extended at its end."
                    )
            row += shard.rows

    def encode(self, encoder: ModelEncoder | FunctionEncoder, progress: bool) -> WriteReport:
        """Encode this process's share of the missing shards."""
        process, processes = _process()
        missing = [shard for shard, found in enumerate(self.shards) if found is None]
        mine = missing[process::processes]
        rows = sum(len(self.hashes[self._slice(shard)]) for shard in mine)
        reused = sum(found.rows for found in self.shards if found is not None)
        if missing:
            logger.info(
                f"{len(self.shards) - len(missing)} of {len(self.shards)} shards are there; making the others."
            )
            self._check_space(encoder, rows)
        tokens, started = 0, time.perf_counter()
        total = sum(int(self.lengths[self._slice(shard)].sum()) for shard in mine)
        layout = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        hidden = not progress or process != 0 or not mine
        with tqdm(total=total, desc="teacher", bar_format=layout, disable=hidden, mininterval=0.5) as bar:
            for shard in mine:
                part = self._slice(shard)

                def advance(batch: np.ndarray, new_tokens: int, first: int = part.start) -> None:
                    nonlocal tokens
                    tokens += new_tokens
                    bar.set_postfix_str(_pace(tokens, started), refresh=False)
                    bar.update(int(self.lengths[first + batch].sum()))

                ids = None if self.input_ids is None else self.input_ids[part]
                arrays = encoder.encode(ShardInput(list(self.texts[part]), part.start, ids), advance)
                self.shards[shard] = self._save(shard, {"text_hash": self.hashes[part], **arrays})
        seconds = time.perf_counter() - started
        return WriteReport(rows, reused, tokens, seconds if mine else 0.0)

    def _check_space(self, encoder: ModelEncoder | FunctionEncoder, rows: int) -> None:
        if not isinstance(encoder, ModelEncoder):
            return
        dim = self.spec.truncate_dim or encoder.teacher.model.get_embedding_dimension() or 0
        remedy = "Free some space or choose another folder; finished shards are kept."
        require_space(self.folder, rows * (2 * dim + 8), "The teacher cache", remedy)

    def _save(self, shard: int, arrays: dict[str, np.ndarray]) -> ShardInfo:
        try:
            return save_shard(self.folder, self.keys[shard], arrays)
        except OSError as error:
            if not is_disk_full(error):
                raise
            done = sum(found is not None for found in self.shards)
            size = sum(array.nbytes for array in arrays.values()) / 1e6
            raise OSError(
                error.errno,
                f"The disk is full: shard {shard + 1} of {len(self.shards)} ({size:,.1f} MB) could not be written to "
                f"{self.folder}. The {done} finished shards are kept; free some space and run the same job again.",
            ) from error

    def finish(self) -> None:
        """Write the manifest, once all processes are done."""
        _wait()
        if _process()[0] == 0:
            found = [info or find_shard(self.folder, key) for info, key in zip(self.shards, self.keys, strict=True)]
            shards = tuple(info for info in found if info is not None)
            widths = [open_shard(self.folder / shard.file)["embedding"].shape[1] for shard in shards]
            if len(set(widths)) != 1 or len(shards) != len(self.keys):
                raise ValueError(
                    f"The shards in {self.folder} do not agree: {len(shards)} of {len(self.keys)} are there, with "
                    f"{sorted(set(widths))} dimensions. Did the teacher change under the same spec? Delete the folder."
                )
            manifest = Manifest(self.spec, len(self.texts), widths[0], shards)
            file = self.folder / MANIFEST_NAME
            if not file.is_file() or replace(Manifest.load(self.folder), projections=()) != manifest:
                manifest.save(self.folder)
        _wait()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Turn Ctrl-C into a message that says what is kept and how to go on."""
        try:
            yield
        except KeyboardInterrupt:
            done = sum(found is not None for found in self.shards)
            raise KeyboardInterrupt(
                f"Interrupted: {done} of {len(self.shards)} shards are finished and kept in {self.folder}. "
                "Run the same job again to go on from there."
            ) from None


def _prepare(
    teacher: LiveTeacher | SentenceTransformer | str | Path | EmbedFunction,
    spec: TeacherSpec | None,
    signals: tuple[str, ...] | None,
    batch_size: int,
    tokens_per_batch: int | None,
) -> tuple[ModelEncoder | FunctionEncoder, TeacherSpec]:
    """Return the encoder and the full spec of a teacher, after checking that they fit."""
    if teacher == USE_MULTILINGUAL:
        teacher, own = use_multilingual()
        spec = own if spec is None else spec
    if spec is not None and signals is not None:
        spec = replace(spec, signals=signals)
    if not isinstance(teacher, (LiveTeacher, torch.nn.Module, str, Path)):
        if spec is None:
            raise ValueError("A teacher that is a plain function needs a TeacherSpec: spec=TeacherSpec(teacher=...).")
        if spec.hidden_layers:
            raise ValueError(f"A plain function has no hidden states, but the signals are {spec.signals}.")
        spec = replace(spec, dtype="float32") if spec.dtype == "auto" else spec
        return FunctionEncoder(teacher, spec, batch_size), spec
    if not isinstance(teacher, LiveTeacher):
        teacher = LiveTeacher(teacher, dtype=spec.dtype if spec else "auto")
    dtype = teacher.dtype if teacher.is_transformer else "float32"
    if spec is None:
        spec = TeacherSpec.of(teacher.model, prompt=teacher.prompt, dtype=dtype, signals=signals or ("embedding",))
    else:
        fields = ("teacher", "revision", "prompt", "normalize", "truncate_dim", "signals")
        actual = TeacherSpec.of(teacher.model, dtype=dtype, **{name: getattr(spec, name) for name in fields})
        if found := actual.differences(spec):
            found = [
                line.replace("the cache has", "the model has").replace("expected is", "the spec says")
                for line in found
            ]
            raise ValueError("The spec does not describe the teacher:\n  " + "\n  ".join(found))
        spec = actual
    if spec.hidden_layers:
        last = teacher.encoder.config.num_hidden_layers
        if max(spec.hidden_layers) > last:
            raise ValueError(f"The teacher has hidden states 0 to {last}, but the signals are {spec.signals}.")
    return ModelEncoder(teacher, spec, tokens_per_batch or teacher.tokens_per_batch, batch_size), spec


def _check_ids(
    input_ids: Sequence[Sequence[int]], num_rows: int, encoder: ModelEncoder | FunctionEncoder
) -> list[np.ndarray]:
    """Check token ids that were given from outside, and return them as arrays."""
    if not isinstance(encoder, ModelEncoder) or not encoder.teacher.is_transformer:
        raise ValueError("input_ids were given, but this teacher does not take token ids: leave them out.")
    if len(input_ids) != num_rows:
        raise ValueError(f"There are {num_rows} texts, but {len(input_ids)} rows of input_ids.")
    vocabulary, longest = encoder.teacher.encoder.config.vocab_size, encoder.spec.max_seq_length
    checked = []
    for row, ids in enumerate(input_ids):
        array = np.asarray(ids, dtype=np.int64)
        if array.ndim != 1 or not len(array):
            raise ValueError(f"input_ids of row {row} are empty or not a flat list of token ids.")
        if longest is not None and len(array) > longest:
            raise ValueError(
                f"input_ids of row {row} are {len(array)} tokens, but the teacher reads {longest}: truncate to "
                f"{longest} when tokenising."
            )
        if array.min() < 0 or array.max() >= vocabulary:
            raise ValueError(
                f"input_ids of row {row} hold {array.min() if array.min() < 0 else array.max()}, outside the teacher's "
                f"vocabulary of {vocabulary}: they come from another tokenizer."
            )
        checked.append(array)
    return checked


def _pace(tokens: int, started: float) -> str:
    rate = tokens / max(time.perf_counter() - started, 1e-9)
    return f"{rate / 1e3:.1f}k tokens/s" if tokens else ""


def process_state() -> PartialState:
    """Return accelerate's state of this process: its rank, the number of processes, the wait for the others.

    Without an accelerator the processes are CPU processes; accelerate must be told, or each believes it is alone.
    """
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())


def _process() -> tuple[int, int]:
    """Return the rank of this process and the number of processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    state = process_state()
    return state.process_index, state.num_processes


def _wait() -> None:
    """Wait for the other processes, if there are any."""
    if _process()[1] > 1:
        process_state().wait_for_everyone()

"""Text encoded once for several tokenizers and one teacher: a data set of texts, ids and vectors, written and read.

The columns are `text`, `<name>_input_ids` for every tokenizer, and `teacher_embedding_final`, those of
`alibayram/cosmos-corpus-encoded` on the Hub. A text that is too long for *any* of the tokenizers is left out for all, so
that students which differ in their tokenizer alone learn from the same rows.

A folder holds `data/train-00000.parquet` and so on, and `corpus.json`. Shards are written atomically: a job that was
killed goes on where it was, and gives the same bytes as one that was not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_distill.data.corpus_manifest import CORPUS_NAME, CorpusManifest, TokenizerInfo
from hf_distill.data.corpus_writer import DTYPES, TEACHER_EMBEDDING, CorpusJob, TeacherReader, digest_of
from hf_distill.data.teacher_column import TeacherColumn
from hf_distill.data.token_ids import IDS_SUFFIX, check_token_ids, list_pieces
from hf_distill.teachers.files import sha256_of_file
from hf_distill.teachers.fingerprint import hash_texts

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

    from hf_distill.data.overlap import OverlapReport
    from hf_distill.teachers.encoders import EmbedFunction
    from hf_distill.teachers.live import LiveTeacher
    from hf_distill.teachers.manifest import TeacherSpec

SHARD_ROWS = 8192
_NAME = re.compile(r"[a-z0-9][a-z0-9_]*")


@dataclass(frozen=True)
class EncodedCorpusReport:
    """What [`encode_corpus`] wrote.

    Args:
        folder: Where it is.
        manifest: What it is.
        reused_shards: Files that were there already.
    """

    folder: Path
    manifest: CorpusManifest
    reused_shards: int

    def __str__(self) -> str:
        """Say in a paragraph what was kept and what was left out."""
        found = self.manifest
        lines = [f"{found.rows:,} of {found.texts:,} texts were kept, {found.dropped:,} left out."]
        for name, info in found.tokenizers.items():
            mean = info.tokens / max(found.rows, 1)
            lines.append(
                f"{name}: {info.over_limit:,} texts over {found.max_tokens:,} tokens, {info.empty:,} without a token; "
                f"{mean:.1f} tokens a row, {info.longest:,} in the longest."
            )
        lines.append(f"Teacher: {found.teacher.get('teacher')}, {found.dim} numbers a row ({found.dtype}).")
        return "\n".join(lines)


def encode_corpus(
    texts: Sequence[str],
    tokenizers: Mapping[str, PreTrainedTokenizerBase],
    teacher: TeacherReader | LiveTeacher | SentenceTransformer | str | Path | EmbedFunction,
    folder: str | Path,
    *,
    max_tokens: int = 512,
    num_proc: int = 1,
    spec: TeacherSpec | None = None,
    cache_dir: str | Path | None = None,
    add_special_tokens: bool = True,
    dtype: str = "float16",
    shard_rows: int = SHARD_ROWS,
    origin: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> EncodedCorpusReport:
    """Write texts with the ids of several tokenizers and the vectors of one teacher, or finish or extend such a corpus.

    Args:
        texts: The rows.
        tokenizers: By the name that their column gets in front of `_input_ids`.
        teacher: What `write_cache` takes, or a cache (or ensemble of caches) that holds all texts already.
        folder: Where to.
        max_tokens: A text with more tokens than this for any tokenizer is left out and counted; nothing is cut.
        num_proc: Processes that tokenise. Fast tokenizers use all cores in one; a Python tokenizer gains from several.
        spec: What identifies a teacher that is no cache; needed for a plain function.
        cache_dir: Folder of the teacher's cache where the teacher is not one already. Default: `teacher_cache` in
            `folder`. Once the corpus is complete the cache is not needed any more.
        add_special_tokens: Let the tokenizers put their special tokens around the texts.
        dtype: Of the teacher's vectors: `"float16"`, as caches store them, or `"float32"`.
        shard_rows: Texts of a file, before any are left out, and rows of a shard of the teacher's cache: what a kill costs.
        origin: Where the texts come from, for `corpus.json`.
        overwrite: Replace a corpus of other texts or settings that lies there.
        progress: Show the progress of the teacher.

    Returns:
        What was written.

    Raises:
        ValueError: If a text is blank (the row is named), a tokenizer has no padding token, no text is short enough, the
            folder holds another corpus, or the teacher gives NaN.
        KeyError: If a cache lacks a text.
        OSError: If the disk is full. Finished shards are kept.

    Example:
        >>> report = encode_corpus(texts, {"mft": mft, "tabi": tabi}, "intfloat/multilingual-e5-small", "corpus")
        >>> load_encoded_corpus("corpus").column_names
        ['text', 'mft_input_ids', 'tabi_input_ids', 'teacher_embedding_final']
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; choose one of {', '.join(DTYPES)}.")
    if min(max_tokens, num_proc, shard_rows) < 1:
        raise ValueError("max_tokens, num_proc and shard_rows must be at least 1.")
    infos = {name: _describe(name, tokenizer) for name, tokenizer in tokenizers.items()}
    if not infos:
        raise ValueError("There is no tokenizer: give at least one, such as tokenizers={'tabi': tokenizer}.")
    hashes, _ = hash_texts(texts)
    base = CorpusManifest(
        infos, {}, 0, dtype, max_tokens, add_special_tokens, len(texts), digest_of(hashes), 0, (), dict(origin or {})
    )
    job = CorpusJob(Path(folder), texts, hashes, dict(tokenizers), base, shard_rows, num_proc)
    done = job.open(teacher.spec if isinstance(teacher, TeacherReader) else spec, overwrite)
    if done is not None:
        return EncodedCorpusReport(job.folder, done, len(done.shards))
    kept = job.tokenise()
    reader = teacher
    if not isinstance(reader, TeacherReader):
        from hf_distill.teachers.writer import write_cache

        cache_dir = cache_dir or job.folder / "teacher_cache"
        options = {"spec": spec, "shard_rows": shard_rows, "progress": progress, "overwrite": True}
        reader = write_cache(kept, teacher, cache_dir, **options)
    reused = job.join(reader)
    return EncodedCorpusReport(job.folder, job.finish(reader), reused)


def _describe(name: str, tokenizer: PreTrainedTokenizerBase) -> TokenizerInfo:
    """Check the name of a tokenizer and whether it can serve."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"The tokenizer name {name!r} must be made of small letters, digits and underscores.")
    try:
        return TokenizerInfo.of(tokenizer)
    except ValueError as error:
        raise ValueError(f"The tokenizer {name!r} cannot serve: {error}.") from error


def corpus_texts(
    sources: Mapping[str, Any], total: int, seed: int = 42, held_out: Sequence[str] = ()
) -> tuple[list[str], dict[str, int], OverlapReport]:
    """Mix sources into the texts of a corpus, without what evaluation is made of.

    Args:
        sources: Weights or options of each source, as `load_mix` takes them.
        total: Texts at most.
        seed: Of the mix.
        held_out: Evaluation texts; what overlaps with any of them is left out.

    Returns:
        The texts, the rows of each source (files by their name alone), and what was left out.

    Raises:
        ValueError: If the sources are pairs only, or wrong.
        FileNotFoundError: If a source is not installed, or a file is missing.
    """
    from hf_distill.data.overlap import remove_overlap
    from hf_distill.data.sources import load_mix

    dataset = load_mix(sources, total, seed=seed, counts=(rows := {}))
    if "text" not in dataset.column_names:
        raise ValueError(f"The sources {', '.join(sources)} give pairs of texts: add one of single texts.")
    dataset, overlap = remove_overlap(dataset, "text", held_out)
    return list(dataset["text"]), {Path(name).name: count for name, count in rows.items()}, overlap


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a tokenizer by name.

    Args:
        name: `"mft"` for [`HfdMftTokenizer`], a folder, or an id on the Hub (from its cache without a network).
        revision: Branch, tag or commit on the Hub. Default: the main branch.
        trust_remote_code: Allow a tokenizer with its own code.

    Returns:
        The tokenizer.

    Raises:
        ImportError: If the package of `"mft"` is not installed.
        ConnectionError: If the Hub cannot be reached and its cache does not hold the tokenizer.
        FileNotFoundError: If it is nowhere, or cannot be loaded from there.
    """
    from hf_distill.teachers.offline import hub_reachable

    if name == "mft":
        from hf_distill.models.mft import HfdMftTokenizer

        return HfdMftTokenizer()
    local = Path(name).is_dir()
    reachable = local or hub_reachable()
    options = {"revision": revision, "local_files_only": not reachable, "trust_remote_code": trust_remote_code}
    try:
        return AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        if not reachable:
            raise ConnectionError(
                f"The tokenizer {name!r} is no folder, and the Hub cannot be reached or does not have it cached here. "
                "Train one: recipes/train_tokenizer.py."
            ) from error
        where = "that folder" if local else "the Hub"
        raise FileNotFoundError(f"The tokenizer {name!r} cannot be loaded from {where}: {error}") from error


def load_encoded_corpus(
    source: str | Path, tokenizers: Mapping[str, PreTrainedTokenizerBase | int] | None = None
) -> Dataset:
    """Read an encoded corpus and check every row of it.

    Args:
        source: A folder that [`encode_corpus`] wrote, or one of parquet files with its columns, or the id of such a data
            set on the Hub.
        tokenizers: Tokenizers whose columns are wanted, by name, or their vocabulary sizes. Needed where there is no
            `corpus.json`; other columns of ids are left out. Default: all of `corpus.json`.

    Returns:
        The data set: `text`, `<name>_input_ids` of each, `teacher_embedding_final`.

    Raises:
        ValueError: If a column is missing or of another type, a column of ids has no tokenizer or another one than it was
            made with, a row is empty, holds an id outside the vocabulary, a vector of another width or NaN (column and
            row are named), or a file is not the one that was written.
        FileNotFoundError: If the folder holds no corpus, or a file is missing.
        ConnectionError: If the Hub does not give the data set.

    Example:
        >>> dataset = load_encoded_corpus("alibayram/cosmos-corpus-encoded", {"mft": 32768, "tabi": tokenizer})
    """
    folder = Path(source)
    if folder.is_dir():
        manifest = find_manifest(folder)
        dataset = _read_folder(folder, manifest)
    else:
        from hf_distill.data.sources import load_from_hub

        remedy = "Give the folder of a corpus that recipes/encode_corpus.py wrote."
        dataset = load_from_hub(str(source), None, "train", remedy=remedy)
        manifest = find_manifest(source)
    sizes = _vocab_sizes(str(source), dataset.column_names, manifest, tokenizers)
    dataset = dataset.select_columns(["text", *(name + IDS_SUFFIX for name in sizes), TEACHER_EMBEDDING])
    _check_texts(dataset)
    for name, size in sizes.items():
        check_token_ids(dataset, [name], size)
    column = TeacherColumn(TEACHER_EMBEDDING)
    column.add(dataset)
    if manifest is not None and column.dim != manifest.dim:
        raise ValueError(
            f"Column {TEACHER_EMBEDDING!r} of {source} has {column.dim} numbers a row, but {CORPUS_NAME} says "
            f"{manifest.dim}. Encode the corpus again."
        )
    return dataset


def _read_folder(folder: Path, manifest: CorpusManifest | None) -> Dataset:
    """The rows of a folder, after a look at its files."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset

    again = "Encode the corpus (recipes/encode_corpus.py) again: only what is missing is made anew."
    if manifest is None:
        files = sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")])
        if not files:
            CorpusManifest.load(folder)
    else:
        files = [folder / shard.file for shard in manifest.shards]
        for shard, file in zip(manifest.shards, files, strict=True):
            if not file.is_file():
                raise FileNotFoundError(f"The corpus lacks {file}. {again}")
            if sha256_of_file(file) != shard.sha256:
                raise ValueError(
                    f"{file} is not the file that {CORPUS_NAME} names: it was changed or damaged. {again}"
                )
    columns: dict[str, Path] = {}
    for file in files:
        try:
            names = set(pq.read_schema(file).names)
        except pa.ArrowException as error:
            raise ValueError(f"{file} is not a Parquet file that can be read: {error}") from error
        for name in columns.keys() - names:
            raise ValueError(f"{file} lacks the column {name!r}, which {columns[name].name} has.")
        columns |= dict.fromkeys(names - columns.keys(), file)
    return Dataset.from_parquet([str(file) for file in files])


def find_manifest(source: str | Path) -> CorpusManifest | None:
    """Read the table of contents of an encoded corpus.

    Args:
        source: A folder, or the id of a data set on the Hub.

    Returns:
        The manifest; `None` for a data set that was made elsewhere.

    Raises:
        ValueError: If it cannot be read.
    """
    if Path(source).is_dir():
        return CorpusManifest.load(source) if (Path(source) / CORPUS_NAME).is_file() else None
    from huggingface_hub import errors, hf_hub_download

    try:
        return CorpusManifest.load(Path(hf_hub_download(str(source), CORPUS_NAME, repo_type="dataset")).parent)
    except errors.EntryNotFoundError:
        return None


def _vocab_sizes(
    source: str,
    columns: Sequence[str],
    manifest: CorpusManifest | None,
    tokenizers: Mapping[str, PreTrainedTokenizerBase | int] | None,
) -> dict[str, int]:
    """The vocabulary size of every tokenizer whose column is wanted."""
    missing = [name for name in ("text", TEACHER_EMBEDDING) if name not in columns]
    if missing:
        raise ValueError(f"{source} has the columns {list(columns)}, but an encoded corpus has {missing[0]!r}, too.")
    there = [column.removesuffix(IDS_SUFFIX) for column in columns if column.endswith(IDS_SUFFIX)]
    known = {} if manifest is None else manifest.tokenizers
    if tokenizers is None:
        unknown = [name for name in there if name not in known]
        if unknown or not there:
            raise ValueError(
                f"{source}: the column {(unknown or ['<name>'])[0] + IDS_SUFFIX!r} has no tokenizer, and there is no "
                f"{CORPUS_NAME} that names it. Say whose ids these are: tokenizers={{'name': tokenizer}}."
            )
        return {name: known[name].vocab_size for name in there}
    sizes = {}
    for name, tokenizer in tokenizers.items():
        if name not in there:
            raise ValueError(f"{source} has no column {name + IDS_SUFFIX!r}; its tokenizers are {there}.")
        if isinstance(tokenizer, int):
            sizes[name] = tokenizer
            continue
        info = _describe(name, tokenizer)
        if name in known and known[name].sha256 != info.sha256:
            raise ValueError(
                f"{source}: the column {name + IDS_SUFFIX!r} was made by another tokenizer ({known[name].name}, "
                f"{known[name].sha256[:12]}) than the one that is given ({info.name}, {info.sha256[:12]})."
            )
        sizes[name] = info.vocab_size
    return sizes


def _check_texts(dataset: Dataset) -> None:
    """Refuse a row without a text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = dataset.features.arrow_schema.field("text").type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ValueError(f"Column 'text' must hold strings, but row 0 holds {kind}.")
    for start, texts in list_pieces(dataset, "text"):
        blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(texts), ""), True).to_numpy(zero_copy_only=False)
        if blank.any():
            raise ValueError(
                f"Row {start + int(blank.argmax())} of column 'text' holds no text; remove it or fill it in."
            )


__all__ = [
    "TEACHER_EMBEDDING",
    "EncodedCorpusReport",
    "TeacherReader",
    "corpus_texts",
    "encode_corpus",
    "find_manifest",
    "load_encoded_corpus",
    "load_tokenizer",
]

"""Teacher caches as data sets on the Hub: parquet that anybody can stream, and back to a cache equal to the last bit.

Every shard of a cache is one parquet file, and `manifest.json` travels with them. A pulled cache is rebuilt shard by
shard, and each must have the SHA-256 that the manifest names.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, errors, hf_hub_download

from hf_distill.hub.cache_card import DATA_FILES, write_cache_card
from hf_distill.hub.push import check_access, check_repo_id, hub_errors
from hf_distill.hub.scan import find_tokens, scan_folder
from hf_distill.teachers.cached import TeacherCache, teacher_folder
from hf_distill.teachers.files import sha256_of_file
from hf_distill.teachers.fingerprint import hash_texts
from hf_distill.teachers.manifest import MANIFEST_NAME, Manifest, ShardInfo
from hf_distill.teachers.shards import open_shard, save_shard

if TYPE_CHECKING:
    from collections.abc import Callable

_SHARD = re.compile(r"([0-9a-f]{32})-[0-9a-f]{16}\.safetensors")
_PARQUET = re.compile(r"data/train-\d+-of-\d+\.parquet")
_NOT_DATA = {".gitattributes", "README.md"}
_SCANNED_ROWS = 4096


def push_cache(
    cache: TeacherCache,
    repo_id: str,
    *,
    texts: Sequence[str] | None = None,
    private: bool | None = None,
    revision: str | None = None,
) -> str:
    """Publishes a teacher cache as a data set, in one commit.

    Columns are `text` (where texts are given), `text_hash`, `embedding` and, where the cache holds them, `hidden_<i>`.
    Projections stay behind; they are fitted anew where they are needed. The data set is first written to the folder
    for temporary files, which needs room for as much as the cache.

    Args:
        cache: The cache.
        repo_id: `user/name`; created where it does not exist. A cache that is there already is replaced.
        texts: The texts that the cache was written from, in the same order, to publish them too.
        private: Whether a new data set is private; an existing one must be so already.
        revision: Branch to commit to; created from the main one where it does not exist.

    Returns:
        The address of the data set's page.

    Raises:
        ValueError: If the id is malformed, the texts are not those of the cache, a file of the cache is damaged, a
            text or the card holds what must not be published, or the repository holds something else.
        FileNotFoundError: If a file of the cache is missing.
        PermissionError: If nobody is logged in, or the token may not write there.
        ConnectionError: If the Hub cannot be reached or fails. Nothing is published then; push again.

    Example:
        >>> push_cache(TeacherCache.open("caches"), "user/minilm-wordnet", texts=texts)
        'https://huggingface.co/datasets/user/minilm-wordnet'
    """
    repo_id = check_access(repo_id)
    cache = TeacherCache(cache.path, replace(cache.manifest, projections=()))
    if texts is not None:
        _check_texts(cache, texts)
    cache.verify()
    with tempfile.TemporaryDirectory(prefix="hf-distill-push-") as work:
        folder = Path(work)
        cache.manifest.save(folder)
        write_cache_card(folder, cache.manifest, repo_id, with_texts=texts is not None, revision=revision)
        scan_folder(folder, allowed=[repo_id.partition("/")[0]])
        _write_parquet(cache, texts, folder)
        _publish(folder, repo_id, private, revision)
    return f"{HfApi().endpoint}/datasets/{repo_id}" + (f"/tree/{revision}" if revision else "")


def pull_cache(repo_id: str, folder: str | Path, *, revision: str | None = None) -> TeacherCache:
    """Downloads a teacher cache that was published with `push_cache`, and verifies it.

    A pull that was interrupted goes on where it was. The cache serves `write_cache` too: more texts extend it.

    Args:
        repo_id: `user/name` of the data set.
        folder: Folder of the caches; this teacher gets the sub-folder that `write_cache` would give it.
        revision: Branch, tag or commit. Default: the main branch.

    Returns:
        The cache: the same fingerprint, rows and bytes.

    Raises:
        ValueError: If the id is malformed, the manifest does not fit the data, or `folder` holds other texts of this
            teacher.
        FileNotFoundError: If there is no such data set or revision, or it holds no teacher cache.
        PermissionError: If the data set is gated, or the token is not accepted.
        ConnectionError: If the Hub cannot be reached or fails. What arrived is kept; pull again.

    Example:
        >>> cache = pull_cache("user/minilm-wordnet", "caches")
        >>> cache.embeddings(cache.rows_for(texts)).dtype
        dtype('float16')
    """
    check_repo_id(repo_id)
    with _pull_errors(repo_id):
        commit = HfApi().dataset_info(repo_id, revision=revision).sha

    def download(name: str) -> Path:
        with _pull_errors(repo_id):
            return Path(hf_hub_download(repo_id, name, repo_type="dataset", revision=commit))

    manifest = _read_manifest(repo_id, download)
    target = teacher_folder(folder, manifest.spec)
    known = (target / MANIFEST_NAME).is_file()
    if known and Manifest.load(target).shards != manifest.shards:
        raise ValueError(
            f"{target} holds another cache of this teacher than {repo_id}: of other texts, or written elsewhere. Pull "
            f"into another folder, or delete the {MANIFEST_NAME} there; shards of both are not downloaded again."
        )
    target.mkdir(parents=True, exist_ok=True)
    for number, shard in enumerate(manifest.shards):
        file = target / shard.file
        if not file.is_file() or sha256_of_file(file) != shard.sha256:
            name = DATA_FILES.format(number, len(manifest.shards))
            with _misfits(repo_id, name):
                _rebuild(download(name), shard, manifest, target)
    if not known:
        manifest.save(target)
    return TeacherCache.open(target, manifest.spec)


# ---- to the Hub ----


def _check_texts(cache: TeacherCache, texts: Sequence[str]) -> None:
    """The texts are those of the cache, row by row, and hold no access token.

    Raises:
        ValueError: Names the first row that is wrong.
    """
    hashes, _ = hash_texts(texts)
    if len(hashes) != len(cache):
        raise ValueError(
            f"There are {len(hashes)} texts, but the teacher cache {cache.path} has {len(cache)} rows. Give the texts "
            "that it was written from, or none."
        )
    wrong = np.flatnonzero(hashes != cache.text_hashes)
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"{len(wrong)} of {len(hashes)} texts are not those of the teacher cache {cache.path}; the first is number "
            f"{row}: {texts[row][:80]!r}. Give the texts that it was written from, in the same order, or none."
        )
    # Prose may speak of folders and names, so only tokens are searched for.
    for start in range(0, len(hashes), _SCANNED_ROWS):
        found = list(find_tokens("\n".join(texts[start : start + _SCANNED_ROWS])))
        if found:
            raise ValueError(
                f"Texts {start} to {min(start + _SCANNED_ROWS, len(hashes)) - 1} hold {', '.join(found)}. Nothing was "
                "published. Drop such texts and write the cache again, or push it without texts."
            )


def _write_parquet(cache: TeacherCache, texts: Sequence[str] | None, folder: Path) -> None:
    """Write every shard as one parquet file of a data set."""
    from datasets import Dataset

    shards, start = cache.manifest.shards, 0
    (folder / "data").mkdir()
    for number, shard in enumerate(shards):
        part = None if texts is None else list(texts[start : start + shard.rows])
        table = _to_table(open_shard(cache.path / shard.file), cache.spec.signals, part)
        Dataset(table).to_parquet(str(folder / DATA_FILES.format(number, len(shards))))
        start += shard.rows


def _to_table(arrays: dict[str, np.ndarray], signals: Sequence[str], texts: list[str] | None) -> pa.Table:
    """Return a shard as a table; a hidden layer is a list of vectors, one a token."""
    columns = {} if texts is None else {"text": pa.array(texts, pa.string())}
    columns["text_hash"] = pa.array(arrays["text_hash"])
    for name in signals:
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(arrays[name].reshape(-1)), arrays[name].shape[1])
        if name != "embedding":
            vectors = pa.ListArray.from_arrays(pa.array(arrays["offsets"], pa.int32()), vectors)
        columns[name] = vectors
    return pa.table(columns)


def _publish(folder: Path, repo_id: str, private: bool | None, revision: str | None) -> None:
    """Make a folder the content of a data set's revision in one commit."""
    api = HfApi()
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    with hub_errors(repo_id):
        api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        if private and api.dataset_info(repo_id).private is False:
            raise ValueError(
                f"The data set {repo_id} exists and is public; nothing was pushed. Make it private in its settings on "
                "the Hub, choose another id, or leave out the wish for a private one."
            )
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, repo_type="dataset", exist_ok=True)
        there = set(api.list_repo_files(repo_id, revision=revision, repo_type="dataset"))
        if there - _NOT_DATA and MANIFEST_NAME not in there:
            raise ValueError(
                f"The data set {repo_id} exists and holds something else than a teacher cache; nothing was pushed. "
                "Choose another id."
            )
        operations = [CommitOperationAdd(name, path) for name, path in files.items()]
        operations += [CommitOperationDelete(name) for name in sorted(there - set(files)) if _PARQUET.fullmatch(name)]
        title = "Upload teacher cache"
        api.create_commit(repo_id, operations, commit_message=title, revision=revision, repo_type="dataset")


# ---- from the Hub ----


def _read_manifest(repo_id: str, download: Callable[[str], Path]) -> Manifest:
    """Download the manifest of a data set and check what can be checked without the data."""
    try:
        path = download(MANIFEST_NAME)
    except errors.RemoteEntryNotFoundError as error:
        raise FileNotFoundError(
            f"The data set {repo_id} holds no {MANIFEST_NAME}, so it is no teacher cache. Check the id and the "
            "revision; push_cache publishes one."
        ) from error
    try:
        manifest = Manifest.load(path.parent)
        if not all(_SHARD.fullmatch(shard.file) for shard in manifest.shards):  # names become paths on this machine
            raise ValueError("it names shards as no teacher cache does")
        if manifest.num_rows != sum(shard.rows for shard in manifest.shards):
            raise ValueError(f"its shards do not have {manifest.num_rows} rows together")
    except ValueError as error:
        raise ValueError(
            f"{repo_id}: {MANIFEST_NAME} was changed or damaged. Ask its owner to push the cache again, or pull another "
            f"revision. ({error})"
        ) from error
    return replace(manifest, projections=())


def _rebuild(file: Path, shard: ShardInfo, manifest: Manifest, folder: Path) -> None:
    """Make a shard out of its parquet file.

    Raises:
        ValueError: If it is not the shard that the manifest names; then none is left.
    """
    table = pq.read_table(file)
    arrays = {
        "text_hash": table["text_hash"].combine_chunks().to_numpy(),
        "token_count": np.array([shard.tokens], dtype=np.int64),
    }
    for name in manifest.spec.signals:
        vectors = table[name].combine_chunks()
        if name != "embedding":
            offsets = vectors.offsets.to_numpy().astype(np.int64)
            arrays["offsets"] = offsets - offsets[0]
            vectors = vectors.flatten()
        arrays[name] = vectors.flatten().to_numpy().reshape(len(vectors), -1)
    shape = (shard.rows, manifest.dim)
    if arrays["embedding"].shape != shape:
        raise ValueError(f"its embeddings are {arrays['embedding'].shape}, the manifest says {shape}")
    if "text" in table.column_names:
        hashes, _ = hash_texts(table["text"].to_pylist())
        if not np.array_equal(hashes, arrays["text_hash"]):
            row = int(np.flatnonzero(hashes != arrays["text_hash"])[0])
            raise ValueError(f"the text of its row {row} does not have the hash beside it")
    found = save_shard(folder, _SHARD.fullmatch(shard.file)[1], arrays)
    if found != shard:
        (folder / found.file).unlink()
        raise ValueError(f"its rows give the SHA-256 {found.sha256}, the manifest says {shard.sha256}")


@contextmanager
def _misfits(repo_id: str, name: str) -> Iterator[None]:
    """Says that a file of the data is missing, unreadable or not what the manifest names.

    Raises:
        ValueError: With what is wrong.
    """
    try:
        yield
    except errors.RemoteEntryNotFoundError as error:
        raise ValueError(_misfit(repo_id, name, "it is missing")) from error
    except (ValueError, KeyError, AttributeError, pa.ArrowException) as error:
        raise ValueError(_misfit(repo_id, name, str(error))) from error


def _misfit(repo_id: str, name: str, why: str) -> str:
    return (
        f"{repo_id}: {name} does not fit {MANIFEST_NAME}: {why}. Nothing of this file was kept. Ask its owner to push "
        "the cache again, or pull another revision."
    )


@contextmanager
def _pull_errors(repo_id: str) -> Iterator[None]:
    """Says what a failed download means and what to do. A file that does not exist is left to the caller.

    Raises:
        PermissionError: The data set is gated, or the token is not accepted.
        FileNotFoundError: There is no such data set or revision.
        ConnectionError: The Hub cannot be reached, or fails.
    """
    try:
        yield
    except errors.RemoteEntryNotFoundError:
        raise
    except errors.OfflineModeIsEnabled as error:
        raise ConnectionError(f"{repo_id}: HF_HUB_OFFLINE is set. Unset it to pull.") from error
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"{repo_id} is gated: ask for access on its page and log in, `hf auth login`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"The data set {repo_id} has no such revision on the Hub: {error}") from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"The data set {repo_id} does not exist on the Hub, or the token may not see it. Check the id, or log in "
            "with `hf auth login`."
        ) from error
    except (errors.HTTPError, errors.LocalEntryNotFoundError) as error:
        status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
        if status in (401, 403):
            raise PermissionError(f"{repo_id}: the Hub does not accept the token. Log in, `hf auth login`.") from error
        raise ConnectionError(
            f"{repo_id} could not be downloaded: {error}. What arrived is kept; pull again."
        ) from error


__all__ = ["pull_cache", "push_cache"]

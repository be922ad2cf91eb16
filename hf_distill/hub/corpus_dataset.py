"""Encoded corpora as data sets on the Hub, with a card that says whose ids and whose vectors the columns hold."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow.parquet as pq
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCard, DatasetCardData, HfApi

from hf_distill.data.corpus_manifest import CORPUS_NAME, CorpusManifest
from hf_distill.hub.markdown import cell, markdown_table
from hf_distill.hub.push import check_access, hub_errors
from hf_distill.hub.scan import find_tokens, scan_folder
from hf_distill.hub.short_card import TAGS

_NOT_DATA = {".gitattributes", "README.md"}
_SCANNED_ROWS = 4096
_BODY = """\
# {title}

{rows} texts, each with its token ids of {count} and with the embedding of one teacher, {teacher}: students that differ
in their tokenizer learn from the same rows, without the teacher and without tokenising anything. Made by hf_distill.

## Columns

{columns}

Of {texts} texts {dropped} were left out, because they have more than {max_tokens} tokens for one of the tokenizers, or
none. Nothing was cut.

## The tokenizers

{tokenizers}

A text may be over the limit for several of them.

## The teacher

{identity}

## Use

```python
from hf_distill.data.encoded_corpus import load_encoded_corpus

dataset = load_encoded_corpus("{repo_id}")  # every row is checked
```

## Limits

The texts belong to their sources, whose licences bind them; this card does not know them.{sources} The teacher's licence
may bind its embeddings and the students that learn from them.
"""


def push_corpus(folder: str | Path, repo_id: str, *, private: bool | None = None) -> str:
    """Publishes an encoded corpus as a data set, in one commit.

    Args:
        folder: What `encode_corpus` wrote.
        repo_id: `user/name`; created where it does not exist. A corpus that is there already is replaced.
        private: Whether a new data set is private; an existing one must be so already.

    Returns:
        The address of the data set's page.

    Raises:
        ValueError: If the id is malformed, a text or the card holds what must not be published, or the repository holds
            something else.
        FileNotFoundError: If the folder holds no finished corpus.
        PermissionError: If nobody is logged in, or the token may not write there.
        ConnectionError: If the Hub cannot be reached or fails. Nothing is published then; push again.

    Example:
        >>> push_corpus("runs/corpus", "user/turkish-encoded", private=True)
        'https://huggingface.co/datasets/user/turkish-encoded'
    """
    folder, repo_id = Path(folder), check_access(repo_id)
    manifest = CorpusManifest.load(folder)
    files = {shard.file: folder / shard.file for shard in manifest.shards}
    for name, file in files.items():
        _check_file(name, file)
    with tempfile.TemporaryDirectory(prefix="hf-distill-push-") as work:
        manifest.save(Path(work))
        write_corpus_card(work, manifest, repo_id)
        scan_folder(work, allowed=[repo_id.partition("/")[0]])
        files |= {path.name: path for path in Path(work).iterdir()}
        api = HfApi()
        with hub_errors(repo_id):
            api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
            if private and api.dataset_info(repo_id).private is False:
                raise ValueError(
                    f"The data set {repo_id} exists and is public; nothing was pushed. Make it private in its settings "
                    "on the Hub, choose another id, or leave out the wish for a private one."
                )
            there = set(api.list_repo_files(repo_id, repo_type="dataset"))
            if there - _NOT_DATA and CORPUS_NAME not in there:
                raise ValueError(
                    f"The data set {repo_id} exists and holds something else than an encoded corpus; nothing was pushed. "
                    "Choose another id."
                )
            stale = sorted(name for name in there - set(files) if name.startswith("data/"))
            operations = [CommitOperationAdd(name, path) for name, path in files.items()]
            operations += [CommitOperationDelete(name) for name in stale]
            api.create_commit(repo_id, operations, commit_message="Upload encoded corpus", repo_type="dataset")
    return f"{api.endpoint}/datasets/{repo_id}"


def write_corpus_card(folder: str | Path, manifest: CorpusManifest, repo_id: str) -> Path:
    """Writes `README.md` into the folder of a data set.

    Args:
        folder: Where to.
        manifest: Of the corpus.
        repo_id: The data set's id on the Hub.

    Returns:
        The card's file.
    """
    title = repo_id.rpartition("/")[2]
    data = DatasetCardData(
        license="unknown",  # the texts' and the teacher's, which a corpus does not record
        pretty_name=title,
        task_categories=["feature-extraction"],
        tags=[*TAGS, "embeddings", "tokenizers"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}],
    )
    count = len(manifest.tokenizers)
    sources = manifest.origin.get("sources", {})
    body = _BODY.format(
        title=title,
        rows=f"{manifest.rows:,}",
        count=f"{count} tokenizers" if count > 1 else "one tokenizer",
        teacher=f"`{cell(manifest.teacher.get('teacher'))}`",
        columns=_columns(manifest),
        texts=f"{manifest.texts:,}",
        dropped=f"{manifest.dropped:,}",
        max_tokens=f"{manifest.max_tokens:,}",
        tokenizers=_tokenizers(manifest),
        identity=markdown_table(
            ("field", "value"),
            [(cell(k), cell(v)) for k, v in manifest.teacher.items() if v not in ("", None)],
            left=2,
        ),
        repo_id=repo_id,
        sources=f" They are: {', '.join(cell(name) for name in sources)}." if sources else "",
    )
    path = Path(folder) / "README.md"
    DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{body}").save(path)
    return path


def _columns(manifest: CorpusManifest) -> str:
    """The columns, as a table."""
    rows = [("`text`", "string", "the text")]
    special = "with" if manifest.add_special_tokens else "without"
    rows += [
        (f"`{name}_input_ids`", "int32, tokens", f"ids, {special} special tokens") for name in manifest.tokenizers
    ]
    rows.append(("`teacher_embedding_final`", f"{manifest.dtype}, {manifest.dim}", "the teacher's embedding"))
    return markdown_table(("column", "type", "what it holds"), rows, left=3)


def _tokenizers(manifest: CorpusManifest) -> str:
    """The tokenizers and what they made of the texts, as a table."""
    rows = [
        (
            f"`{name}`",
            cell(info.name),
            f"`{info.sha256[:12]}`",
            f"{info.vocab_size:,}",
            f"{info.tokens / max(manifest.rows, 1):.1f}",
            f"{info.longest:,}",
            f"{info.over_limit:,}",
        )
        for name, info in manifest.tokenizers.items()
    ]
    header = ("name", "class", "SHA-256", "ids", "tokens a row", "longest row", "texts over the limit")
    return markdown_table(header, rows, left=3)


def _check_file(name: str, file: Path) -> None:
    """Refuse a shard that is missing or holds an access token. Prose may speak of folders and names."""
    if not file.is_file():
        raise FileNotFoundError(f"The corpus lacks {name}. Encode it (recipes/encode_corpus.py) again.")
    for batch in pq.ParquetFile(file).iter_batches(_SCANNED_ROWS, columns=["text"]):
        found = list(find_tokens("\n".join(batch["text"].to_pylist())))
        if found:
            raise ValueError(f"Texts of {name} hold {', '.join(found)}. Nothing was published. Leave such texts out.")


__all__ = ["push_corpus", "write_corpus_card"]

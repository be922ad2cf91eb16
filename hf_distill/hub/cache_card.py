"""The card of a teacher cache on the Hub: whose answers these are, exactly, what the columns hold, how to load them."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData

from hf_distill.hub.markdown import cell, markdown_table
from hf_distill.hub.short_card import TAGS
from hf_distill.teachers.manifest import MANIFEST_NAME, Manifest

# `datasets` finds the split in the names; the numbers are those of the cache's shards.
DATA_FILES = "data/train-{:05d}-of-{:05d}.parquet"

_BODY = """\
# {title}

What the teacher {teacher} says about {rows} texts: one embedding of {dim} float16 numbers a row. It is a teacher cache
of hf_distill: students learn from it without running the teacher.

## The teacher

{identity}

A cache serves only the teacher with this fingerprint; `{manifest}` holds it with the SHA-256 of every shard.

## Columns

{columns}

## Use

```python
from datasets import load_dataset

rows = load_dataset("{repo_id}"{revision}, split="train", streaming=True)
```

As a cache, which hf_distill's trainers read by memory map; every shard is compared with its SHA-256 on arrival:

```python
from hf_distill.hub.cache_dataset import pull_cache

cache = pull_cache("{repo_id}", "teacher_caches"{revision})
targets = cache.embeddings(cache.rows_for(texts))
```

## Limits

{texts} The teacher's licence may bind its embeddings and the students that learn from them. Longer inputs than the
longest above were cut.
"""
_WITH_TEXTS = "The texts belong to their source, whose licence binds them; this card does not know it."
_WITHOUT_TEXTS = "The texts are not part of this data set; a row is found by the hash of its text."


def write_cache_card(
    folder: str | Path, manifest: Manifest, repo_id: str, *, with_texts: bool, revision: str | None = None
) -> Path:
    """Writes `README.md` into the folder of a data set.

    Args:
        folder: Where to.
        manifest: Of the cache.
        repo_id: The data set's id on the Hub.
        with_texts: Whether there is a column of texts.
        revision: The branch it is pushed to, if not the main one.

    Returns:
        The card's file.
    """
    spec, title = manifest.spec, repo_id.rpartition("/")[2]
    data = DatasetCardData(
        license="unknown",  # the texts' and the teacher's, which a cache does not record
        pretty_name=title,
        task_categories=["feature-extraction"],
        tags=[*TAGS, "teacher-cache", "embeddings"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}],
    )
    body = _BODY.format(
        title=title,
        teacher=f"`{cell(spec.teacher)}`",
        rows=f"{manifest.num_rows:,}",
        dim=manifest.dim,
        identity=_identity(manifest),
        manifest=MANIFEST_NAME,
        columns=_columns(manifest, with_texts),
        repo_id=repo_id,
        revision=f', revision="{revision}"' if revision else "",
        texts=_WITH_TEXTS if with_texts else _WITHOUT_TEXTS,
    )
    path = Path(folder) / "README.md"
    DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{body}").save(path)
    return path


def _identity(manifest: Manifest) -> str:
    """The fields that decide the bytes of the cache, as a table."""
    spec = manifest.spec
    rows = {
        "teacher": spec.teacher,
        "revision": spec.revision or "not known",
        "SHA-256 of the weights": spec.weights_sha256 or "none: a function, not a model",
        "SHA-256 of the tokenizer": spec.tokenizer_sha256 or "none",
        "prompt": repr(spec.prompt) if spec.prompt else "none",
        "pooling": spec.pooling or "not known",
        "normalised to length 1": "yes" if spec.normalize else "no",
        "dimensions": f"{manifest.dim}" + (f" (the first {spec.truncate_dim})" if spec.truncate_dim else ""),
        "longest input, tokens": spec.max_seq_length or "no limit",
        "precision of the teacher": spec.dtype,
        "rows": f"{manifest.num_rows:,}",
        "tokens": f"{manifest.num_tokens:,}" if manifest.num_tokens else "not counted",
        "fingerprint": spec.fingerprint,
    }
    return markdown_table(("field", "value"), [(name, cell(value)) for name, value in rows.items()], left=2)


def _columns(manifest: Manifest, with_texts: bool) -> str:
    """The columns, as a table."""
    rows = [("`text`", "string", "the text")] if with_texts else []
    rows.append(("`text_hash`", "uint64", "BLAKE2b of the text's UTF-8, 8 bytes, little-endian"))
    rows.append(("`embedding`", f"float16, {manifest.dim}", "the teacher's embedding"))
    for layer in manifest.spec.hidden_layers:
        what = f"output of layer {layer}" if layer else "output of the embedding layer"
        rows.append((f"`hidden_{layer}`", "float16, tokens x width", f"{what}, a vector a token"))
    return markdown_table(("column", "type", "what it holds"), rows, left=3)


__all__ = ["DATA_FILES", "write_cache_card"]

"""Write what a teacher says about a text source into a resumable cache.

```bash
accelerate launch recipes/cache_teacher.py --teacher sentence-transformers/all-MiniLM-L6-v2 \
    --source wordnet_topics --limit 20000 --output_dir runs/teachers
```

A job that was killed, interrupted (Ctrl-C) or run out of disk goes on where it was when it is run again; a larger
`--limit` extends it. Several teachers may share one `--output_dir`: each has its own sub-folder. With several
processes, each takes its share of the shards. `--push_to_hub user/name --private` publishes cache and texts.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_distill.teachers.cached import TeacherCache


@dataclass
class CacheTeacherConfig:
    """What to cache, with which teacher, and where."""

    teacher: str = field(metadata={"help": "A sentence-transformers id or folder, or use-multilingual-v3."})
    source: str = field(metadata={"help": "Text source: a name, for instance wordnet_topics or allnli, or a file."})
    output_dir: str = field(metadata={"help": "Folder of the caches; every teacher gets a sub-folder."})
    split: str = field(default="train", metadata={"help": "Split of the source."})
    limit: int | None = field(default=None, metadata={"help": "Take only the first texts of the shuffled source."})
    seed: int = field(default=42, metadata={"help": "Seed of the source's shuffling."})
    teacher_name: str | None = field(default=None, metadata={"help": "Name in the manifest, if not the id."})
    revision: str | None = field(default=None, metadata={"help": "Hub revision of the teacher."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Allow a teacher with its own code on the Hub."})
    prompt: str | None = field(default=None, metadata={"help": "Text put before every input."})
    prompt_name: str | None = field(default=None, metadata={"help": "One of the teacher's own prompts, by its name."})
    normalize: bool | None = field(default=None, metadata={"help": "Scale to length 1. Default: as the teacher does."})
    truncate_dim: int | None = field(default=None, metadata={"help": "Keep the first dimensions only (Matryoshka)."})
    max_seq_length: int | None = field(default=None, metadata={"help": "Cut inputs after so many tokens."})
    hidden_layers: list[int] = field(default_factory=list, metadata={"help": "Layers to store too (0: embeddings)."})
    project_dim: int | None = field(default=None, metadata={"help": "Fit a projection to this width on the cache."})
    project_method: str = field(default="pca", metadata={"help": "Kind of the projection: pca or truncate."})
    dtype: str = field(default="auto", metadata={"help": "Precision: auto, float32, bfloat16 or float16."})
    device: str | None = field(default=None, metadata={"help": "Where to run; by default the best device there is."})
    tokens_per_batch: int | None = field(default=None, metadata={"help": "Padded tokens of a batch."})
    shard_rows: int | None = field(default=None, metadata={"help": "Rows of a shard."})
    overwrite: bool = field(default=False, metadata={"help": "Replace a cache of other texts of this teacher."})
    verify: bool = field(default=False, metadata={"help": "Read everything back and compare it with the hashes."})
    push_to_hub: str | None = field(default=None, metadata={"help": "Publish it with its texts as user/name."})
    private: bool = field(default=False, metadata={"help": "The data set on the Hub must be private."})

    def __post_init__(self) -> None:
        """Check what can be checked before anything is loaded."""
        if self.private and self.push_to_hub is None:
            raise ValueError("--private says who may see a data set on the Hub: give --push_to_hub user/name, too.")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit is {self.limit}; it must be at least 1.")


def load_texts(config: CacheTeacherConfig) -> list[str]:
    """Return the texts; of a source of pairs, every different text of both columns once."""
    from hf_distill.data.sources import load_source

    dataset = load_source(config.source, split=config.split, limit=config.limit, seed=config.seed)
    if "text" in dataset.column_names:
        return list(dataset["text"])
    return list(dict.fromkeys(text for name in ("anchor", "positive") for text in dataset[name]))


def main(config: CacheTeacherConfig) -> dict[str, Any]:
    """Write the cache, print what it cost, and return the same as a dictionary."""
    from hf_distill.hub.cache_dataset import push_cache
    from hf_distill.hub.push import check_access
    from hf_distill.teachers.named import named_teacher
    from hf_distill.teachers.projection import project_cache
    from hf_distill.teachers.writer import process_state, write_cache

    state = process_state()  # before the model is loaded: every process gets its own device
    if config.push_to_hub is not None:
        check_access(config.push_to_hub)
    texts = load_texts(config)
    teacher, spec = named_teacher(
        config.teacher,
        label=config.teacher_name,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        device=config.device,
        dtype=config.dtype,
        prompt=config.prompt,
        prompt_name=config.prompt_name,
        normalize=config.normalize,
        truncate_dim=config.truncate_dim,
        max_seq_length=config.max_seq_length,
        hidden_layers=tuple(config.hidden_layers),
    )
    options = {"tokens_per_batch": config.tokens_per_batch, "shard_rows": config.shard_rows}
    cache = write_cache(texts, teacher, config.output_dir, spec=spec, overwrite=config.overwrite, **options)
    if config.project_dim is not None:
        cache = project_cache(cache, config.project_dim, config.project_method)
    if config.verify:
        cache.verify()
    result = report(cache, show=state.is_main_process)
    if config.push_to_hub is not None and state.is_main_process:
        print(push_cache(cache, config.push_to_hub, texts=texts, private=config.private or None))
    return result


def report(cache: TeacherCache, show: bool = True) -> dict[str, Any]:
    """Return the summary of a cache, and print it."""
    from rich.console import Console
    from rich.table import Table

    size = sum((cache.path / shard.file).stat().st_size for shard in cache.manifest.shards)
    result = {
        "path": str(cache.path),
        "rows": len(cache),
        "dim": cache.dim,
        "bytes_per_row": size / len(cache),
        "tokens": cache.manifest.num_tokens,
    }
    if cache.report is not None:
        result |= {
            "new_rows": cache.report.rows,
            "reused_rows": cache.report.reused_rows,
            "tokens_per_second": cache.report.tokens_per_second,
            "minutes": cache.report.seconds / 60,
        }
    table = Table(title=f"teacher cache: {cache.spec.teacher}", show_header=False)
    for name, value in (result | {"manifest": str(cache.path / "manifest.json")}).items():
        table.add_row(name.replace("_", " "), f"{value:,.2f}" if isinstance(value, float) else str(value))
    if show:
        Console().print(table)
    return result


if __name__ == "__main__":
    from hf_distill.hardware import use_all_cores
    from hf_distill.trainers.recipe_arguments import parse_arguments

    use_all_cores()
    try:
        main(*parse_arguments((CacheTeacherConfig,), sys.argv[1:], __doc__))
    except KeyboardInterrupt as stop:
        print(stop, file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")

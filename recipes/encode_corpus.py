r"""Encode a text corpus once: ids of several tokenizers and a teacher's vectors, as one data set for many students.

```bash
accelerate launch recipes/encode_corpus.py --config recipes/configs/tokenizer/corpus_e5.yaml --stsb_tr_folder FOLDER
accelerate launch recipes/encode_corpus.py --sources '{"my_texts.jsonl": 1}' --no_remove_overlap --teacher TEACHER \
    --tokenizers '{"mft": "mft", "tabi": "runs/tokenizers/tabi"}' --output_dir runs/corpus
```

Columns: `text`, `mft_input_ids`, `tabi_input_ids`, `teacher_embedding_final`. Texts over `--max_tokens` for any tokenizer
are left out and counted. Stop it at any time (Ctrl-C, kill): the same line goes on from the finished shards. A larger
corpus of the same texts at its start extends one. `--num_proc` tokenises in several processes, and the processes of
`accelerate launch` share the shards. `--push_to_hub user/name --private` publishes it.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_distill.data.encoded_corpus import EncodedCorpusReport


@dataclass
class EncodeCorpusConfig:
    """Which texts, which tokenizers, which teacher, and where to."""

    output_dir: str = field(metadata={"help": "Folder of the corpus."})
    tokenizers: dict | str | None = field(
        default=None,
        metadata={
            "help": 'Tokenizers by column name, such as {"mft": "mft", "tabi": "runs/tokenizers/tabi"}: ids or folders.'
        },
    )
    teacher: str | None = field(default=None, metadata={"help": "Teacher: an id on the Hub, or a folder."})
    teacher_cache: str | None = field(
        default=None, metadata={"help": "Cache that holds the teacher's vectors of all texts, in place of a teacher."}
    )
    sources: dict | str | None = field(
        default=None, metadata={"help": 'Text sources by weight, such as {"kenet": 3, "speeches_tr": 1}, or files.'}
    )
    num_texts: int = field(default=60_000, metadata={"help": "Texts at most."})
    seed: int = field(default=42, metadata={"help": "Seed of the sources' shuffling."})
    remove_overlap: bool = field(
        default=True, metadata={"help": "Leave out texts that overlap with STSb-TR or the held-out glosses."}
    )
    stsb_tr_folder: str | None = field(
        default=None, metadata={"help": "Folder of STSb-TR's dev.tsv and test.tsv. Default: from the Hub."}
    )
    max_tokens: int = field(default=512, metadata={"help": "Leave out texts that are longer for any tokenizer."})
    add_special_tokens: bool = field(default=True, metadata={"help": "With the tokenizers' special tokens."})
    num_proc: int = field(default=1, metadata={"help": "Processes that tokenise."})
    prompt: str | None = field(default=None, metadata={"help": "Text that the teacher gets before every input."})
    prompt_name: str | None = field(default=None, metadata={"help": "One of the teacher's own prompts, by its name."})
    teacher_max_length: int | None = field(default=None, metadata={"help": "Cut the teacher's inputs there."})
    teacher_revision: str | None = field(default=None, metadata={"help": "Revision of the teacher on the Hub."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Allow teacher and tokenizers with own code."})
    device: str | None = field(default=None, metadata={"help": "Where the teacher runs; by default the best device."})
    precision: str = field(default="auto", metadata={"help": "Of the teacher: auto, float32, bfloat16 or float16."})
    dtype: str = field(default="float16", metadata={"help": "Of the stored vectors: float16 or float32."})
    cache_dir: str | None = field(default=None, metadata={"help": "Teacher cache. Default: OUTPUT_DIR/teacher_cache."})
    shard_rows: int = field(default=8192, metadata={"help": "Texts of a file: the most that a kill costs."})
    overwrite: bool = field(default=False, metadata={"help": "Replace another corpus in output_dir."})
    push_to_hub: str | None = field(default=None, metadata={"help": "Publish it as the data set user/name."})
    private: bool = field(default=False, metadata={"help": "The data set on the Hub must be private."})

    def __post_init__(self) -> None:
        """Check what can be checked before anything is loaded."""
        for name in ("sources", "tokenizers"):
            value = getattr(self, name)
            try:
                setattr(self, name, json.loads(value) if isinstance(value, str) else value or {})
            except json.JSONDecodeError as error:
                raise ValueError(f'{name} must be JSON such as {{"a": "b"}}, but is {value!r}.') from error
            if not getattr(self, name):
                raise ValueError(
                    f"Give --{name}, or a --config that has them: recipes/configs/tokenizer/corpus_e5.yaml."
                )
        if (self.teacher is None) == (self.teacher_cache is None):
            raise ValueError("Give --teacher, or --teacher_cache with its vectors, and not both.")
        if self.private and self.push_to_hub is None:
            raise ValueError("--private says who may see a data set on the Hub: give --push_to_hub user/name, too.")


def open_teacher(config: EncodeCorpusConfig) -> tuple[Any, Any]:
    """Return the teacher, or the cache of its vectors, and what identifies it (`None` for a cache)."""
    from hf_distill.teachers.cached import TeacherCache
    from hf_distill.teachers.named import named_teacher

    if config.teacher_cache is not None:
        return TeacherCache.open(config.teacher_cache), None
    return named_teacher(
        config.teacher,
        revision=config.teacher_revision,
        trust_remote_code=config.trust_remote_code,
        device=config.device,
        dtype=config.precision,
        prompt=config.prompt,
        prompt_name=config.prompt_name,
        max_seq_length=config.teacher_max_length,
    )


def main(config: EncodeCorpusConfig) -> EncodedCorpusReport:
    """Encode the corpus, print what was kept and left out, publish it if asked."""
    from hf_distill.data.encoded_corpus import corpus_texts, encode_corpus, load_tokenizer
    from hf_distill.evaluation.turkish import held_out_turkish
    from hf_distill.hub.corpus_dataset import push_corpus
    from hf_distill.hub.push import check_access
    from hf_distill.teachers.writer import process_state

    main_process = process_state().is_main_process  # before the model is loaded: every process gets its own device
    if config.push_to_hub is not None:
        check_access(config.push_to_hub)
    if config.num_proc > 1:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    code = config.trust_remote_code
    tokenizers = {name: load_tokenizer(place, trust_remote_code=code) for name, place in config.tokenizers.items()}
    held_out = held_out_turkish(config.stsb_tr_folder) if config.remove_overlap else []
    texts, rows, overlap = corpus_texts(config.sources, config.num_texts, config.seed, held_out)
    teacher, spec = open_teacher(config)
    names = ("max_tokens", "num_proc", "cache_dir", "add_special_tokens", "dtype", "shard_rows", "overwrite")
    origin = {"sources": rows, "seed": config.seed, "overlap_removed": overlap.removed}
    options = {name: getattr(config, name) for name in names}
    report = encode_corpus(texts, tokenizers, teacher, config.output_dir, spec=spec, origin=origin, **options)
    if main_process:
        print(overlap, report, sep="\n")
        if config.push_to_hub is not None:
            print(push_corpus(config.output_dir, config.push_to_hub, private=config.private or None))
    return report


if __name__ == "__main__":
    from hf_distill.hardware import use_all_cores
    from hf_distill.trainers.recipe_arguments import parse_arguments

    use_all_cores()
    try:
        main(*parse_arguments((EncodeCorpusConfig,), sys.argv[1:], __doc__))
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from the finished shards.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, ImportError, KeyError) as error:
        sys.exit(f"error: {error}")

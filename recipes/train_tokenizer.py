"""Train a byte-level BPE tokenizer on named text sources or files, or take one from the Hub.

```bash
accelerate launch recipes/train_tokenizer.py --output_dir runs/tokenizers/tabi --stsb_tr_folder FOLDER
accelerate launch recipes/train_tokenizer.py --config recipes/configs/tokenizer/tokenizer_tabi.yaml
accelerate launch recipes/train_tokenizer.py --sources '{"my_texts.jsonl": 1}' --no_remove_overlap --output_dir runs/mine
```

Without a configuration it reads the Turkish sources that packages carry (`hf_distill.data.turkish` says which and how to
install them). Training takes about ten seconds for ten million characters. The folder loads with `AutoTokenizer`;
`training.json` beside it says how it was made. With `--from_hub ID` that tokenizer is taken; where the Hub cannot be
reached, one of the same size is trained in its stead, and the note says so.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import Any


@dataclass
class TrainTokenizerConfig:
    """What to train a tokenizer on, how large, and where to."""

    output_dir: str = field(metadata={"help": "Folder of the tokenizer."})
    from_hub: str | None = field(
        default=None,
        metadata={"help": "Take this tokenizer of the Hub; train one only where the Hub cannot be reached."},
    )
    revision: str | None = field(default=None, metadata={"help": "Revision of the Hub's tokenizer."})
    sources: dict | str | None = field(
        default=None,
        metadata={
            "help": 'Text sources by weight, such as {"kenet": 1}. Default: the Turkish ones, each by its size.'
        },
    )
    num_texts: int = field(default=1_000_000, metadata={"help": "Texts at most."})
    seed: int = field(default=42, metadata={"help": "Seed of the sources' shuffling."})
    remove_overlap: bool = field(
        default=True, metadata={"help": "Leave out texts that overlap with STSb-TR or the held-out glosses."}
    )
    stsb_tr_folder: str | None = field(
        default=None, metadata={"help": "Folder of STSb-TR's dev.tsv and test.tsv. Default: from the Hub."}
    )
    vocab_size: int = field(default=32_768, metadata={"help": "Tokens, special ones and bytes included."})
    min_frequency: int = field(default=2, metadata={"help": "Pieces that occur less often are not joined."})
    model_max_length: int = field(default=512, metadata={"help": "Longest input in tokens."})
    wrap: bool = field(default=True, metadata={"help": "Put <s> and </s> around every text."})
    overwrite: bool = field(default=False, metadata={"help": "Replace a tokenizer that lies in output_dir."})

    def __post_init__(self) -> None:
        """Check what can be checked before anything is loaded."""
        if isinstance(self.sources, str):
            try:
                self.sources = json.loads(self.sources)
            except json.JSONDecodeError as error:
                raise ValueError(f'sources must be JSON such as {{"kenet": 1}}, but is {self.sources!r}.') from error
        self.sources = self.sources or {"kenet": 112_000, "treebanks": 4_700, "speeches_tr": 8_200}


def main(config: TrainTokenizerConfig) -> dict[str, Any]:
    """Train or take the tokenizer, save it, print its note and return it."""
    from rich.console import Console
    from rich.table import Table

    from hf_distill.data.bpe import check_folder, describe_texts, save_tokenizer, take_from_hub, train_bpe
    from hf_distill.data.encoded_corpus import corpus_texts

    check_folder(config.output_dir, config.overwrite)
    tokenizer, made = take_from_hub(config.from_hub, config.revision) if config.from_hub else (None, {})
    if tokenizer is None:
        held_out = []
        if config.remove_overlap:
            from hf_distill.evaluation.turkish import held_out_turkish

            held_out = held_out_turkish(config.stsb_tr_folder)
        texts, rows, overlap = corpus_texts(config.sources, config.num_texts, config.seed, held_out)
        print(overlap)
        tokenizer = train_bpe(
            texts,
            config.vocab_size,
            min_frequency=config.min_frequency,
            model_max_length=config.model_max_length,
            wrap=config.wrap,
        )
        made |= {"sources": rows, "seed": config.seed, "min_frequency": config.min_frequency, **describe_texts(texts)}
    note = save_tokenizer(tokenizer, config.output_dir, made, overwrite=config.overwrite)
    table = Table(title=f"tokenizer: {config.output_dir}", show_header=False)
    for name, value in note.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        table.add_row(name.replace("_", " "), shown)
    Console().print(table)
    return note


if __name__ == "__main__":
    from hf_distill.trainers.recipe_arguments import parse_arguments

    try:
        main(*parse_arguments((TrainTokenizerConfig,), sys.argv[1:], __doc__))
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")

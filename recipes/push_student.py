"""Publish the student of a run on the Hub: one self-contained, checked folder with its card, in one commit.

```bash
accelerate launch recipes/push_student.py runs/deltanet_minilm --hub_model_id user/deltanet-minilm --private
```

The folder holds weights (safetensors), code, tokenizer, the card with its figures, `results.json` and `.eval_results/`; no
pickle, token or local path. It is first loaded in a process that cannot import hf_distill and must give the same outputs
to the last bit. Log in before: `hf auth login`, or HF_TOKEN. A push that failed changes nothing and can be repeated.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field


@dataclass
class PushConfig:
    """What to publish, and where."""

    run: str = field(metadata={"help": "Folder of a run with results.json, or of a student; may come without --run."})
    hub_model_id: str = field(
        metadata={"help": "The model's id on the Hub: user/name. Created where it does not exist."}
    )
    private: bool = field(
        default=False, metadata={"help": "Make a new repository private; an existing one must be private already."}
    )
    revision: str | None = field(default=None, metadata={"help": "Branch to push to. Default: the main branch."})
    commit_message: str = field(default="Upload student", metadata={"help": "Title of the commit."})
    no_check: bool = field(default=False, metadata={"help": "Do not load the folder in a clean process first."})


def parse(arguments: list[str]) -> PushConfig:
    """Reads the command line; the run may come first, without its `--run`."""
    from hf_distill.trainers.recipe_arguments import parse_arguments

    if arguments and not arguments[0].startswith("-"):
        arguments = ["--run", *arguments]
    return parse_arguments((PushConfig,), arguments, __doc__)[0]


def main(config: PushConfig) -> str | None:
    """Publishes on the main process and prints the page's address."""
    from accelerate import PartialState

    from hf_distill.hub.push import push_student

    if not PartialState().is_main_process:
        return None
    url = push_student(
        config.run,
        config.hub_model_id,
        private=config.private or None,  # without the wish the account's default counts
        revision=config.revision,
        commit_message=config.commit_message,
        check=not config.no_check,
    )
    print(url)
    return url


if __name__ == "__main__":
    from hf_distill.hardware import use_all_cores

    use_all_cores()
    try:
        main(parse(sys.argv[1:]))
    except KeyboardInterrupt:
        print("Stopped; nothing was published. The same command starts again.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")

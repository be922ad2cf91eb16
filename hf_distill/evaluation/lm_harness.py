"""Causal students on tasks of lm-eval (EleutherAI's evaluation harness), from YAML files on this machine.

lm-eval is an optional extra. Its own tasks come from the Hub; a folder of YAML files with local data needs no network:

```yaml
task: capitals
dataset_path: json
dataset_kwargs: {data_files: {test: capitals.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "The capital of {{country}} is"
doc_to_choice: "{{cities}}"
doc_to_target: "{{answer}}"
```
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_distill.evaluation.isolation import contained

try:
    with contained("lm_eval"):
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
except ImportError as error:
    raise ImportError(
        "Tasks for causal models need lm-eval, which is missing or incomplete here "
        f"({error}). Install the extra: pip install 'hf_distill[eval]'"
    ) from error

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["run_lm_tasks"]


def run_lm_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    include_path: str | Path | None = None,
    batch_size: int = 8,
    limit: int | None = None,
) -> dict[str, float]:
    """Score a causal model on tasks of lm-eval.

    Args:
        model (`PreTrainedModel`): the model, where it is; put into evaluation mode for the call, and back.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer, with an end-of-text or a beginning-of-text token.
        tasks (`Sequence[str]`): names of tasks or groups.
        include_path (`str` or `Path`, *optional*): a folder of YAML tasks; only they are known then. Without it tasks are
            lm-eval's own, whose data come from the Hub.
        batch_size (`int`, *optional*, defaults to 8): sequences at once.
        limit (`int`, *optional*): only the first so many examples of each task, to try one out.

    Returns:
        `dict[str, float]`: `<task>_<metric>` and, where lm-eval estimates it, `<task>_<metric>_stderr`:
        `{"capitals_acc": 0.75, "capitals_acc_stderr": 0.25}`. Metrics after a filter carry its name,
        `gsm8k_exact_match_flexible-extract`.

    Raises:
        FileNotFoundError: there is no folder `include_path`.
        ValueError: no tasks, an unknown one, or a tokenizer without any special token to begin a text with.
        ConnectionError: data that cannot be had from the Hub.

    Example:
        >>> run_lm_tasks(model, tokenizer, ["capitals"], include_path="tasks")
        {'capitals_acc': 0.75, 'capitals_acc_stderr': 0.25}
    """
    manager = _task_manager(list(tasks), include_path)
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise ValueError(
            "The tokenizer has neither a beginning-of-text nor an end-of-text token, and lm-eval begins every text with "
            "one. Set tokenizer.eos_token."
        )
    was_training = model.training
    try:
        with contained("lm_eval"):
            harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
            found = simple_evaluate(
                harness, tasks=list(tasks), task_manager=manager, limit=limit, log_samples=False, bootstrap_iters=1000
            )
    finally:
        model.train(was_training)
    return {} if found is None else _flat(found["results"])


def _task_manager(tasks: Sequence[str], include_path: str | Path | None) -> TaskManager:
    """Index the tasks, and refuse what is not among them."""
    if not tasks:
        raise ValueError("No task is given: name tasks of lm-eval, or of the YAML files in include_path.")
    if include_path is not None and not Path(include_path).is_dir():
        raise FileNotFoundError(
            f"There is no folder {include_path} with YAML tasks; give the folder, not a file in it."
        )
    with contained("lm_eval"):
        where = None if include_path is None else str(include_path)
        manager = TaskManager(include_path=where, include_defaults=include_path is None)
    unknown = [name for name in tasks if name not in manager.all_tasks]
    if unknown:
        known = ", ".join(manager.all_tasks[:20]) + (" ..." if len(manager.all_tasks) > 20 else "")
        place = "lm-eval" if include_path is None else str(include_path)
        raise ValueError(f"{place} has no task {', '.join(map(repr, unknown))}; it has {known or 'none'}.")
    return manager


def _flat(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Turn lm-eval's `{"task": {"acc,none": 0.5, "alias": ...}}` into metrics that a report takes."""
    metrics = {}
    for task, values in results.items():
        for key, value in values.items():
            name, _, kept = key.partition(",")
            if isinstance(value, (int, float)) and "," in key and math.isfinite(value):
                metrics[f"{task}_{name}" + ("" if kept == "none" else f"_{kept}")] = float(value)
    return metrics

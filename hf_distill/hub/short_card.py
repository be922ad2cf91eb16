"""The short card of a student that has no test results: what it is, which step, which validation metrics, how to load it.

Mid-training revisions carry it, so that no page shows a number that is not of the weights beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from hf_distill.hub.own_code import own_code

TAGS = ("hf_distill", "knowledge-distillation")

_BODY = """\
# {title}

{status}

{metrics}

## Use

{install}```python
from {library} import {loader}

model = {loader}.from_pretrained("{repo_id}"{options})
```

Written by hf_distill.
"""


def write_short_card(
    folder: str | Path,
    status: str,
    *,
    metrics: Mapping[str, float] | None = None,
    repo_id: str | None = None,
    revision: str | None = None,
    tags: Sequence[str] = (),
    license: str | None = None,
    language: str | None = None,
) -> Path:
    """Writes `README.md` into the folder of a student.

    Args:
        folder: With the student's files.
        status: What these weights are and what was not measured, in sentences.
        metrics: Validation metrics of these very weights.
        repo_id: The model's id on the Hub.
        revision: The branch it is pushed to, if not the main one.
        tags: Further tags.
        license: The licence's id, such as `apache-2.0`.
        language: The language's code.

    Returns:
        The card's file.
    """
    folder = Path(folder)
    sentences, code = (folder / "modules.json").is_file(), own_code(folder)
    options = f', revision="{revision}"' if revision else ""
    options += ", trust_remote_code=True" if code.files else ""
    data = ModelCardData(
        language=language,
        license=license,
        library_name="sentence-transformers" if sentences else "transformers",
        pipeline_tag="sentence-similarity" if sentences else _pipeline(folder),
        tags=list(dict.fromkeys([*TAGS, *(["custom_code"] if code.files else []), *tags])),
    )
    body = _BODY.format(
        title=(repo_id or "A distilled student").rpartition("/")[2],
        status=status,
        metrics=_table(metrics) if metrics else "No metric of these weights is known.",
        library="sentence_transformers" if sentences else "transformers",
        loader="SentenceTransformer" if sentences else "AutoModel",
        repo_id=repo_id or "path/to/this/folder",
        options=options,
        install=f"```bash\n{code.install}\n```\n\n" if code.install else "",
    )
    if sentences:
        body = body.replace("SentenceTransformer.from_pretrained(", "SentenceTransformer(")
    path = folder / "README.md"
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}").save(path)
    return path


def _pipeline(folder: Path) -> str:
    """The Hub's task of a bare model."""
    config = folder / "config.json"
    names = json.loads(config.read_text(encoding="utf-8")).get("architectures") or [] if config.is_file() else []
    return "text-generation" if any(name.endswith("ForCausalLM") for name in names) else "feature-extraction"


def _table(metrics: Mapping[str, float]) -> str:
    """A table of metrics, said to be validation."""
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in metrics.items())
    return f"| validation metric of these weights | value |\n| --- | --- |\n{rows}"


__all__ = ["TAGS", "write_short_card"]

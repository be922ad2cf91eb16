"""STSb-TR: STS-Benchmark in Turkish, sentence pairs with human similarity scores, from a folder or from the Hub.

The English benchmark was translated by machine; the scores are those that people gave to the English pairs.

Reference: Beken Fikri, Oflazer and Yanikoglu, GEM 2021, https://aclanthology.org/2021.gem-1.3
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.get_logger(__name__)

HUB_ID = "figenfikri/stsb_tr"
FILES = {"train": ("train.tsv", 5749), "validation": ("dev.tsv", 1500), "test": ("test.tsv", 1379)}
_COLUMNS = ("sentence1", "sentence2", "score")
_REMEDY = f"Take the files of {HUB_ID}, or give the folder that holds train.tsv, dev.tsv and test.tsv."


def load_stsb_tr(split: str = "validation", folder: str | Path | None = None) -> Dataset:
    """Load a split of STSb-TR: validation selects, test is read once at the end, train is text without labels.

    Args:
        split (`str`, *optional*, defaults to `"validation"`): `"train"` (5,749 rows), `"validation"` (1,500) or
            `"test"` (1,379).
        folder (`str` or `Path`, *optional*): where `train.tsv`, `dev.tsv` and `test.tsv` are; from the Hub by default.

    Returns:
        `Dataset`: columns `sentence1`, `sentence2` and `score` in 0..1.

    Raises:
        ValueError: an unknown split, or data that is not what it should be; names file, row and column.
        FileNotFoundError: the folder or the file is not there.
        ConnectionError: there is no folder, and the Hub cannot be reached.

    Example:
        >>> load_stsb_tr("test", "data/stsb-tr").num_rows
        1379
    """
    if split not in FILES:
        raise ValueError(f"STSb-TR has no split {split!r}: choose one of {', '.join(FILES)}.")
    from datasets import Dataset, NamedSplit

    if folder is not None:
        name, num_rows = FILES[split]
        return Dataset.from_dict(read_stsb_tr_file(Path(folder) / name, num_rows), split=NamedSplit(split))
    return Dataset.from_dict(_load_from_hub(split), split=NamedSplit(split))


def read_stsb_tr_file(path: Path, num_rows: int) -> dict[str, list]:
    """Read one STSb-TR file: tab-separated, unquoted, with a header that names `score`, `sentence1` and `sentence2`.

    Args:
        path (`Path`): the file.
        num_rows (`int`): the rows it must have; a file of another length is not the split it is named for.

    Returns:
        `dict[str, list]`: columns `sentence1`, `sentence2` (str) and `score` (float, divided by 5 into 0..1).

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: a column is missing, a wrong number of rows, a row with too few or too many fields, an empty
            sentence, a score outside 0..5.
    """
    if not path.is_file():
        raise FileNotFoundError(f"STSb-TR's file {path} is missing. {_REMEDY}")
    try:
        lines = (
            path.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
        )  # not at other line separators of Unicode
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}). {_REMEDY}") from error
    header = lines[0].split("\t")
    missing = [name for name in _COLUMNS if name not in header]
    if missing:
        raise ValueError(f"{path} has the columns {header}, but needs {', '.join(missing)}, too. {_REMEDY}")
    rows = []
    for number, line in enumerate(lines[1:], start=1):
        fields = line.split("\t")
        if len(fields) != len(header):
            raise ValueError(f"{path}, row {number}: {len(fields)} fields, expected are {len(header)}: {line[:80]!r}.")
        rows.append(dict(zip(header, fields, strict=True)))
    return _checked(rows, str(path), num_rows)


def _checked(rows: list[dict[str, Any]], where: str, num_rows: int) -> dict[str, list]:
    """Check every row and take its columns, the scores divided by 5."""
    if len(rows) != num_rows:
        raise ValueError(f"{where} has {len(rows)} rows, this split of STSb-TR has {num_rows}. {_REMEDY}")
    columns: dict[str, list] = {name: [] for name in _COLUMNS}
    for number, row in enumerate(rows, start=1):
        for name in _COLUMNS[:2]:
            if not isinstance(row[name], str) or not row[name].strip():
                raise ValueError(f"{where}, row {number}, column {name!r}: no sentence but {row[name]!r}. {_REMEDY}")
            columns[name].append(row[name].strip())
        try:
            score = float(row["score"])
        except (TypeError, ValueError):
            score = math.nan
        if not 0.0 <= score <= 5.0:
            raise ValueError(
                f"{where}, row {number}, column 'score': {row['score']!r} is no score from 0 to 5. {_REMEDY}"
            )
        columns["score"].append(score / 5.0)
    return columns


def _load_from_hub(split: str) -> dict[str, list]:
    """Load the split from the Hub, where scores are in 0..5."""
    from hf_distill.data.sources import load_from_hub

    logger.info("Loading STSb-TR from the Hub: %s.", HUB_ID)
    remedy = "Without a network give the folder that holds train.tsv, dev.tsv and test.tsv."
    dataset = load_from_hub(HUB_ID, None, split, remedy=remedy)
    missing = [name for name in _COLUMNS if name not in dataset.column_names]
    if missing:
        raise ValueError(f"{HUB_ID} has the columns {dataset.column_names}, but needs {', '.join(missing)}. {_REMEDY}")
    rows = dataset.select_columns(list(_COLUMNS)).to_list()
    return _checked(rows, f"{HUB_ID} ({split})", FILES[split][1])


__all__ = ["load_stsb_tr", "read_stsb_tr_file"]

"""A user's own text: json, jsonl, csv, tsv, parquet and txt files as data sets, checked row by row.

All but parquet may be packed by gzip.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

FORMATS = ("json", "jsonl", "csv", "tsv", "parquet", "txt")
LAYOUTS = (("anchor", "positive"), ("text",))


def is_file_name(name: str) -> bool:
    """Tell whether the name of a source is the path of a file, by its ending.

    Args:
        name (`str`): name of a source.

    Returns:
        `bool`: whether it ends in one of `FORMATS`, `.gz` aside.
    """
    kind = _kind(Path(name))
    return kind in FORMATS and not (kind == "parquet" and name.lower().endswith(".gz"))


def _kind(path: Path) -> str:
    """Tell the format of a file by its ending, `.gz` aside."""
    return Path(path.name.lower().removesuffix(".gz")).suffix[1:]


def _open(path: Path, newline: str | None = None) -> IO[str]:
    """Open a text file, packed by gzip or not."""
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", newline=newline)


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (place, row) of one JSON value a line."""
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield f"line {number}", json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}, line {number}: not valid JSON ({error}): {line[:80]!r}.") from error


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (place, row) of a list of rows; a file that holds no list is read line by line."""
    with _open(path) as file:
        content = file.read()
    if not content.lstrip().startswith("["):
        yield from _json_lines(path)
        return
    try:
        rows = json.loads(content)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}. One row a line belongs into a .jsonl file.") from error
    yield from ((f"row {number}", row) for number, row in enumerate(rows, start=1))


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (place, row) of a file of any of the formats; the place is for error messages."""
    kind = _kind(path)
    if kind == "json":
        yield from _json_rows(path)
    elif kind == "jsonl":
        yield from _json_lines(path)
    elif kind in ("csv", "tsv"):
        with _open(path, newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if kind == "tsv" else ",")
            yield from ((f"line {reader.line_num}", row) for row in reader)
    elif kind == "parquet":
        import pyarrow.parquet  # heavy, and needed for this format alone

        try:
            rows = pyarrow.parquet.read_table(path).to_pylist()
        except pyarrow.ArrowException as error:
            raise ValueError(f"{path} is not a Parquet file that can be read: {error}") from error
        yield from ((f"row {number}", row) for number, row in enumerate(rows, start=1))
    else:
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():  # a text a line; blank lines only separate
                    yield f"line {number}", {"text": line.strip()}


def _named(path: Path, place: str, row: Any) -> dict[Any, Any]:
    """Give a row by its names; a bare list is a pair, as in AllNLI's file, and its negative is left out."""
    if isinstance(row, dict):
        return row
    if not isinstance(row, list):
        raise ValueError(
            f"{path}, {place}: neither an object with named fields nor a list of texts: {str(row)[:80]!r}."
        )
    if len(row) not in (2, 3) or not all(isinstance(text, str) for text in row):
        raise ValueError(
            f"{path}, {place}: a list must be [anchor, positive] or [anchor, positive, negative], all of them texts, but "
            f"this one has {len(row)} entries: {str(row)[:80]!r}."
        )
    return {"anchor": row[0], "positive": row[1]}


def _check_rows(path: Path, rows: Iterable[tuple[str, Any]]) -> Iterator[dict[str, str]]:
    """Yield the text columns of every row; the first row decides whether it is one text or a pair."""
    columns: tuple[str, ...] | None = None
    for place, found in rows:
        row = _named(path, place, found)
        if columns is None:
            columns = next((layout for layout in LAYOUTS if set(layout) <= set(row)), None)
            if columns is None:
                raise ValueError(
                    f"{path} has the columns {sorted(map(str, row))}: name one 'text', or two 'anchor' and 'positive'."
                )
        for column in columns:
            if not isinstance(row.get(column), str) or not row[column].strip():
                raise ValueError(
                    f"{path}, {place}, column {column!r}: no text but {row.get(column)!r}. "
                    "Fill it in, or leave the row out."
                )
        yield {column: row[column].strip() for column in columns}


def load_file(path: str | Path) -> Dataset:
    """Load a text file of the user as a data set.

    Args:
        path (`str` or `Path`): a `.json` (list of rows, or one object a line), `.jsonl`, `.csv`, `.tsv` or `.parquet`
            file with a column `text`, or with `anchor` and `positive`, other columns being left out; or a `.txt` file
            with a text a line. A row of JSON may also be a list, `["anchor", "positive"]` or
            `["anchor", "positive", "negative"]`, of which the negative is left out. All but Parquet may be packed by
            gzip: `AllNLI.jsonl.gz`.

    Returns:
        `Dataset`: the column `text`, or `anchor` and `positive`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty or cannot be read, lacks the columns, or has a row without text; names the place.
    """
    from datasets import Dataset

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Give the path from the folder that the command runs in.")
    try:
        rows = list(_check_rows(path, _rows(path)))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}). Convert it first.") from error
    except (OSError, EOFError, zlib.error) as error:  # the last two: a gzip file that is cut off or damaged
        raise ValueError(f"{path} cannot be read: {error}.") from error
    if not rows:
        raise ValueError(f"{path} is empty: it has no row of text.")
    return Dataset.from_list(rows)

"""The command line and YAML of a recipe: TRL's parser, with errors that name the wrong field and the closest right one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from trl import TrlParser


def parse_arguments(
    types: Sequence[type],
    arguments: Sequence[str],
    description: str | None = None,
    default_config: str | Path | None = None,
) -> tuple[Any, ...]:
    """Reads a recipe's fields from the command line and from the YAML file of `--config`; the command line wins.

    Args:
        types: Dataclasses whose fields the recipe takes.
        arguments: The command line, `sys.argv[1:]`.
        description: What `--help` says first.
        default_config: YAML file that is read when there is no `--config`.

    Returns:
        An instance of every dataclass.

    Raises:
        ValueError: If a field is unknown (the message names the closest one), or the file is not YAML with fields.
        FileNotFoundError: If there is no such file.

    Example:
        >>> recipe, args = parse_arguments((EmbeddingRecipe, EmbeddingDistillConfig), sys.argv[1:], __doc__)
    """
    parser = TrlParser(types, description=description, allow_abbrev=False)
    known = {action.dest for action in parser._actions} - {"help"}
    given = [part for argument in arguments for part in _split_config(argument)]
    if "--config" in given:
        position = given.index("--config") + 1
        if position == len(given):
            raise ValueError("--config needs a file: --config recipes/configs/embedding/deltanet_minilm.yaml")
        check_fields(given[position], known)
    elif default_config is not None and not {"-h", "--help"} & set(given):
        given = ["--config", str(default_config), *given]
    *parsed, rest = parser.parse_args_and_config(given, return_remaining_strings=True)
    if rest:
        options = [part.partition("=")[0][2:] for part in rest if part.startswith("--")]
        raise ValueError(_unknown("The command line has", options, known) if options else f"What is {rest[0]!r}?")
    return tuple(parsed)


def check_fields(config: str | Path, known: Iterable[str]) -> None:
    """Refuses a YAML file with a field that the recipe does not have.

    Args:
        config: The file.
        known: Fields of the recipe.

    Raises:
        ValueError: If a field is unknown, or the file is not YAML with fields.
        FileNotFoundError: If there is no such file.
    """
    path = Path(config)
    if not path.is_file():
        raise FileNotFoundError(f"--config {config}: there is no such file.")
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path}: not valid YAML: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"--config {path}: expected `field: value` lines, found {type(fields).__name__}.")
    unknown = [str(field) for field in fields if field not in {*known, "env"}]
    if unknown:
        raise ValueError(_unknown(f"{path} has", unknown, known))


def _split_config(argument: str) -> list[str]:
    """`--config=FILE` as two arguments, which is the only form TRL's parser knows."""
    name, equals, value = argument.partition("=")
    return [name, value] if name == "--config" and equals else [argument]


def _unknown(where: str, fields: Sequence[str], known: Iterable[str]) -> str:
    """Says which fields are unknown, each with the closest one there is."""
    named = []
    for field in dict.fromkeys(fields):
        close = difflib.get_close_matches(field.replace("-", "_"), sorted(known), n=1, cutoff=0.5)
        named.append(f"{field!r}" + (f" (did you mean {close[0]!r}?)" if close else ""))
    plural = "s" if len(named) > 1 else ""
    return f"{where} the unknown field{plural} {', '.join(named)}. Nothing was done; --help lists every field."


__all__ = ["check_fields", "parse_arguments"]

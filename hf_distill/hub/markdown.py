"""Markdown of the model cards: tables that line up, code blocks and cells that nothing can break out of."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any


def cell(text: Any) -> str:
    """Write a text so that it cannot break out of a Markdown line or table.

    Args:
        text (`Any`): the text.

    Returns:
        `str`: one line, without HTML.
    """
    plain = " ".join(str(text).split())
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "\\|")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Write a table whose columns line up in the source, too.

    Args:
        header (`Sequence[str]`): titles of the columns.
        rows (`Sequence[Sequence[str]]`): cells, already safe for Markdown.
        left (`int`, *optional*, defaults to 1): columns aligned to the left; the others hold numbers.

    Returns:
        `str`: Markdown.
    """
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]
    widths = [max(width, 4) for width in widths]
    rule = [":" + "-" * (width - 1) if i < left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    lines = []
    for line in [header, rule, *rows]:
        cells = [
            text.ljust(width) if column < left else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def fenced(text: str, language: str = "") -> str:
    """Put a text into a code block that its own backticks cannot close."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def command_block(command: str, width: int = 100) -> str:
    """Write a command as a code block, one option a line where it is long.

    Args:
        command (`str`): the command line.
        width (`int`, *optional*, defaults to 100): characters that fit into a line.

    Returns:
        `str`: Markdown.
    """
    if len(command) > width:
        words = [shlex.quote(word) for word in shlex.split(command)]
        command = " ".join(words).replace(" --", " \\\n  --")
    return fenced(command, "bash")


def number(value: float) -> str:
    """Write a number with as many digits as say something."""
    if value >= 1e6:
        return f"{value / 1e6:.1f}M"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 1 else f"{value:.3g}"


def percent(share: float) -> str:
    """Write a share in per cent, without rounding what is less than everything up to it."""
    text = f"{100 * share:.1f}"
    return f"{100 * share:.2f}" if text == "100.0" and share < 1 else text


__all__ = ["cell", "command_block", "fenced", "markdown_table", "number", "percent"]

"""Publishing: self-contained folders, model cards, results in the Hub's formats, pushes."""

from __future__ import annotations

from pathlib import Path

import hf_distill


def templates_folder() -> Path:
    """Find the templates of the model cards: inside an installed wheel, or at the top level of a checkout.

    Returns:
        `Path`: the folder `model_cards`.
    """
    package = Path(hf_distill.__file__).resolve().parent
    installed = package / "model_cards"
    return installed if installed.is_dir() else package.parent / "model_cards"

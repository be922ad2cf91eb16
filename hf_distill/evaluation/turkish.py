"""The evaluation of a Turkish student: STSb-TR and retrieval on aligned glosses, and the text that both are made of.

STSb-TR is STS-B translated: Beken Fikri et al., 2021, https://aclanthology.org/2021.gem-1.3. Its validation split
chooses checkpoints, its test split is read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_distill.evaluation.bitext import BitextEvaluator, gloss_pairs
from hf_distill.evaluation.sts import STSEvaluator

if TYPE_CHECKING:
    import numpy as np
    from sentence_transformers import SentenceTransformer

TURKISH_TASKS = ("stsb_tr", "bitext")


def turkish_evaluators(
    tasks: Sequence[str] = TURKISH_TASKS,
    split: str = "validation",
    dtype: str = "auto",
    folder: str | Path | None = None,
    teacher: SentenceTransformer | np.ndarray | None = None,
) -> dict[str, STSEvaluator | BitextEvaluator]:
    """Make the evaluators of tasks; those of validation serve the training loop.

    Args:
        tasks (`Sequence[str]`, *optional*): among `TURKISH_TASKS`; both by default.
        split (`str`, *optional*, defaults to `"validation"`): `"validation"`, or `"test"` for the chosen model, once.
        dtype (`str`, *optional*, defaults to `"auto"`): precision, see `encode_sorted`; `"float32"` for test scores.
        folder (`str` or `Path`, *optional*): with the files of STSb-TR; from the Hub by default.
        teacher (`SentenceTransformer` or `np.ndarray`, *optional*): who embeds the English candidates of `bitext`.

    Returns:
        `dict[str, SentenceEvaluator]`: task to evaluator. Metrics are `stsb_tr_pearson`, `stsb_tr_spearman`,
        `bitext_recall_at_1` ...

    Raises:
        ValueError: an unknown task or split.
        FileNotFoundError: a package or the folder of STSb-TR is missing; says which.
        ConnectionError: no folder is given, and the Hub cannot be reached.

    Example:
        >>> evaluators = turkish_evaluators(["stsb_tr"], folder="stsb-tr")
        >>> trainer = EmbeddingDistillTrainer(student, args, dataset, evaluator=[*evaluators.values()])
    """
    unknown = [task for task in tasks if task not in TURKISH_TASKS]
    if unknown:
        raise ValueError(f"There is no Turkish task {unknown[0]!r}: choose among {', '.join(TURKISH_TASKS)}.")
    if split not in ("validation", "test"):
        raise ValueError(f"The tasks have no split {split!r}: choose validation or test.")
    evaluators: dict[str, STSEvaluator | BitextEvaluator] = {}
    if "stsb_tr" in tasks:
        from hf_distill.data.stsb_tr import load_stsb_tr

        evaluators["stsb_tr"] = STSEvaluator.from_dataset(load_stsb_tr(split, folder), "stsb_tr", dtype, split)
    if "bitext" in tasks:
        queries, candidates = zip(*gloss_pairs(split), strict=True)
        evaluators["bitext"] = BitextEvaluator(queries, candidates, teacher, dtype=dtype, split=split)
    return evaluators


def held_out_turkish(folder: str | Path | None = None) -> list[str]:
    """List every text of the evaluation, for `data.overlap.remove_overlap`: neither students nor tokenizers see them.

    Args:
        folder (`str` or `Path`, *optional*): with the files of STSb-TR; from the Hub by default.

    Returns:
        `list[str]`: the sentences of STSb-TR and the glosses, both languages, of validation and test.
    """
    from hf_distill.data.stsb_tr import load_stsb_tr
    from hf_distill.data.turkish import held_out_glosses

    pairs = [load_stsb_tr(split, folder) for split in ("validation", "test")]
    sentences = [text for split in pairs for column in ("sentence1", "sentence2") for text in split[column]]
    return list(dict.fromkeys(sentences + held_out_glosses()))


def tokenizer_texts(folder: str | Path | None = None) -> list[str]:
    """List held-out Turkish text that tokenizers are measured on: STSb-TR, glosses, sentences of the Web, speeches.

    Args:
        folder (`str` or `Path`, *optional*): with the files of STSb-TR; from the Hub by default.

    Returns:
        `list[str]`: the distinct texts of the validation splits.
    """
    from hf_distill.data.stsb_tr import load_stsb_tr
    from hf_distill.data.turkish import speech_texts, treebank_texts

    pairs = load_stsb_tr("validation", folder)
    glosses = [pair.turkish for pair in gloss_pairs("validation")]
    prose = treebank_texts("validation") + speech_texts("validation")
    return list(dict.fromkeys([*pairs["sentence1"], *pairs["sentence2"], *glosses, *prose]))


__all__ = ["TURKISH_TASKS", "held_out_turkish", "tokenizer_texts", "turkish_evaluators"]

"""Local mteb tasks: passage retrieval and two classifications on packaged held-out text, and mteb's own STSBenchmark.

They run through `mteb.evaluate` without a network, with `encode_sorted` as the encoder. Each local task has a
`validation` and a `test` split of different texts. The texts come from the installed Python, so figures compare
between models on one machine; results name the version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, DatasetDict

from hf_distill.data.length import BUCKETS, estimate_tokens
from hf_distill.data.stsb import load_stsb
from hf_distill.evaluation.corpus import LabelledTexts, lexname_texts, module_texts, retrieval_passages
from hf_distill.evaluation.encode import encode_sorted
from hf_distill.evaluation.isolation import contained
from hf_distill.evaluation.score_cache import ScoreCache, library_versions, model_fingerprint
from hf_distill.teachers.live import best_dtype

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


try:
    with contained("mteb"):
        import mteb
        from mteb.abstasks import AbsTaskClassification, AbsTaskRetrieval
        from mteb.abstasks.task_metadata import TaskMetadata
        from mteb.models import ModelMeta
        from mteb.models.abs_encoder import AbsEncoder
        from mteb.types import PromptType
except ImportError as error:
    raise ImportError(
        "The retrieval and classification tasks need mteb, a requirement of hf_distill that is missing or too old here "
        f"({error}). Install it: pip install 'mteb>=2.20,<3'"
    ) from error

__all__ = [
    "TASKS",
    "LexnameClassification",
    "ModuleClassification",
    "PromptType",
    "SortedEncoder",
    "StdlibRetrieval",
    "make_task",
    "run_tasks",
    "score_task",
]


def _metadata(name: str, kind: str, main_score: str, description: str, reference: str) -> TaskMetadata:
    """Describe a local task to mteb; the dataset's path says that it is not on the Hub."""
    return TaskMetadata(
        name=name,
        type=kind,
        category="t2t" if kind == "Retrieval" else "t2c",
        description=description,
        reference=reference,
        dataset={"path": f"hf_distill/{name}", "revision": "packaged"},
        eval_splits=["validation", "test"],
        eval_langs=["eng-Latn"],
        main_score=main_score,
        date=("1985-01-01", "2026-12-31"),
        domains=["Programming", "Written"] if reference.startswith("https://docs.python") else ["Written"],
        task_subtypes=[],
        license="not specified",
        annotations_creators="derived",
        dialect=[],
        sample_creation="found",
        bibtex_citation="",
    )


class StdlibRetrieval(AbsTaskRetrieval):
    """Find the passage of Python's documentation that a summary sentence belongs to, among all of its split.

    Beside mteb's scores it has `ndcg_at_10_1_32`, `_33_128` and `_129_256`: the queries whose passage is that long.
    """

    metadata = _metadata(
        "HfdStdlibRetrieval",
        "Retrieval",
        "ndcg_at_10",
        "Summary sentences of the standard library's documentation, each with the passage that follows it.",
        "https://docs.python.org/3/",
    )

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        """Build queries, passages and their relation from the installed Python."""
        if self.data_loaded:
            return
        self.dataset = {"default": {}}
        self.lengths: dict[str, int] = {}
        for split in self.eval_splits:
            passages = retrieval_passages(split)
            ids = [f"{split}-{row}" for row in range(len(passages))]
            self.lengths.update(zip(ids, (estimate_tokens(passage.body) + 2 for passage in passages), strict=True))
            self.dataset["default"][split] = {
                "queries": Dataset.from_dict({"id": ids, "text": [passage.summary for passage in passages]}),
                "corpus": Dataset.from_dict(
                    {"id": ids, "text": [passage.body for passage in passages], "title": [""] * len(passages)}
                ),
                "relevant_docs": {name: {name: 1} for name in ids},
                "top_ranked": None,
            }
        self.data_loaded = True

    def task_specific_scores(self, scores: dict[str, dict[str, float]], *args: Any, **kwargs: Any) -> dict[str, float]:
        """Average nDCG@10 over the queries of each length bucket; `scores` has one dict a query."""
        means = {}
        for low, high in BUCKETS:
            top = high if (low, high) != BUCKETS[-1] else max(self.lengths.values())
            values = [score["ndcg_cut_10"] for name, score in scores.items() if low <= self.lengths[name] <= top]
            if values:
                means[f"ndcg_at_10_{low}_{high}"] = float(np.mean(values))
        return means


class _LocalClassification(AbsTaskClassification):
    """A classification whose texts are packaged: a probe is trained on 16 embeddings a class, ten times."""

    samples_per_label = 16
    n_experiments = 10

    @staticmethod
    def labelled_texts(split: str) -> LabelledTexts:
        """Give the texts of `"train"`, `"validation"` or `"test"`."""
        raise NotImplementedError

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        """Build the splits, with the classes numbered in alphabetical order."""
        if self.data_loaded:
            return
        splits = {split: self.labelled_texts(split) for split in ("train", *self.eval_splits)}
        number = {label: i for i, label in enumerate(sorted(set(splits["train"].labels)))}
        self.dataset = DatasetDict()
        for split, (texts, labels) in splits.items():
            kept = [(text, number[label]) for text, label in zip(texts, labels, strict=True) if label in number]
            self.dataset[split] = Dataset.from_dict(
                {"text": [text for text, _ in kept], "label": [n for _, n in kept]}
            )
        self.data_loaded = True


class LexnameClassification(_LocalClassification):
    """Classify the definitions of held-out nouns by WordNet's 12 largest fields (animal, food, person ...)."""

    metadata = _metadata(
        "HfdLexnameClassification",
        "Classification",
        "accuracy",
        "Definitions of nouns, classified by the lexicographer file of their synset.",
        "https://wordnet.princeton.edu/documentation/lexnames5wn",
    )
    labelled_texts = staticmethod(lexname_texts)


class ModuleClassification(_LocalClassification):
    """Classify passages of Python's documentation, up to 250 tokens, by what their module is about (13 families)."""

    metadata = _metadata(
        "HfdModuleClassification",
        "Classification",
        "accuracy",
        "Passages of the standard library's documentation, classified by the family of their module.",
        "https://docs.python.org/3/library/",
    )
    labelled_texts = staticmethod(module_texts)


class SortedEncoder(AbsEncoder):
    """The model as mteb wants it, encoding with `encode_sorted`.

    Args:
        model (`SentenceTransformer`): the model.
        dtype (`str`): precision, see `encode_sorted`.
        name (`str`, *optional*): what mteb calls it in its cache, `organisation/model`.
        revision (`str`, *optional*): what tells its weights from others of that name.
    """

    def __init__(
        self, model: SentenceTransformer, dtype: str, name: str | None = None, revision: str | None = None
    ) -> None:
        self.model = model
        self.dtype = dtype
        self.mteb_model_meta = ModelMeta.create_empty({"name": name, "revision": revision})

    def encode(self, inputs: Any, *, prompt_type: Any = None, **kwargs: Any) -> np.ndarray:
        """Encode what a data loader holds, with the model's own prompt for queries or documents if it has one."""
        texts = [text for batch in inputs for text in batch["text"]]
        names = {"query": ("query",), "document": ("document", "passage", "corpus")}
        wanted = names.get(getattr(prompt_type, "value", ""), ())
        name = next((name for name in wanted if name in self.model.prompts), None)
        return encode_sorted(self.model, texts, dtype=self.dtype, prompt_name=name)


# Name on the command line -> (task, {mteb's score: our metric}).
_LENGTH_SCORES = {f"ndcg_at_10_{low}_{high}": f"ndcg_at_10_{low}_{high}" for low, high in BUCKETS}
_TASKS: dict[str, tuple[Any, dict[str, str]]] = {
    "stsbenchmark": (None, {"cosine_spearman": "spearman", "cosine_pearson": "pearson"}),
    "retrieval": (StdlibRetrieval, {"ndcg_at_10": "ndcg_at_10", **_LENGTH_SCORES}),
    "lexnames": (LexnameClassification, {"accuracy": "accuracy"}),
    "modules": (ModuleClassification, {"accuracy": "accuracy"}),
}
TASKS = tuple(_TASKS)


def make_task(name: str, split: str) -> Any:
    """Make an mteb task with its data loaded, limited to one split.

    Args:
        name (`str`): one of `TASKS`; `"stsbenchmark"` is mteb's own task, fed with the local files of STS-B.
        split (`str`): `"validation"` or `"test"`.

    Returns:
        `AbsTask`: ready for `mteb.evaluate(model, [task], cache=None)`.

    Raises:
        ValueError: an unknown task or split.
    """
    if name not in _TASKS:
        raise ValueError(f"There is no task {name!r}: choose among {', '.join(TASKS)}.")
    if split not in ("validation", "test"):
        raise ValueError(f"The tasks have no split {split!r}: choose validation or test.")
    with contained("mteb"):
        task = mteb.get_task("STSBenchmark") if name == "stsbenchmark" else _TASKS[name][0]()
        task = task.filter_eval_splits([split])
        if name == "stsbenchmark":
            # mteb's scale of 0..5 again; the scores are rank and linear correlations, which do not see it
            pairs = load_stsb(split).map(lambda row: {"score": 5.0 * row["score"]})
            task.dataset = DatasetDict({split: pairs})
            task.data_loaded = True
        else:
            task.load_data()
    return task


def run_tasks(
    model: SentenceTransformer,
    names: Sequence[str] = TASKS,
    split: str = "test",
    dtype: str = "float32",
    cache: ScoreCache | None = None,
    fingerprint: str | None = None,
) -> dict[str, float]:
    """Run mteb tasks on a model, offline.

    Args:
        model (`SentenceTransformer`): the model.
        names (`Sequence[str]`, *optional*): tasks, among `TASKS`; all by default.
        split (`str`, *optional*, defaults to `"test"`): `"validation"` or `"test"`.
        dtype (`str`, *optional*, defaults to `"float32"`): precision, see `encode_sorted`.
        cache (`ScoreCache`, *optional*): where scores are kept by the hash of the model, so that a teacher is scored
            once.
        fingerprint (`str`, *optional*): that hash, where it is known.

    Returns:
        `dict[str, float]`: `stsbenchmark_spearman`, `stsbenchmark_pearson`, `retrieval_ndcg_at_10` (and one for each
        length bucket, `retrieval_ndcg_at_10_129_256`), `lexnames_accuracy`, `modules_accuracy`.

    Raises:
        ValueError: an unknown task or split; nothing is run then.

    Example:
        >>> run_tasks(model, ["retrieval"], split="validation")["retrieval_ndcg_at_10"]
        0.612
    """
    unknown = [name for name in names if name not in _TASKS]
    if unknown:
        raise ValueError(f"There is no task {', '.join(map(repr, unknown))}: choose among {', '.join(TASKS)}.")
    metrics: dict[str, float] = {}
    fingerprint = fingerprint or (model_fingerprint(model) if cache else "")
    for name in names:
        task = make_task(name, split)

        def compute(name: str = name, task: Any = task) -> dict[str, float]:
            return score_task(SortedEncoder(model, dtype), name, task, split)

        if cache is None:
            metrics |= compute()
            continue
        precision = best_dtype(model.device) if dtype == "auto" else dtype
        key = {"task": name, "split": split, "dtype": precision, "model": fingerprint, "data": _digest(task)}
        metrics |= cache.get_or_compute({**key, "versions": library_versions()}, compute)
    return metrics


def score_task(encoder: AbsEncoder, name: str, task: Any, split: str) -> dict[str, float]:
    """Run one task and pick our metrics from its scores.

    Args:
        encoder (`AbsEncoder`): `SortedEncoder`, or another one that mteb takes.
        name (`str`): one of `TASKS`.
        task (`AbsTask`): from `make_task(name, split)`.
        split (`str`): the split it was made for.

    Returns:
        `dict[str, float]`: `<name>_<metric>` to score.
    """
    with contained("mteb"):
        result = mteb.evaluate(
            encoder,
            [task],
            cache=None,
            co2_tracker=False,
            encode_kwargs={"batch_size": 256, "show_progress_bar": False},
            show_progress_bar=False,
        )
    scores = result.task_results[0].scores[split][0]
    return {f"{name}_{ours}": float(scores[theirs]) for theirs, ours in _TASKS[name][1].items() if theirs in scores}


def _digest(task: Any) -> str:
    """Hash a task's data: the installed Python decides what it is."""
    splits = task.dataset.get("default", task.dataset)
    tables = {split: data if isinstance(data, Dataset) else data["corpus"] for split, data in splits.items()}
    queries = {split: data["queries"].to_dict() for split, data in splits.items() if not isinstance(data, Dataset)}
    content = json.dumps([{split: table.to_dict() for split, table in tables.items()}, queries], sort_keys=True)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]

"""The teacher of the tokenizer experiment: loaded once, compared with a corpus, brought to the students' width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, concatenate_datasets
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize

from hf_distill.data.corpus_manifest import CorpusManifest
from hf_distill.data.encoded_corpus import TEACHER_EMBEDDING
from hf_distill.data.teacher_column import TeacherColumn
from hf_distill.evaluation.encode import encode_sorted, normalize_rows
from hf_distill.evaluation.training_summary import Origin
from hf_distill.teachers.callables import LICENSE
from hf_distill.teachers.encoders import EmbedFunction
from hf_distill.teachers.ensemble import TeacherEnsemble
from hf_distill.teachers.live import LiveTeacher
from hf_distill.teachers.manifest import TeacherSpec
from hf_distill.teachers.named import named_teacher, scored_model
from hf_distill.teachers.projection import principal_directions, second_moments
from hf_distill.teachers.writer import write_cache
from hf_distill.trainers.tokenizer_recipe import TokenizerRecipe
from hf_distill.trainers.training_summary import describe_origin

_COMPARED_ROWS = 32
_SAME_TEACHER = 0.98
_BLOCK = 8192


@dataclass
class RecipeTeacher:
    """A recipe's teacher.

    Args:
        encoder: Who embeds a corpus: a model, or a plain function.
        spec: What identifies its answers.
        model: Who is scored; for a function a model around it.
    """

    encoder: LiveTeacher | EmbedFunction
    spec: TeacherSpec
    model: SentenceTransformer


def open_teacher(recipe: TokenizerRecipe) -> RecipeTeacher:
    """Loads the teacher that stands in the table.

    Args:
        recipe: Its name, revision and prompt. One of several teachers has a prompt of its own.

    Returns:
        The teacher. The prompt is the model's default prompt, so that it is scored as it taught.

    Raises:
        FileNotFoundError: If it is nowhere; the message says how to get it.
        ValueError: If it is a plain function, and a prompt or a revision is asked for.
    """
    entry = next((entry for entry in recipe.teachers.values() if entry["model"] == recipe.teacher), None)
    prompt = recipe.prompt if entry is None else entry.get("prompt")
    options = {"revision": recipe.teacher_revision, "trust_remote_code": recipe.trust_remote_code, "prompt": prompt}
    encoder, spec = named_teacher(recipe.teacher, **options)
    return RecipeTeacher(encoder, spec, scored_model(encoder, spec))


def open_ensemble(recipe: TokenizerRecipe, texts: Sequence[str], caches: Path, progress: bool) -> TeacherEnsemble:
    """Several teachers as one; their caches are written first.

    Args:
        recipe: The teachers, and how their answers are combined.
        texts: Of the corpus.
        caches: Folder of the caches.
        progress: Whether progress is shown.

    Returns:
        What a corpus takes in place of a teacher.

    Raises:
        FileNotFoundError: If a teacher is missing.
        ValueError: If their widths do not fit together.
    """
    members = []
    for name, entry in recipe.teachers.items():
        prompt, code = entry.get("prompt"), recipe.trust_remote_code
        teacher, spec = named_teacher(entry["model"], label=name, prompt=prompt, trust_remote_code=code)
        members.append(write_cache(texts, teacher, caches, spec=spec, progress=progress, overwrite=True))
    entries, routes, weights = list(recipe.teachers.values()), None, None
    if recipe.ensemble == "route":
        routes = [_route(len(text.split()), [entry.get("min_words", 0) for entry in entries]) for text in texts]
    elif any("weight" in entry for entry in entries):
        weights = [entry.get("weight", 1.0) for entry in entries]
    options = {"weights": weights, "routes": routes, "dim": recipe.teacher_dim, "fit_rows": range(len(texts))}
    return TeacherEnsemble(members, recipe.ensemble, **options)


def _route(words: int, from_words: Sequence[int]) -> int:
    """The teacher with the highest bound that a text of so many words reaches; the first where it reaches none."""
    reached = [member for member, bound in enumerate(from_words) if words >= bound]
    return max(reached, key=lambda member: from_words[member], default=0)


def check_corpus(place: str, manifest: CorpusManifest | None, dataset: Dataset, teacher: RecipeTeacher) -> None:
    """Refuses a corpus that another teacher embedded, or the same one with another prompt.

    Args:
        place: Folder or id of the corpus.
        manifest: Its table of contents. Without one the teacher embeds some of the texts once more.
        dataset: Its rows.
        teacher: Who teaches now.

    Raises:
        ValueError: Names both sides.
    """
    remedy = "Give the --teacher (and --prompt) that it was made with, or encode the text with this one."
    asked = f"{teacher.spec.teacher!r} with the prompt {teacher.spec.prompt!r}"
    if manifest is not None:
        known = {name: value for name, value in manifest.teacher.items() if name != "fingerprint"}
        found = TeacherSpec(**known).differences(teacher.spec)
        if found:
            lines = "\n  ".join(line.replace("the cache has", "the corpus has") for line in found)
            raise ValueError(f"The corpus {place} does not fit the teacher {asked}:\n  {lines}\n{remedy}")
        return
    rows = np.unique(np.linspace(0, len(dataset) - 1, _COMPARED_ROWS, dtype=np.int64))
    part = dataset.select(rows)
    column = TeacherColumn(TEACHER_EMBEDDING)
    there = normalize_rows(column.embeddings(column.add(part)))
    own = normalize_rows(encode_sorted(teacher.model, part["text"][:]))
    if there.shape[1] != own.shape[1]:
        raise ValueError(
            f"The corpus {place} has vectors of {there.shape[1]} numbers, but the teacher {asked} gives {own.shape[1]}. "
            f"{remedy}"
        )
    cosine = float((there * own).sum(axis=1).mean())
    if not cosine >= _SAME_TEACHER:
        raise ValueError(
            f"The corpus {place} was embedded by another teacher than {asked}, or with another prompt: over {len(rows)} "
            f"rows its vectors and the teacher's have a mean cosine of {cosine:.3f}, but need {_SAME_TEACHER}. {remedy}"
        )


def project_teacher(
    dataset: Dataset, teacher: SentenceTransformer, dim: int
) -> tuple[Dataset, SentenceTransformer, str]:
    """Brings the vectors of a corpus, and the teacher itself, to the students' width, by PCA without centring.

    Args:
        dataset: The training rows, on which it is fitted.
        teacher: Who embedded them.
        dim: The width.

    Returns:
        The rows with vectors of length 1 of that width, the teacher with the projection as its last layer, and what a
        reader must know about it.
    """
    column = TeacherColumn(TEACHER_EMBEDDING)
    rows = column.add(dataset)
    matrix, kept = principal_directions(second_moments(column.embeddings, rows, column.dim), dim)
    matrix = np.ascontiguousarray(matrix, dtype=np.float32)
    blocks = [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]
    vectors = np.concatenate(
        [normalize_rows(column.embeddings(block) @ matrix.T).astype(np.float16) for block in blocks]
    )
    projected = Dataset(
        pa.table({TEACHER_EMBEDDING: pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dim)})
    )
    dataset = concatenate_datasets([dataset.remove_columns(TEACHER_EMBEDDING), projected], axis=1)
    dense = Dense(column.dim, dim, bias=False, activation_function=None)
    dense.linear.weight = torch.nn.Parameter(torch.from_numpy(matrix), requires_grad=False)
    model = SentenceTransformer(
        modules=[*teacher, dense, Normalize()],
        device=str(teacher.device),
        prompts=teacher.prompts,
        default_prompt_name=teacher.default_prompt_name,
    )
    note = (
        f"The teacher's {column.dim} numbers a text are brought to the students' {dim} by PCA of the corpus, which keeps "
        f"{100 * kept:.1f} % of their energy. The teacher's row is after it."
    )
    return dataset, model, note


def teacher_origin(recipe: TokenizerRecipe, teacher: RecipeTeacher) -> Origin:
    """Who taught, for the card of a student; a plain function is pinned by its package and the hash of its weights."""
    if isinstance(teacher.encoder, LiveTeacher):
        return describe_origin(recipe.teacher, teacher.model, recipe.teacher_revision)
    note = f"from the Python package {teacher.spec.revision}, weights with sha256 {teacher.spec.weights_sha256[:16]}"
    return Origin(teacher.spec.teacher, license=LICENSE, on_hub=False, note=note)


__all__ = ["RecipeTeacher", "check_corpus", "open_ensemble", "open_teacher", "project_teacher", "teacher_origin"]

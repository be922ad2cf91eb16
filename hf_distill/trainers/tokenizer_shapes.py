"""The shapes of the tokenizer experiment's students: what is cut out of a backbone, and what comes after it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from torch import nn
from transformers import PreTrainedModel

from hf_distill.data.model_pruning import prune_model
from hf_distill.teachers.function_model import FunctionModule
from hf_distill.trainers.embedding_config import MATCHED_TERMS, EmbeddingDistillConfig
from hf_distill.trainers.tokenizer_jobs import Job
from hf_distill.trainers.tokenizer_recipe import TokenizerRecipe

# Field of a job -> that of the encoder's configuration, and what it counts.
_CUTS = {
    "num_layers": ("num_hidden_layers", "layers"),
    "hidden_size": ("hidden_size", "channels"),
    "intermediate_size": ("intermediate_size", "neurons a layer"),
}


def cut_encoder(job: Job, source: SentenceTransformer) -> PreTrainedModel:
    """The part of a backbone's encoder that a student has.

    Args:
        job: Which part.
        source: The backbone.

    Returns:
        A copy.

    Raises:
        ValueError: If there is no such part; names the student.
    """
    try:
        return prune_model(source[0].auto_model, **{cut: getattr(job, cut) for cut in _CUTS})
    except ValueError as error:
        raise ValueError(f"{job.name}: {error}") from error


def cut_head(job: Job, source: SentenceTransformer) -> list[nn.Module]:
    """What comes after the encoder, as wide as the encoder that is left.

    Args:
        job: Which student.
        source: The backbone.

    Returns:
        Copies of its modules.

    Raises:
        ValueError: If the student is narrower than its backbone, and a module has weights of the whole width.
    """
    head = [copy.deepcopy(module) for module in list(source)[1:]]
    if job.hidden_size is None:
        return head
    for place, module in enumerate(head):
        if isinstance(module, Pooling):
            head[place] = Pooling(job.hidden_size, module.pooling_mode, module.include_prompt)
        elif not isinstance(module, Normalize):
            raise ValueError(
                f"{job.name}: hidden_size={job.hidden_size} does not fit the {type(module).__name__} layer that comes after "
                f"the encoder of {job.model}. Leave hidden_size out."
            )
    return head


def describe_cut(job: Job, source: SentenceTransformer) -> str:
    """Which part of a backbone's encoder a student has: `"6 of its 12 layers"`; empty for all of it."""
    config, parts = source[0].auto_model.config, []
    for cut, (size, what) in _CUTS.items():
        if getattr(job, cut) is not None:
            parts.append(f"{getattr(job, cut):,} of its {getattr(config, size):,} {what}")
    return ", ".join(parts)


def check_shapes(
    jobs: Sequence[Job],
    models: Mapping[str, SentenceTransformer],
    recipe: TokenizerRecipe,
    args: EmbeddingDistillConfig,
) -> None:
    """Refuses students that could not be made, or could not be compared with their teacher, before any work.

    Args:
        jobs: The runs.
        models: Teacher and backbones, by name.
        recipe: Teacher and tasks.
        args: Loss terms, and whether a head makes up for another width.

    Raises:
        ValueError: Names the student, both widths and what to do.
    """
    full = models[recipe.teacher].get_embedding_dimension()
    target = recipe.teacher_dim or (None if recipe.teachers and recipe.ensemble == "concat" else full)
    if not recipe.teachers and target > full:
        raise ValueError(f"teacher_dim={target}, but the teacher {recipe.teacher} has {full} numbers a text.")
    scored = full if recipe.teachers else target  # what one teacher says is projected in its row of the table, too
    direct = MATCHED_TERMS & set(args.active_terms()) and args.embedding_projection == "none"
    for job in jobs:
        if isinstance(models[job.model][0], FunctionModule):
            raise ValueError(f"{job.name}: {job.model} is a plain function without layers. Choose another backbone.")
        width = _student_width(job, models[job.model])
        fits = recipe.teachers or width <= full
        remedy = f"Choose --teacher_dim {width} (by PCA), or " if fits else "Choose a narrower backbone, or "
        if direct and target not in (None, width):
            raise ValueError(
                f"{job.name} has {width} numbers a text, but its teacher {recipe.teacher} has {target}. {remedy}"
                "--embedding_projection learned for a head that is thrown away after training."
            )
        if "bitext" in recipe.tasks and scored != width:
            # of several teachers the one in the table is never projected, so that its width stays
            leave = "Leave" if recipe.teachers else f"{remedy}leave"
            raise ValueError(
                f"The task bitext compares {job.name}, {width} numbers a text, with the teacher {recipe.teacher}, {scored}. "
                f"{leave} bitext out of --tasks."
            )


def _student_width(job: Job, source: SentenceTransformer) -> int:
    """Numbers a text of a student; what is to be cut out of its backbone must be there."""
    if any(getattr(job, cut) is not None for cut in _CUTS):
        cut_encoder(job, source)
    pooling = [module for module in cut_head(job, source) if isinstance(module, Pooling)]
    narrow = job.hidden_size is not None and pooling
    return pooling[-1].get_embedding_dimension() if narrow else source.get_embedding_dimension()


__all__ = ["check_shapes", "cut_encoder", "cut_head", "describe_cut"]

"""A teacher by its name, whatever it is: what recipes type, and the options that identify its answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sentence_transformers import SentenceTransformer

from hf_distill.teachers.callables import USE_MULTILINGUAL, use_multilingual, use_tokenizer
from hf_distill.teachers.encoders import EmbedFunction
from hf_distill.teachers.function_model import function_model
from hf_distill.teachers.live import LiveTeacher, load_teacher, set_default_prompt
from hf_distill.teachers.manifest import TeacherSpec


def named_teacher(
    name: str,
    *,
    label: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    device: str | None = None,
    dtype: str = "auto",
    prompt: str | None = None,
    prompt_name: str | None = None,
    normalize: bool | None = None,
    truncate_dim: int | None = None,
    max_seq_length: int | None = None,
    hidden_layers: tuple[int, ...] = (),
) -> tuple[LiveTeacher | EmbedFunction, TeacherSpec]:
    """Load a teacher and describe its answers: the two things that [`write_cache`] wants.

    Args:
        name: A sentence-transformers id on the Hub, a folder, or the name of a plain function,
            [`USE_MULTILINGUAL`][hf_distill.teachers.callables].
        label: Name in the manifest, if not the id.
        revision: Hub revision.
        trust_remote_code: Allow a teacher with its own code on the Hub.
        device: Where to run; by default the best device there is.
        dtype: Precision of the forward pass: auto, float32, bfloat16 or float16.
        prompt: Text put before every input. By default the teacher's default prompt, if it has one.
        prompt_name: One of the teacher's own prompts, by its name.
        normalize: Scale to length 1. By default as the teacher does.
        truncate_dim: Keep the first dimensions only (Matryoshka).
        max_seq_length: Cut inputs after so many tokens.
        hidden_layers: Layers to store too; 0 is the output of the embedding layer.

    Returns:
        The teacher and its spec.

    Raises:
        FileNotFoundError: If it is nowhere; the message says how to get it.
        ValueError: If an option does not fit the teacher.
    """
    if name == USE_MULTILINGUAL:
        options = {
            "revision": revision,
            "prompt": prompt,
            "prompt_name": prompt_name,
            "max_seq_length": max_seq_length,
            "hidden_layers": hidden_layers,
            "dtype": dtype not in ("auto", "float32"),
        }
        if given := [option for option, value in options.items() if value]:
            raise ValueError(
                f"The teacher {name!r} is a plain function: it knows no {', '.join(given)}. Leave it out."
            )
        embed, spec = use_multilingual(normalize is not False, truncate_dim)
        return embed, replace(spec, teacher=label or name)
    model = load_teacher(name, device, trust_remote_code, revision)
    if max_seq_length is not None:
        model.max_seq_length = max_seq_length
    spec = TeacherSpec.of(
        model,
        teacher=label or (None if Path(name).exists() else name),
        revision=revision or "",
        prompt=prompt,
        prompt_name=prompt_name,
        normalize=normalize,
        truncate_dim=truncate_dim,
        signals=("embedding", *(f"hidden_{layer}" for layer in hidden_layers)),
    )
    return LiveTeacher(model, dtype=dtype, prompt=spec.prompt), spec


def scored_model(teacher: LiveTeacher | EmbedFunction, spec: TeacherSpec) -> SentenceTransformer:
    """The teacher as a model that is scored as it taught.

    Args:
        teacher: A model, or a plain function.
        spec: What identifies its answers, both from [`named_teacher`].

    Returns:
        The model, its prompt being the default one from now on; for a function a model around it.
    """
    if not isinstance(teacher, LiveTeacher):
        return function_model(teacher, spec, use_tokenizer())
    model = teacher.model
    if spec.prompt != model.prompts.get(model.default_prompt_name, ""):
        set_default_prompt(model, spec.prompt)
    return model


__all__ = ["named_teacher", "scored_model"]

"""The identity of a teacher (`TeacherSpec`) and the table of contents of its cache (`Manifest`).

A cache is only ever read for the teacher, tokenizer, prompt, pooling, length and signals it was written with: any
difference is an error that names both sides, field by field.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_distill.teachers.files import replace_file
from hf_distill.teachers.fingerprint import sha256_of_tokenizer, sha256_of_weights

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MANIFEST_NAME = "manifest.json"
FORMAT = 1
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class TeacherSpec:
    """What identifies a teacher's answers; two specs that agree give the same cache.

    Args:
        teacher: Name of the teacher: a Hub id, or the last part of a local folder. Where the weights are known by
            their hash, the name and the revision are labels and may differ.
        revision: Hub revision (commit) of the teacher, if known.
        weights_sha256: SHA-256 of the weights; empty for a teacher that is a plain function.
        tokenizer_sha256: SHA-256 of the tokenizer's definition.
        prompt: Text put before every input.
        pooling: How token vectors become one vector, for instance ``"mean"``.
        normalize: Whether embeddings are scaled to length 1, after any truncation.
        truncate_dim: Matryoshka truncation: keep only the first dimensions. ``None`` keeps all.
        max_seq_length: Longest input in tokens; longer ones are cut.
        dtype: Precision of the teacher's forward pass: ``"float32"``, ``"bfloat16"``, ``"float16"``; ``"auto"`` stands
            for the best of the machine when writing and for any when reading. Storage is always float16.
        signals: What is stored: ``"embedding"`` and, per token, ``"hidden_<i>"`` (0 is the embedding layer's output).
    """

    teacher: str
    revision: str = ""
    weights_sha256: str = ""
    tokenizer_sha256: str = ""
    prompt: str = ""
    pooling: str = ""
    normalize: bool = True
    truncate_dim: int | None = None
    max_seq_length: int | None = None
    dtype: str = "auto"
    signals: tuple[str, ...] = ("embedding",)

    def __post_init__(self) -> None:
        """Check the fields that have a fixed set of values."""
        object.__setattr__(self, "signals", tuple(self.signals))
        if not self.teacher:
            raise ValueError("TeacherSpec.teacher is empty: name the teacher, for instance 'all-MiniLM-L6-v2'.")
        if self.dtype not in DTYPES:
            raise ValueError(f"TeacherSpec.dtype is {self.dtype!r}; choose one of {', '.join(DTYPES)}.")
        if self.truncate_dim is not None and self.truncate_dim < 1:
            raise ValueError(f"TeacherSpec.truncate_dim is {self.truncate_dim}; it must be at least 1, or None.")
        if "embedding" not in self.signals:
            raise ValueError(f"TeacherSpec.signals is {self.signals}; it must hold 'embedding'.")
        for signal in self.signals:
            if signal != "embedding" and not (signal.startswith("hidden_") and signal[7:].isdigit()):
                raise ValueError(
                    f"Unknown signal {signal!r}; use 'embedding' or 'hidden_<i>', for instance 'hidden_3'."
                )
        if len(set(self.signals)) != len(self.signals):
            raise ValueError(f"TeacherSpec.signals names a signal twice: {self.signals}.")

    @classmethod
    def of(
        cls,
        model: SentenceTransformer,
        *,
        teacher: str | None = None,
        revision: str = "",
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        dtype: str = "auto",
        signals: tuple[str, ...] = ("embedding",),
    ) -> TeacherSpec:
        """Describe a `SentenceTransformer`; what is not given is read from its modules.

        Args:
            model: The teacher.
            teacher: Name; by default where the model was loaded from (only the last part of a local path).
            revision: Hub revision; by default the one the model was loaded from, if it says so, or what its weights are
                where they are not the Hub's.
            prompt: Text put before every input; wins over ``prompt_name``.
            prompt_name: Name of one of the model's own prompts. By default the model's default prompt, if it has one.
            normalize: By default True exactly if the model ends in a `Normalize` module.
            truncate_dim: By default the model's own ``truncate_dim``.
            dtype: See [`TeacherSpec`].
            signals: See [`TeacherSpec`].

        Returns:
            The spec.

        Raises:
            ValueError: If the prompt name or the truncation do not fit the model.
        """
        truncate_dim = model.truncate_dim if truncate_dim is None else truncate_dim
        width = model.get_embedding_dimension()
        if truncate_dim is not None and width is not None and truncate_dim > width:
            raise ValueError(f"truncate_dim is {truncate_dim}, but the teacher's embeddings have {width} dimensions.")
        pooling, normalizes = _describe_modules(model)
        return cls(
            teacher=teacher or teacher_name(model),
            revision=revision or model.model_card_data.base_model_revision or "",
            weights_sha256=sha256_of_weights(model),
            tokenizer_sha256=sha256_of_tokenizer(model.tokenizer),
            prompt=_resolve_prompt(model, prompt, prompt_name),
            pooling=pooling,
            normalize=normalizes if normalize is None else normalize,
            truncate_dim=truncate_dim,
            max_seq_length=model.max_seq_length,
            dtype=dtype,
            signals=signals,
        )

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        """Indices of the hidden layers among the signals."""
        return tuple(int(signal[7:]) for signal in self.signals if signal != "embedding")

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over the fields that decide the bytes of the cache."""
        identity = asdict(self)
        if self.weights_sha256:
            del identity["teacher"], identity["revision"]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def differences(self, expected: TeacherSpec) -> list[str]:
        """List the fields in which a cache with this spec does not serve ``expected``, naming both sides."""
        labels = {"teacher", "revision"} if self.weights_sha256 and expected.weights_sha256 else set()
        found = []
        for name in (entry.name for entry in fields(self)):
            here, there = getattr(self, name), getattr(expected, name)
            if name == "signals":
                same = set(there) <= set(here)
            elif name == "dtype":
                same = here == there or there == "auto"
            else:
                same = here == there or name in labels
            if not same:
                found.append(f"{name}: the cache has {here!r}, expected is {there!r}")
        return found


def teacher_name(model: SentenceTransformer) -> str:
    """Return where the model was loaded from, without any local folder."""
    encoder = model.transformers_model
    name = encoder.config.name_or_path if encoder is not None else model.model_card_data.base_model
    name = name or type(model).__name__
    path = Path(name)
    return path.resolve().name if path.is_absolute() or path.exists() else name


def _describe_modules(model: SentenceTransformer) -> tuple[str, bool]:
    """Return how the model pools, as a short text, and whether it normalises."""
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    steps = []
    normalizes = False
    for module in list(model)[1:]:
        if isinstance(module, Pooling):
            modes = [module.pooling_mode] if isinstance(module.pooling_mode, str) else list(module.pooling_mode)
            steps.append("+".join(modes) + ("" if module.include_prompt else " without prompt"))
        elif isinstance(module, Normalize):
            normalizes = True
        else:
            settings = module.extra_repr()
            steps.append(type(module).__name__ + (f"({settings})" if settings else ""))
    return " > ".join(steps), normalizes


def _resolve_prompt(model: SentenceTransformer, prompt: str | None, prompt_name: str | None) -> str:
    """Return the prompt's text, as `SentenceTransformer.encode` would choose it."""
    if prompt is not None:
        return prompt
    name = prompt_name or model.default_prompt_name
    if name is None:
        return ""
    if name not in model.prompts:
        known = ", ".join(repr(key) for key in model.prompts) or "none"
        raise ValueError(f"The teacher has no prompt named {name!r}; it has {known}. Or give the text as `prompt`.")
    return model.prompts[name]


@dataclass(frozen=True)
class ShardInfo:
    """One shard of a cache: its file name, its number of rows and tokens, and the SHA-256 of the file."""

    file: str
    rows: int
    tokens: int
    sha256: str


@dataclass(frozen=True)
class ProjectionInfo:
    """A fitted projection that lies beside the shards (see [`project_cache`])."""

    file: str
    method: str
    dim: int
    sha256: str
    retained_energy: float


@dataclass(frozen=True)
class Manifest:
    """The table of contents of one teacher's cache; row ``i`` is row ``i`` of the texts it was written from.

    Args:
        spec: The teacher.
        num_rows: Rows over all shards.
        dim: Width of the embeddings.
        shards: The shards, in order of rows.
        projections: Projections fitted on this cache.
    """

    spec: TeacherSpec
    num_rows: int
    dim: int
    shards: tuple[ShardInfo, ...]
    projections: tuple[ProjectionInfo, ...] = field(default_factory=tuple)

    @property
    def num_tokens(self) -> int:
        """Tokens over all shards; 0 for a teacher that does not say."""
        return sum(shard.tokens for shard in self.shards)

    def require(self, spec: TeacherSpec, path: str | Path = "") -> None:
        """Refuse to serve another teacher.

        Raises:
            ValueError: If the cache was written with another spec; it names both sides of every field that differs.
        """
        if found := self.spec.differences(spec):
            where = f" at {path}" if path else ""
            raise ValueError(
                f"The teacher cache{where} does not fit the teacher that is asked for:\n  "
                + "\n  ".join(found)
                + "\nWrite a cache for this teacher with recipes/cache_teacher.py, or ask for the one that is there."
            )

    def to_json(self) -> str:
        """Return the manifest as JSON; the same manifest always gives the same bytes."""
        body = {"format": FORMAT, "fingerprint": self.spec.fingerprint, **asdict(self)}
        return json.dumps(body, indent=2, ensure_ascii=False) + "\n"

    def save(self, folder: Path) -> None:
        """Write ``manifest.json`` into the folder, atomically."""
        replace_file(folder / MANIFEST_NAME, self.to_json().encode())

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read and check ``manifest.json``.

        Raises:
            FileNotFoundError: If there is none; the job did not finish.
            ValueError: If it is not readable, of another format, or does not agree with its own fingerprint.
        """
        path = Path(folder) / MANIFEST_NAME
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} holds no {MANIFEST_NAME}: there is no teacher cache, or its job did not finish. "
                "Run the same job (recipes/cache_teacher.py) again: it goes on from the finished shards."
            )
        try:
            body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if body.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            fingerprint = body.pop("fingerprint")
            body["spec"] = TeacherSpec(**body["spec"])
            body["shards"] = tuple(ShardInfo(**shard) for shard in body["shards"])
            body["projections"] = tuple(ProjectionInfo(**entry) for entry in body["projections"])
            manifest = cls(**body)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is not a readable manifest ({error}). Delete it and run the job again."
            ) from error
        if fingerprint != manifest.spec.fingerprint:
            raise ValueError(
                f"{path} was changed: it says fingerprint {fingerprint}, but its fields give "
                f"{manifest.spec.fingerprint}. Delete it and run the job again."
            )
        return manifest

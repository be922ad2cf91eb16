"""One self-contained folder of a student, checked before it exists: weights, code, tokenizer, card, results.

The folder is written beside its target under another name, scanned for secrets, loaded in a process that cannot import
hf_distill, and only then renamed: a folder that exists is complete and works.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hf_distill.hub.scan import SAFE_NAMES, SAFE_SUFFIXES, scan_folder
from hf_distill.hub.short_card import write_short_card

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_distill.evaluation.results import Results

# What a training keeps beside a model to go on with: of no use to a reader.
_NOT_MODEL = ("trainer_state.json", "distill_*", "README.md", "__pycache__", ".*")
_ARGUMENTS = "training_args.json"
_LOCAL_FIELDS = ("_name_or_path", "name_or_path", "is_local", "local_files_only")
_TEXTS = (
    "A small river runs past the old mill and turns the wooden wheel every morning.",
    "good",
    "Zw\u00f6lf na\u00efve caf\u00e9s, 1 234 \u20ac; \u6771\u4eac?",
    "the long way home " * 12,
)


@dataclass
class Student:
    """What is exported.

    Args:
        model: A `SentenceTransformer`, or a bare model.
        tokenizer: The tokenizer; a `SentenceTransformer` brings its own.
        results: What was measured, or `None`.
        figures: Pictures for the card.
        arguments: The file of the training's arguments, or `None`.
    """

    model: SentenceTransformer | PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | Tokenizer
    results: Results | None = None
    figures: list[Path] = field(default_factory=list)
    arguments: Path | None = None


def export_student(
    source: SentenceTransformer | PreTrainedModel | str | Path,
    target: str | Path,
    *,
    results: Results | None = None,
    check: bool = True,
    tokenizer: PreTrainedTokenizerBase | None = None,
    figures: Sequence[str | Path] = (),
    repo_id: str | None = None,
    revision: str | None = None,
) -> Path:
    """Writes a student as one folder that needs nothing else.

    Args:
        source: A model; or the folder of one; or the folder of a run, of which `model/`, `results.json` and `curves.png`
            are taken, and `training_args.json` of its checkpoint.
        target: The folder to write: absent or empty.
        results: What was measured on this very model; those of the run or folder by default. Without any, the card says
            that the student was not evaluated.
        check: Load the folder in a clean process and compare its outputs bit for bit.
        tokenizer: The tokenizer of a bare model.
        figures: Pictures for the card; those of the run by default.
        repo_id: The model's id on the Hub, for the card's usage snippet.
        revision: Branch on the Hub that the snippet names, if not the main one.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: If there is no model, or a run has no results.
        FileExistsError: If `target` holds something.
        ValueError: If the tokenizer is not the model's, the results are another model's, the folder would hold a secret,
            or it does not work without hf_distill. Nothing is left behind then.

    Example:
        >>> export_student("runs/deltanet_minilm", "exported")
        PosixPath('exported')
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} is not empty. Give another target, or delete it first.")
    student = (
        load_student(source) if isinstance(source, (str, Path)) else Student(source, _tokenizer_of(source, tokenizer))
    )
    student.results = results or student.results
    student.figures = [Path(figure) for figure in figures] or student.figures
    check_tokenizer(student.model, student.tokenizer)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _write_model(student, temporary)
        _write_documents(student, temporary, target.name, repo_id, revision)
        scan_folder(temporary, allowed=[repo_id.partition("/")[0]] if repo_id else [])
        if check:
            _check_outputs(student, temporary)
        if target.exists():
            target.rmdir()
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def load_student(folder: str | Path) -> Student:
    """Opens the folder of a model or of a run.

    Args:
        folder: With `modules.json` or `config.json` in it, or in its `model/`.

    Returns:
        The student; of a run with its results and curves.

    Raises:
        FileNotFoundError: If there is no folder, no model in it, or a run has no results.
        ValueError: If the model or the results cannot be read.
    """
    from hf_distill.evaluation.checkpoints import MODEL_FOLDER, load_checkpoint
    from hf_distill.evaluation.results import RESULTS_FILE, Results

    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}. Give the folder of a run, or of a saved student.")
    path = folder if _is_model(folder) else folder / MODEL_FOLDER
    if not _is_model(path):
        trained = any(folder.glob("checkpoint-*"))
        remedy = (
            f"choose one of its checkpoints: recipes/evaluate_student.py --run {folder}" if trained else "train first"
        )
        raise FileNotFoundError(f"{folder} holds no model (no model/ with modules.json or config.json); {remedy}.")
    results = Results.read(folder) if path != folder or (folder / RESULTS_FILE).is_file() else None
    figures = sorted(folder.glob("*.png"))
    arguments = next(iter([*path.glob(_ARGUMENTS), *folder.glob(f"checkpoint-*/{_ARGUMENTS}")]), None)
    if (path / "modules.json").is_file():
        model = load_checkpoint(path, device="cpu")
        return Student(model, model.tokenizer, results, figures, arguments)
    from transformers import AutoModel, AutoTokenizer

    try:
        model = AutoModel.from_pretrained(path, trust_remote_code=True)
        return Student(model, AutoTokenizer.from_pretrained(path, trust_remote_code=True), results, figures, arguments)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"{path} cannot be loaded: {error}. Save model and tokenizer there again.") from error


def _is_model(folder: Path) -> bool:
    """Whether a folder holds a saved model itself."""
    return (folder / "modules.json").is_file() or (folder / "config.json").is_file()


def _tokenizer_of(
    model: SentenceTransformer | PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> PreTrainedTokenizerBase | Tokenizer:
    """The tokenizer that goes with a model in memory."""
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        return model.tokenizer
    if tokenizer is None:
        raise ValueError("A bare model is exported with its tokenizer: export_student(model, target, tokenizer=...).")
    return tokenizer


def bare_model(model: SentenceTransformer | PreTrainedModel) -> PreTrainedModel | None:
    """The transformers model inside, or `None` where there is none (a static embedding)."""
    from transformers import PreTrainedModel

    return next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)


def check_tokenizer(
    model: SentenceTransformer | PreTrainedModel, tokenizer: PreTrainedTokenizerBase | Tokenizer
) -> None:
    """Refuses a tokenizer that cannot be the model's.

    Args:
        model: The model.
        tokenizer: Its tokenizer.

    Raises:
        ValueError: If it has ids that the model has no vector for, or another padding id.
    """
    from torch import nn

    bare = bare_model(model)
    tables = [module for module in model.modules() if isinstance(module, (nn.Embedding, nn.EmbeddingBag))]
    table = bare.get_input_embeddings() if bare is not None else next(iter(tables), None)
    top = max(tokenizer.get_vocab().values(), default=-1)
    if table is not None and top >= table.num_embeddings:
        raise ValueError(
            f"This is not the model's tokenizer: it has ids up to {top}, the model has {table.num_embeddings} vectors. Put "
            "the tokenizer that the student was trained with into its folder."
        )
    known = getattr(bare.config, "pad_token_id", None) if bare is not None else None
    pad = getattr(tokenizer, "pad_token_id", None)
    if known is not None and pad is not None and known != pad:
        raise ValueError(
            f"This is not the model's tokenizer: it pads with id {pad}, the model's config says {known}. Put the tokenizer "
            "that the student was trained with into its folder."
        )


def _write_model(student: Student, folder: Path) -> None:
    """Weights, configuration, code and tokenizer; nothing that points to this machine."""
    from transformers import PreTrainedModel

    if isinstance(student.model, PreTrainedModel):
        student.model.save_pretrained(folder)
        student.tokenizer.save_pretrained(folder)
    else:
        student.model.save_pretrained(str(folder), create_model_card=False)
    for path in [*folder.rglob("*config.json"), *folder.rglob("*__pycache__")]:
        if path.is_dir():
            shutil.rmtree(path)
            continue
        values = json.loads(path.read_text(encoding="utf-8"))
        kept = {key: value for key, value in values.items() if key not in _LOCAL_FIELDS}
        if kept != values:
            path.write_text(json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    _check_code(student.model, folder)


def _check_code(model: SentenceTransformer | PreTrainedModel, folder: Path) -> None:
    """The code of a custom model is there, and `auto_map` says where.

    Raises:
        ValueError: If not.
    """
    bare = bare_model(model)
    if bare is None or type(bare).__module__.startswith("transformers."):
        return
    auto_map = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("auto_map") or {}
    missing = [value for value in auto_map.values() if not (folder / f"{value.partition('.')[0]}.py").is_file()]
    if missing or not {"AutoConfig", "AutoModel"} <= set(auto_map):
        raise ValueError(
            f"{type(bare).__name__} cannot be loaded from a folder: its auto_map is {auto_map}"
            + (f", but the code of {', '.join(missing)} was not saved" if missing else "")
            + ". Define the class in a module (not in a script), give its config a default auto_map with AutoConfig and "
            "AutoModel, and call register_for_auto_class() on both."
        )


def _write_documents(student: Student, folder: Path, name: str, repo_id: str | None, revision: str | None) -> None:
    """Arguments of the training, results, and the card: a short one where there are no results."""
    if student.arguments is not None:
        shutil.copyfile(student.arguments, folder / _ARGUMENTS)
    if student.results is None:
        write_short_card(folder, "This student was not evaluated.", repo_id=repo_id, revision=revision)
        return
    from hf_distill.hub.card import write_card
    from hf_distill.hub.results import write_eval_results

    for figure in student.figures:
        shutil.copyfile(figure, folder / figure.name)
    student.results.write(folder)
    write_eval_results(folder, student.results)
    pictures = [figure.name for figure in student.figures]
    write_card(folder, student.results, repo_id=repo_id, revision=revision, name=name, figures=pictures)


def _check_outputs(student: Student, folder: Path) -> None:
    """The model in memory and the folder in a clean process say the same."""
    from hf_distill.hub.clean_process import check_in_clean_process

    check_in_clean_process(folder, _TEXTS, expected_outputs(student.model, student.tokenizer))


def expected_outputs(
    model: SentenceTransformer | PreTrainedModel, tokenizer: PreTrainedTokenizerBase | Tokenizer
) -> dict[str, Tensor]:
    """What a model in memory answers, in every way that its folder can be loaded.

    Args:
        model: The model; where it is and whether it trains is as before afterwards.
        tokenizer: Its tokenizer.

    Returns:
        `SentenceTransformer` and names of Auto classes to outputs.
    """
    from hf_distill.hub.clean_process import SENTENCES, model_output, one_thread, sentence_output

    device, training = next(model.parameters()).device, model.training
    model.to("cpu").eval()
    try:
        with one_thread():
            bare = bare_model(model)
            outputs = (
                {}
                if bare is None
                else {name: model_output(loaded, tokenizer, _TEXTS) for name, loaded in _auto_classes(bare).items()}
            )
            if bare is not model:
                outputs[SENTENCES] = sentence_output(model, _TEXTS)
    finally:
        model.to(device).train(training)
    return outputs


def _auto_classes(bare: PreTrainedModel) -> dict[str, PreTrainedModel]:
    """Auto class to the part of the model that it loads: the whole, and without its head."""
    auto_map = getattr(bare.config, "auto_map", None) or {}
    parts = {type(part).__name__: part for part in (bare.base_model, bare)}
    named = {auto: parts.get(reference.rpartition(".")[2]) for auto, reference in auto_map.items()}
    found = {auto: part for auto, part in named.items() if part is not None}
    return found or {"AutoModel": bare.base_model}


def copy_model(source: str | Path, target: str | Path) -> Path:
    """Copies what a model needs out of a checkpoint: no pickle, no training state, no card.

    Args:
        source: The checkpoint.
        target: A folder; files are added to it.

    Returns:
        `target`.
    """

    def unwanted(folder: str, names: list[str]) -> set[str]:
        skipped = shutil.ignore_patterns(*_NOT_MODEL)(folder, names)
        files = (name for name in names if not (Path(folder) / name).is_dir())
        return skipped | {name for name in files if Path(name).suffix not in SAFE_SUFFIXES and name not in SAFE_NAMES}

    shutil.copytree(source, target, ignore=unwanted, dirs_exist_ok=True)
    return Path(target)


__all__ = [
    "Student",
    "bare_model",
    "check_tokenizer",
    "copy_model",
    "expected_outputs",
    "export_student",
    "load_student",
]

"""The model card of a sentence encoder: rendered from `results.json` and the folder it describes, checked offline.

Every figure on the card is one of the weights beside it: the fingerprint of the model in the folder must be the one in
the results. The prose is in `model_cards/embedding_student.md.jinja`; `hf-distill card RUN` writes the card of a run.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCardData, hf_hub_url
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError, TemplateSyntaxError

from hf_distill.evaluation.checkpoints import MODEL_FOLDER, load_checkpoint
from hf_distill.evaluation.results import Results
from hf_distill.evaluation.score_cache import model_fingerprint, write_atomically
from hf_distill.hub import templates_folder
from hf_distill.hub.card_check import CARD_FILE, check_card, check_card_text
from hf_distill.hub.card_scores import gaps, headline, score_table, table_notes
from hf_distill.hub.card_training import (
    architecture,
    data_table,
    lineage_table,
    loss_table,
    origin_link,
    stage_table,
)
from hf_distill.hub.citations import papers_of
from hf_distill.hub.lineage import inherit_licence
from hf_distill.hub.markdown import cell, command_block, fenced
from hf_distill.hub.own_code import OwnCode, own_code
from hf_distill.hub.results import eval_results, student_row

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

CURVES_FILE = "curves.png"
TEMPLATE = "embedding_student.md.jinja"
HUB = "https://huggingface.co"
# Of our sources, and of the teachers: multilingual-e5 and the multilingual Universal Sentence Encoder.
_LANGUAGES = {
    **{"ar": "Arabic", "de": "German", "en": "English", "es": "Spanish", "fr": "French", "it": "Italian"},
    **{"ja": "Japanese", "ko": "Korean", "nl": "Dutch", "pl": "Polish", "pt": "Portuguese", "ru": "Russian"},
    **{"th": "Thai", "tr": "Turkish", "zh": "Chinese"},
}
_EXAMPLES = {
    "en": ["A dog runs through the snow.", "A puppy plays in winter.", "Bread is baked at night."],
    "tr": ["Bir köpek karda koşuyor.", "Yavru köpek kışın oynuyor.", "Ekmek gece pişirilir."],
}


def write_card(
    folder: str | Path,
    results: Results,
    *,
    repo_id: str | None = None,
    revision: str | None = None,
    name: str | None = None,
    figures: Sequence[str | Path] = (),
) -> Path:
    """Write the card of the model in a folder.

    Args:
        folder (`str` or `Path`): the model's folder, as sentence-transformers saves it.
        results (`Results`): what was measured of exactly these weights.
        repo_id (`str`, *optional*): where it will be on the Hub, `user/name`; its snippets and pictures then point
            there.
        revision (`str`, *optional*): branch, tag or commit on the Hub that the snippets pin.
        name (`str`, *optional*): what a reader's folder is called, where there is no `repo_id`; by default the
            folder's own name.
        figures (`Sequence`, *optional*): pictures in the folder, `["curves.png"]`.

    Returns:
        `Path`: `README.md`, written only once everything is checked.

    Raises:
        ValueError: no row of the student, figures of other weights, a wrong `repo_id`, an error in the template, or
            metadata that the Hub would refuse.
        FileNotFoundError: a picture that is not there.

    Example:
        >>> write_card("runs/mine/model", Results.read("runs/mine"), repo_id="user/mine", figures=["curves.png"])
    """
    text = render_card(folder, results, repo_id=repo_id, revision=revision, name=name, figures=figures)
    target = Path(folder) / CARD_FILE
    write_atomically(target, text)
    return target


def write_run_card(run: str | Path, *, repo_id: str | None = None, target: str | Path | None = None) -> Path:
    """Write the card of a run's model: what `hf-distill card RUN` does.

    Args:
        run (`str` or `Path`): the run's folder, with `model/`, `results.json` and, where drawn, `curves.png`.
        repo_id (`str`, *optional*): where the model will be on the Hub.
        target (`str` or `Path`, *optional*): folder for the card and its picture alone, `model_cards/rendered/mine`
            for instance; by default they go beside the model.

    Returns:
        `Path`: the card.

    Raises:
        FileNotFoundError: the run has no model or no results.
        ValueError: see `write_card`.
    """
    run = Path(run)
    model, results = run / MODEL_FOLDER, Results.read(run)
    if not model.is_dir():
        raise FileNotFoundError(f"{run} holds no {MODEL_FOLDER}/: train the run first, or give another run's folder.")
    curves = [CURVES_FILE] if (run / CURVES_FILE).is_file() else []
    if curves:
        shutil.copyfile(run / CURVES_FILE, model / CURVES_FILE)
    text = render_card(model, results, repo_id=repo_id, name=run.resolve().name, figures=curves)
    folder = model if target is None else Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    if curves and target is not None:
        shutil.copyfile(run / CURVES_FILE, folder / CURVES_FILE)
    write_atomically(folder / CARD_FILE, text)
    return folder / CARD_FILE


def render_card(
    folder: str | Path,
    results: Results,
    *,
    repo_id: str | None = None,
    revision: str | None = None,
    name: str | None = None,
    figures: Sequence[str | Path] = (),
) -> str:
    """Render and check a card without writing it; see `write_card` for arguments and errors.

    Returns:
        `str`: Markdown with metadata.
    """
    folder = Path(folder)
    student_row(results)
    if repo_id is not None:
        validate_repo_id(repo_id)
    pictures = [_picture(folder, figure) for figure in figures]
    model = check_fingerprint(folder, results)
    limit = model.max_seq_length if isinstance(model.max_seq_length, int) else None  # a static table has none
    code = own_code(folder)
    shown = (repo_id or name or folder.resolve().name).lstrip(".")
    training, licence = results.training, inherit_licence(results.training)
    title = cell(repo_id.rpartition("/")[2] if repo_id else results.run)
    context = {
        "metadata": _metadata(results, title, bool(code.files)).to_yaml(),
        "title": title,
        "use": _use(model, repr(shown).replace("'", '"'), revision if repo_id else None, code),
        "language": _language(results),
        "examples": _examples(results),
        "width": model.get_embedding_dimension(),
        "max_length": limit,
        "teacher": origin_link(training.teacher) if training else "",
        "architecture": architecture(training),
        "headline": headline(results),
        "table": score_table(results),
        "table_notes": table_notes(results),
        "pictures": [hf_hub_url(repo_id, p, revision=revision, endpoint=HUB) if repo_id else p for p in pictures],
        "cosine": student_row(results).metrics.get("test", {}).get("fidelity_cosine"),
        "gaps": gaps(results),
        "training": training,
        "tables": _tables(results),
        "command": command_block(results.command) if results.command else "",
        "seed": results.seed,
        "created": results.created[:10],
        "notes": [cell(note) for note in results.notes],
        "versions": ", ".join(f"{cell(library)} {cell(version)}" for library, version in results.versions.items()),
        "fingerprint": student_row(results).fingerprint,
        "licence": licence,
        "code": code,
        "papers": papers_of(training),
        "bibtex": fenced("\n\n".join(paper.bibtex for paper in papers_of(training)), "bibtex"),
    }
    text = _render(context)
    check_card_text(text, folder if repo_id is None else None)
    return text


def check_fingerprint(folder: str | Path, results: Results) -> SentenceTransformer:
    """Load the model of a folder and make sure that the results are its own.

    Args:
        folder (`str` or `Path`): the model's folder.
        results (`Results`): the results.

    Returns:
        `SentenceTransformer`: the model.

    Raises:
        ValueError: the results have no student, do not say which weights they are of, or are of others; or the folder
            holds no model that can be loaded.
    """
    row = student_row(results)
    again = "Evaluate these weights: accelerate launch recipes/evaluate_student.py --run RUN --test"
    if not row.fingerprint:
        raise ValueError(f"The results of {results.run!r} do not say which weights they are of. {again}")
    model = load_checkpoint(folder, device="cpu")
    found = model_fingerprint(model)
    if found != row.fingerprint:
        raise ValueError(
            f"The results of {results.run!r} are of other weights than those in {folder} (fingerprint "
            f"{row.fingerprint[:12]}… against {found[:12]}…), so no card was written. {again}"
        )
    return model


# ---- the parts of the context ----
def _picture(folder: Path, figure: str | Path) -> str:
    """Name a picture as seen from the card."""
    path = Path(figure) if Path(figure).is_absolute() else folder / figure
    if not path.is_file():
        raise FileNotFoundError(f"The picture {path} is not there. Draw it first, or leave it out of `figures`.")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"The picture {path} is not in {folder}, so it would not travel with the model. Copy it there."
        )
    return path.resolve().relative_to(folder.resolve()).as_posix()


def _metadata(results: Results, name: str, has_code: bool) -> ModelCardData:
    """Write what the Hub reads."""
    training, licence = results.training, inherit_licence(results.training)
    tags = ["sentence-transformers", "feature-extraction", "knowledge-distillation", "hf_distill"]
    extra: dict[str, Any] = {"license_name": licence.name} if licence.name else {}
    datasets, base, languages = [], None, []
    if training is not None:
        extra["teacher"] = training.teacher.name
        datasets = [source.hub_id for source in training.sources if source.hub_id]
        languages = training.languages
        base = training.init_from.name if training.init_from and training.init_from.on_hub else None
    entries = eval_results(results)
    return ModelCardData(
        language=languages or None,
        license=licence.id,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=[*tags, "custom_code"] if has_code else tags,
        base_model=base,
        datasets=datasets or None,
        metrics=sorted({entry.metric_type for entry in entries}) or None,
        model_name=name,
        eval_results=entries or None,
        **extra,
    )


def _use(model: SentenceTransformer, shown: str, revision: str | None, code: OwnCode) -> dict[str, Any]:
    """Say how to load the model: with sentence-transformers, and with transformers where it is one with mean pooling."""
    pinned = [shown, f'revision="{revision}"'] if revision else [shown]
    trusted = ", ".join([*pinned, "trust_remote_code=True"])
    modules = [type(module).__name__ for module in model]
    pooled = len(modules) > 1 and modules[0] == "Transformer" and modules[1] == "Pooling"
    return {
        "arguments": trusted if code.files else ", ".join(pinned),
        "model_arguments": trusted if code.model else ", ".join(pinned),
        "tokenizer_arguments": trusted if code.tokenizer else ", ".join(pinned),
        "transformers": pooled and model[1].pooling_mode == "mean" and set(modules[2:]) <= {"Normalize"},
        "normalize": "Normalize" in modules,
        "max_length": model.max_seq_length,
        "pinned": revision is not None,
    }


def _language(results: Results) -> str:
    """Name the language in the sentence that introduces the model."""
    codes = results.training.languages if results.training else []
    return " and ".join(_LANGUAGES.get(code, code) for code in codes)


def _examples(results: Results) -> list[str]:
    """Choose the sentences of the snippets: in the model's language, English where there are none in it."""
    codes = results.training.languages if results.training else []
    return next((_EXAMPLES[code] for code in codes if code in _EXAMPLES), _EXAMPLES["en"])


def _tables(results: Results) -> Mapping[str, str]:
    """Write the tables of how it was made; none without a record of the training."""
    training = results.training
    if training is None:
        return {}
    return {
        "lineage": lineage_table(training),
        "losses": loss_table(training),
        "data": data_table(training),
        "stages": stage_table(training),
    }


def _render(context: Mapping[str, Any]) -> str:
    """Fill the template.

    Raises:
        ValueError: the template is missing or wrong; names file and line.
    """
    folder = templates_folder()
    environment = Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    try:
        text = environment.get_template(TEMPLATE).render(**context)
    except TemplateSyntaxError as error:
        raise ValueError(f"The card template {folder / TEMPLATE} is wrong in line {error.lineno}: {error}.") from error
    except TemplateError as error:
        raise ValueError(f"The card template {folder / TEMPLATE} cannot be rendered: {error}.") from error
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


__all__ = ["check_card", "check_fingerprint", "render_card", "write_card", "write_run_card"]

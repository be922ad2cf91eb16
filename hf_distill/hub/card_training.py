"""What a card says of how a student was made: its kind, its lineage, loss terms, text and cost."""

from __future__ import annotations

from hf_distill.evaluation.training_summary import Origin, TrainingSummary
from hf_distill.hub.citations import paper_of_term
from hf_distill.hub.markdown import cell, markdown_table

_TERMS = {
    "contrastive": "in-batch contrastive loss of anchor and positive",
    "cosine": "1 − cosine of student and teacher embedding",
    "l2": "squared distance of student and teacher embedding",
    "hidden": "hidden states, layer by layer",
    "gram": "squared differences of the in-batch cosine matrices",
    "rkd_distance": "relational distances",
    "rkd_angle": "relational angles",
    "spearman": "1 − soft rank correlation of the pair similarities",
    "ranking": "pairwise ranking of the pair similarities",
    "orthogonality": "orthogonality of the student's projections",
    "state_decorrelation": "decorrelation of the fast and the slow memory",
}
_SOURCES = {
    "wordnet": "definitions and examples of WordNet 3.0, one a text",
    "wordnet_topics": "WordNet 3.0 in texts of 1 to 256 tokens",
    "wordnet_pairs": "word and definition, entry and example of WordNet 3.0",
    "news": "sentences and paragraphs of news articles of 2017",
    "headlines": "posts of health news desks (UCI, CC BY 4.0)",
    "docstrings": "prose of installed Python packages, the standard library left out",
    "stsb_train": "sentences of STS-B's training split, without scores",
    "wordnet_scenes": "sentences like captions, composed of WordNet's words",
    "kenet": "definitions and examples of the Turkish WordNet KeNet",
    "treebanks": "sentences of the Turkish Web and Wikipedia treebanks",
    "speeches_tr": "Turkish public speeches of 1906-1938",
    "stsb_tr_train": "sentences of STSb-TR's training split, without scores",
}
_MIXERS = {
    "ridge": "reads the whole text through a ridge regression from its keys to its values",
    "delta_causal": "reads the text from the left with the delta rule",
    "delta_flip": "reads the text from both ends with the delta rule",
    "delta_split": "reads the text with the delta rule, half of its heads from each end",
}


def architecture(training: TrainingSummary | None) -> str:
    """Say what kind of student it is, in a sentence; empty where it is not known."""
    if training is None:
        return ""
    settings, start = training.settings, training.init_from
    layers = settings.get("num_layers")
    if training.student == "deltanet":
        mixer = _MIXERS.get(settings.get("mixer", ""), "uses a recurrent mixer")
        return f"It has {layers} layers and no softmax attention: each {mixer}, at a cost that grows linearly with length."
    if training.student == "layers":
        whose = f"{origin_link(start)}'s" if start else "the"
        return f"It is a shallower transformer: {layers} of {whose} {settings.get('source_layers', '')} layers."
    if training.student == "tokenizer":
        return _tokenizer_student(training)
    if training.student == "static":
        return "It has no layers: a text is the mean of one vector a token, so word order does not count."
    return ""


def _tokenizer_student(training: TrainingSummary) -> str:
    """Say whose encoder a student with another tokenizer has, how much of it, and how large the tokenizer is."""
    settings, start = training.settings, training.init_from
    whose = origin_link(start) if start else f"random weights in the shape of `{cell(settings['backbone'])}`"
    part = f" ({settings['cut']})" if "cut" in settings else ""
    name = "MFT" if settings["tokenizer"] == "mft" else f"`{cell(settings['tokenizer'])}`"
    return f"It started as {whose}{part}, with the {name} tokenizer of {settings['vocabulary']:,} tokens."


def origin_link(origin: Origin) -> str:
    """Name a model, with a link where it is on the Hub."""
    if not origin.on_hub:
        return f"`{cell(origin.name)}`"
    pinned = f"/tree/{origin.revision}" if origin.revision else ""
    return f"[{cell(origin.name)}](https://huggingface.co/{origin.name}{pinned})"


def lineage_table(training: TrainingSummary) -> str:
    """Write where teaching and weights came from, pinned."""
    teacher, start = training.teacher, training.init_from
    rows, origins = [], [("teacher", teacher), ("weights started from", start)]
    if start and start.name == teacher.name and start.note in teacher.note:  # not with a part of its layers
        origins = [("teacher, whose weights it started from", teacher)]
    for role, origin in origins:
        if origin is None:
            rows.append([role, "random weights", "", ""])
            continue
        pin = f"commit `{cell(origin.revision)}`" if origin.revision else "not pinned"
        if origin.sha256:
            pin = f"`model.safetensors` with sha256 `{origin.sha256[:16]}…`"
        name = origin_link(origin) + (f", {cell(origin.note)}" if origin.note else "")
        rows.append([role, name, pin, cell(origin.license or "unknown")])
    return markdown_table(["", "model", "pinned by", "licence"], rows, left=4)


def loss_table(training: TrainingSummary) -> str:
    """Write the loss terms with their weights and papers."""
    rows = []
    for term, weight in training.losses.items():
        paper = paper_of_term(term)
        schedule = isinstance(weight, dict)
        shown = ", ".join(f"{w:g} at step {s}" for s, w in weight.items()) if schedule else f"{weight:g}"
        source = f"[{paper.short}]({paper.link})" if paper else ""
        rows.append([f"`{cell(term)}`", shown, _TERMS.get(term, ""), source])
    return markdown_table(["term", "weight", "what it compares", "after"], rows, left=4)


def data_table(training: TrainingSummary) -> str:
    """Write the sources of the training text with their counts."""
    rows = []
    for source in training.sources:
        link = f"[{source.hub_id}](https://huggingface.co/datasets/{source.hub_id})" if source.hub_id else ""
        what = _SOURCES.get(source.name, link or "a file")
        count = "not counted" if source.rows is None else f"{source.rows:,}"
        rows.append([f"`{cell(source.name)}`", what, f"{source.weight:g}", count])
    return markdown_table(["source", "what it is", "weight", "rows"], rows, left=2)


def stage_table(training: TrainingSummary) -> str:
    """Write what every stage took."""
    rows = [
        [
            cell(stage.name),
            f"{stage.steps:,}",
            f"{stage.minutes:.1f}",
            *("" if count is None else f"{count:,}" for count in (stage.texts, stage.tokens)),
        ]
        for stage in training.stages
    ]
    return markdown_table(["stage", "steps", "minutes", "texts", "tokens"], rows)


__all__ = ["architecture", "data_table", "lineage_table", "loss_table", "origin_link", "stage_table"]

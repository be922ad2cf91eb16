"""What the loopback Hub checks in a repository: the metadata of README.md, and the entries of `.eval_results/*.yaml`.

The rules are those of the Hub's documentation (model card metadata, licence ids, the eval results format).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date, datetime
from typing import Any

import yaml

_BLOCK = re.compile(r"^(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(\r\n|\n|$))")
_ID = re.compile(r"(?:[\w.-]+/)?[\w.-]+")
_LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")
LICENSES = set(
    """apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0
    cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
    cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl
    gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl
    apple-amlr mpl-2.0 odc-by odbl open-mdw openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl
    lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4
    grok2-community gemma unknown other""".split()
)
RELATIONS = ("adapter", "merge", "quantized", "finetune")


class _StrictLoader(yaml.SafeLoader):
    """YAML as the Hub reads it: the same key twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.YAMLError(f"duplicated mapping key {twice!r}")
        return super().construct_mapping(node, deep)


def read_metadata(text: str) -> dict[str, Any]:
    """Return the metadata of a card that was accepted; `{}` without any."""
    block = _BLOCK.search(text)
    return (yaml.safe_load(block[2]) or {}) if block else {}


def check_card(text: str, repo_type: str) -> tuple[list[str], list[str]]:
    """Return (errors, warnings) on the metadata of a README.md."""
    block = _BLOCK.search(text)
    if block is None or not block[2].strip():
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        metadata = yaml.load(block[2], _StrictLoader)
    except yaml.YAMLError as error:
        return [f"Invalid YAML in repo card: {error}"], []
    if not isinstance(metadata, dict):
        return ["The metadata of a repo card must be a mapping"], []
    errors = [*_check_values(metadata), *_check_ids(metadata)]
    if repo_type == "model":
        errors += _check_model_index(metadata.get("model-index", []))
    return errors, [] if "license" in metadata else ["no license is given"]


def _as_list(value: Any) -> list[Any]:
    """Return a value that may be one or many as a list."""
    return value if isinstance(value, list) else [value]


def _check_values(metadata: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the simple fields."""
    for value in _as_list(metadata.get("license", [])):
        if value not in LICENSES:
            yield f'"license" must be one of [{", ".join(sorted(LICENSES))}], not {value!r}'
    for index, value in enumerate(_as_list(metadata.get("language", []))):
        if not isinstance(value, str) or not _LANGUAGE.fullmatch(value):
            yield f'"language[{index}]" with value {value!r} is not valid. It must be an ISO 639-1, 639-2 or 639-3 code'
    for name in ("tags", "metrics"):
        values = metadata.get(name, [])
        if not isinstance(values, list):
            yield f'"{name}" must be an array'
        elif not all(isinstance(value, str) for value in values):
            yield f'"{name}" must hold strings only'
    for name in ("library_name", "pipeline_tag", "license_name", "license_link"):
        if not isinstance(metadata.get(name, ""), str):
            yield f'"{name}" must be a string'
    if metadata.get("base_model_relation", "merge") not in RELATIONS:
        yield f'"base_model_relation" must be one of [{", ".join(RELATIONS)}]'
    for index, config in enumerate(_as_list(metadata.get("configs", []))):
        if not isinstance(config, dict) or not isinstance(config.get("config_name"), str):
            yield f'"configs[{index}].config_name" is required'


def _check_ids(metadata: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the ids of other repositories."""
    for name, kind in (("base_model", "model"), ("datasets", "dataset")):
        for index, value in enumerate(_as_list(metadata.get(name, []))):
            if not isinstance(value, str) or not _ID.fullmatch(value):
                yield f'"{name}[{index}]" with value {value!r} is not valid. Use a {kind} id from https://hf.co/{kind}s.'


def _check_model_index(models: Any) -> Iterator[str]:
    """Yield what is wrong with `model-index`."""
    if not isinstance(models, list):
        yield '"model-index" must be an array'
        return
    for m, model in enumerate(models):
        where = f"model-index[{m}]"
        if not isinstance(model, dict) or not isinstance(model.get("name"), str) or not model["name"]:
            yield f'"{where}.name" is required'
            continue
        if not isinstance(model.get("results"), list):
            yield f'"{where}.results" must be an array'
            continue
        for r, result in enumerate(model["results"]):
            yield from _check_result(result if isinstance(result, dict) else {}, f"{where}.results[{r}]")


def _check_result(result: dict[str, Any], where: str) -> Iterator[str]:
    """Yield what is wrong with one result of `model-index`."""
    for part, name in (("task", "type"), ("dataset", "type"), ("dataset", "name")):
        section = result.get(part)
        if not isinstance(section, dict) or not isinstance(section.get(name), str) or not section[name]:
            yield f'"{where}.{part}.{name}" is required'
        elif (part, name) == ("dataset", "type") and not _ID.fullmatch(section[name]):
            yield f'"{where}.dataset.type" with value {section[name]!r} is not a dataset id'
    metrics = result.get("metrics")
    if not isinstance(metrics, list) or not metrics:
        yield f'"{where}.metrics" must be an array with at least one metric'
        return
    for index, metric in enumerate(metrics):
        for name in ("type", "value"):
            if not isinstance(metric, dict) or metric.get(name) is None:
                yield f'"{where}.metrics[{index}].{name}" is required'


def _check_entry(entry: Any) -> Iterator[str]:
    """Yield what is wrong with one entry of an `.eval_results` file."""
    if not isinstance(entry, dict):
        yield "an entry must be a mapping"
        return
    dataset = entry.get("dataset") if isinstance(entry.get("dataset"), dict) else {}
    if not isinstance(dataset.get("id"), str) or not _ID.fullmatch(dataset["id"]):
        yield "dataset.id is required and must be a dataset id"
    if not isinstance(dataset.get("task_id"), str):
        yield "dataset.task_id is required"
    if isinstance(entry.get("value"), bool) or not isinstance(entry.get("value"), (int, float, str)):
        yield "value is required"
    if "source" in entry and not (isinstance(entry["source"], dict) and isinstance(entry["source"].get("url"), str)):
        yield "source.url is required where there is a source"
    if "date" in entry and not isinstance(entry["date"], (date, datetime)):
        try:
            datetime.fromisoformat(str(entry["date"]).replace("Z", "+00:00"))
        except ValueError:
            yield f"date {entry['date']!r} is not an ISO-8601 date"


def eval_results(files: dict[str, bytes]) -> list[dict[str, Any]]:
    """Return what `expand=evalResults` answers: an item for every entry, an `error` for every file that is wrong."""
    items: list[dict[str, Any]] = []
    for path in sorted(path for path in files if re.fullmatch(r"\.eval_results/[^/]+\.ya?ml", path)):
        name = path.partition("/")[2]
        try:
            entries = yaml.load(files[path], _StrictLoader)
        except yaml.YAMLError as error:
            items.append({"filename": name, "error": f"Invalid YAML: {error}"})
            continue
        if not isinstance(entries, list):
            items.append({"filename": name, "error": "the file must hold a list of results"})
            continue
        errors = [f"[{index}] {error}" for index, entry in enumerate(entries) for error in _check_entry(entry)]
        if errors:
            items.append({"filename": name, "error": "; ".join(errors)})
        else:
            items += [{"filename": name, "verified": False, "data": entry} for entry in entries]
    return items

"""The recipe that encodes a corpus: from texts to a data set that loads, and its errors before any work."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from hf_distill.data.encoded_corpus import load_encoded_corpus
from hf_distill.teachers.cached import TeacherCache

RECIPE = Path(__file__).parents[2] / "recipes" / "encode_corpus.py"
CONFIGS = RECIPE.parent / "configs" / "tokenizer"


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("encode_corpus_recipe", RECIPE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["encode_corpus_recipe"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def options(tiny_texts: list[str], tiny_bert: str, tiny_sentence_transformer: str, tmp_path: Path) -> dict:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(tiny_texts) + "\n", encoding="utf-8")
    return {
        "sources": {str(file): 1},
        "tokenizers": {"tabi": tiny_bert},
        "teacher": tiny_sentence_transformer,
        "output_dir": str(tmp_path / "corpus"),
        "remove_overlap": False,
        "max_tokens": 40,
        "device": "cpu",
        "precision": "float32",
    }


def test_every_field_has_help_and_the_configs_fit(recipe: ModuleType) -> None:
    for field in fields(recipe.EncodeCorpusConfig):
        assert len(field.metadata["help"]) > 10, field.name
    configs = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in CONFIGS.glob("corpus*.yaml")]
    assert len(configs) >= 2
    for config in configs:
        assert set(recipe.EncodeCorpusConfig(**config).tokenizers) == {"mft", "tabi"}


def test_a_corpus_and_a_second_run(recipe: ModuleType, options: dict, tiny_texts: list[str], capsys) -> None:
    config = recipe.EncodeCorpusConfig(**options, prompt="query: ")
    report = recipe.main(config)
    shown = capsys.readouterr().out
    assert f"of {len(tiny_texts)} texts were kept" in shown
    assert "0 of 64 rows overlapped" in shown
    dataset = load_encoded_corpus(options["output_dir"])
    assert dataset.column_names == ["text", "tabi_input_ids", "teacher_embedding_final"]
    assert len(dataset) == report.manifest.rows < len(tiny_texts)
    assert report.manifest.teacher["prompt"] == "query: "
    assert report.manifest.origin == {"sources": {"texts.txt": 64}, "seed": 42, "overlap_removed": 0}
    again = recipe.main(config)
    assert again.manifest == report.manifest
    assert again.reused_shards == len(report.manifest.shards)
    # the cache that was written serves another corpus of these texts
    cache = TeacherCache.open(Path(options["output_dir"]) / "teacher_cache")
    other = {**options, "teacher": None, "teacher_cache": str(cache.path), "output_dir": options["output_dir"] + "2"}
    served = recipe.main(recipe.EncodeCorpusConfig(**other))
    assert served.manifest.shards == report.manifest.shards


def test_evaluation_text_is_left_out(
    recipe: ModuleType, options: dict, tiny_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hf_distill.evaluation import turkish

    held_out = sorted(tiny_texts, key=len)[5:8]
    monkeypatch.setattr(turkish, "held_out_turkish", lambda folder: held_out)
    report = recipe.main(recipe.EncodeCorpusConfig(**{**options, "remove_overlap": True}))
    assert report.manifest.origin["overlap_removed"] >= 3
    assert not set(held_out) & set(load_encoded_corpus(options["output_dir"])["text"])


def test_command_line(options: dict) -> None:
    given = {**options, "tokenizers": json.dumps(options["tokenizers"]), "sources": json.dumps(options["sources"])}
    given.pop("remove_overlap")
    arguments = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, str(RECIPE), *arguments, "--no_remove_overlap", "--num_proc", "2"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert found.returncode == 0, found.stderr
    assert "texts were kept" in found.stdout
    assert len(load_encoded_corpus(options["output_dir"])) > 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": None}, "Give --teacher, or --teacher_cache"),
        ({"teacher_cache": "x"}, "and not both"),
        ({"tokenizers": None}, "Give --tokenizers"),
        ({"sources": "{}"}, "Give --sources"),
        ({"sources": "{kenet"}, "sources must be JSON"),
        ({"private": True}, "--push_to_hub"),
    ],
)
def test_bad_requests(recipe: ModuleType, options: dict, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe.EncodeCorpusConfig(**{**options, **change})


def test_what_is_not_there(recipe: ModuleType, options: dict) -> None:
    for name, value, error in (
        ("tokenizers", {"tabi": "org/none"}, ConnectionError),
        ("sources", {"nowhere.txt": 1}, FileNotFoundError),
        ("teacher", "org/none", FileNotFoundError),
    ):
        with pytest.raises(error, match=r"org/none|nowhere\.txt"):
            recipe.main(recipe.EncodeCorpusConfig(**{**options, name: value}))
    assert not Path(options["output_dir"]).exists()

"""The recipe that trains a tokenizer: from sources, from the Hub, and the stand-in where there is no Hub."""

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
from transformers import AutoTokenizer

RECIPE = Path(__file__).parents[2] / "recipes" / "train_tokenizer.py"
CONFIGS = RECIPE.parent / "configs" / "tokenizer"


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_tokenizer", RECIPE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_tokenizer"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def options(tiny_texts: list[str], tmp_path: Path) -> dict:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(tiny_texts) + "\n", encoding="utf-8")
    return {
        "sources": {str(file): 1},
        "output_dir": str(tmp_path / "tokenizer"),
        "vocab_size": 320,
        "remove_overlap": False,
    }


def test_every_field_has_help_and_the_configs_fit(recipe: ModuleType) -> None:
    names = {field.name for field in fields(recipe.TrainTokenizerConfig)}
    for field in fields(recipe.TrainTokenizerConfig):
        assert len(field.metadata["help"]) > 10, field.name
    for file in CONFIGS.glob("tokenizer*.yaml"):
        config = recipe.TrainTokenizerConfig(**yaml.safe_load(file.read_text(encoding="utf-8")))
        assert set(yaml.safe_load(file.read_text(encoding="utf-8"))) <= names
        assert set(config.sources) == {"kenet", "treebanks", "speeches_tr"}


def test_from_a_file(recipe: ModuleType, options: dict, tiny_texts: list[str], capsys) -> None:
    note = recipe.main(recipe.TrainTokenizerConfig(**options))
    assert note == json.loads((Path(options["output_dir"]) / "training.json").read_text(encoding="utf-8"))
    assert note["sources"] == {"texts.txt": len(tiny_texts)}
    assert (note["rows"], note["vocab_size"], note["seed"]) == (len(tiny_texts), 320, 42)
    assert "stand_in_for" not in note
    assert "texts sha256" in capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(options["output_dir"])
    assert tokenizer.decode(tokenizer(tiny_texts[0]).input_ids, skip_special_tokens=True) == tiny_texts[0]
    with pytest.raises(FileExistsError, match="--overwrite"):
        recipe.main(recipe.TrainTokenizerConfig(**options))
    again = recipe.main(recipe.TrainTokenizerConfig(**options, overwrite=True))
    assert again == note


def test_evaluation_text_is_left_out(
    recipe: ModuleType, options: dict, tiny_texts: list[str], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    from hf_distill.evaluation import turkish

    asked = []
    monkeypatch.setattr(turkish, "held_out_turkish", lambda folder: asked.append(folder) or tiny_texts[:2])
    config = recipe.TrainTokenizerConfig(**{**options, "remove_overlap": True}, stsb_tr_folder="here")
    note = recipe.main(config)
    assert asked == ["here"]
    assert note["rows"] <= len(tiny_texts) - 2
    assert "overlapped with evaluation text" in capsys.readouterr().out


def test_from_the_hub_or_its_stand_in(
    recipe: ModuleType, options: dict, tiny_bert: str, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    config = recipe.TrainTokenizerConfig(**options, from_hub="org/tabi")
    note = recipe.main(config)
    assert note["stand_in_for"] == "org/tabi"
    assert note["vocab_size"] == 320
    assert "in place of org/tabi a tokenizer is trained here" in caplog.text
    # a name that loads gives that tokenizer, and nothing is read or trained
    missing = {**options, "sources": {"nowhere.txt": 1}, "output_dir": options["output_dir"] + "2"}
    taken = recipe.main(recipe.TrainTokenizerConfig(**missing, from_hub=tiny_bert))
    assert taken["vocab_size"] == len(AutoTokenizer.from_pretrained(tiny_bert))
    assert taken["revision"] == "main"
    # where the Hub answers that there is none, nothing is trained in its stead
    monkeypatch.setattr("hf_distill.teachers.offline.hub_reachable", lambda: True)
    with pytest.raises(FileNotFoundError, match="'org/tabi' cannot be loaded from the Hub"):
        recipe.main(recipe.TrainTokenizerConfig(**{**options, "output_dir": "unused"}, from_hub="org/tabi"))


def test_command_line(options: dict, tmp_path: Path) -> None:
    command = [sys.executable, str(RECIPE), "--output_dir", options["output_dir"], "--no_remove_overlap"]
    found = subprocess.run(
        [*command, "--sources", '{"nowhere.txt": 1}'], capture_output=True, text=True, timeout=280, cwd=tmp_path
    )
    assert found.returncode == 1
    assert "error: There is no file nowhere.txt" in found.stderr
    assert "Traceback" not in found.stderr
    assert not Path(options["output_dir"]).exists()


def test_bad_sources(recipe: ModuleType) -> None:
    with pytest.raises(ValueError, match="sources must be JSON"):
        recipe.TrainTokenizerConfig(output_dir="x", sources="{kenet")

"""The tokenizer experiment end to end on a tiny teacher: the table, going on after a stop, students without the library."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "tokenizer_distill.py"
CONFIGS = RECIPE.parent / "configs" / "tokenizer"
HUB_CONFIGS = [
    f"{tokenizer}_{start}"
    for tokenizer in ("mft", "tabi")
    for start in ("embeddinggemma", "embeddingmagibu", "random")
]
STUDENTS = [
    f"{tokenizer}-{start}" for tokenizer in ("mft", "tabi") for start in ("tiny", "tiny-1layer", "random-init")
]
# Loads saved students and encodes strings.
ENCODE = """
import json, sys, numpy as np
from sentence_transformers import SentenceTransformer
texts = json.load(open(sys.argv[1]))
for folder, target in zip(sys.argv[2::2], sys.argv[3::2]):
    np.save(target, SentenceTransformer(folder, trust_remote_code=True, device="cpu").encode(texts))
"""


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tokenizer_distill", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pieces(sentence: str, length: int, step: int) -> list[str]:
    """Runs of words; those of different sentences never overlap."""
    words = sentence.split()
    return [" ".join(words[start : start + length]) for start in range(0, len(words) - length + 1, step)]


@pytest.fixture(scope="module")
def stsb_tr(tiny_texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of STSb-TR's format and size, over few sentences, so that they are encoded in no time."""
    folder = tmp_path_factory.mktemp("stsb_tr")
    texts = [text for sentence in tiny_texts[:4] for text in pieces(sentence, 7, 4)][:12]
    for name, rows in (("dev.tsv", 1500), ("test.tsv", 1379)):
        lines = ["genre\tdataset\tyear\tsid\tscore\tsentence1\tsentence2"]
        for row in range(rows):
            first, second = texts[row % 12], texts[(row * 7 + row // 12) % 12]
            shared = len(set(first.split()) & set(second.split()))
            lines.append(f"main\tx\t2012\t{row:04d}\t{min(shared, 5)}.000\t{first}\t{second}")
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def config(
    tiny_sentence_transformer: str,
    tiny_bert: str,
    tiny_texts: list[str],
    stsb_tr: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Six tiny students; without the package of the MFT tokenizer another one takes its place."""
    folder = tmp_path_factory.mktemp("recipe")
    texts = folder / "texts.txt"
    rows = [text for sentence in tiny_texts[4:12] for length in (5, 9, 12) for text in pieces(sentence, length, 3)]
    texts.write_text("\n".join(rows) + "\n", encoding="utf-8")
    fields = {
        "note": "A tiny experiment.",
        "teacher": tiny_sentence_transformer,
        "tokenizers": {"mft": "mft" if importlib.util.find_spec("turkish_tokenizer") else tiny_bert, "tabi": "train"},
        "backbones": {
            "tiny": tiny_sentence_transformer,
            "tiny-1layer": {"model": tiny_sentence_transformer, "num_layers": 1},
            "random-init": None,
        },
        "sources": {str(texts): 1},
        "num_texts": 100,
        "max_tokens": 60,
        "vocab_size": 320,
        "stsb_tr_folder": str(stsb_tr),
        "tasks": ["stsb_tr"],
        "speed_rounds": 1,
        "warmup_phase_steps": 2,
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "bf16": False,
        "disable_tqdm": True,
        "report_to": "none",
        "eval_strategy": "steps",
        "eval_steps": 3,
        "eval_on_start": True,
        "save_strategy": "steps",
        "save_steps": 3,
        "load_best_model_at_end": True,
        "metric_for_best_model": "stsb_tr_pearson",
        "greater_is_better": True,
    }
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(fields, sort_keys=False), encoding="utf-8")
    return file


def launch(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(RECIPE), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=500)


@pytest.fixture(scope="module")
def finished(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the whole experiment, run as a user runs it."""
    folder = tmp_path_factory.mktemp("experiment") / "out"
    done = launch("--config", config, "--output_dir", folder, "--keep_checkpoints")
    assert done.returncode == 0, done.stderr[-4000:]
    assert "A tiny experiment." in done.stdout
    assert "# Tokenizers compared" in done.stdout
    return folder


@pytest.mark.slow
def test_the_table_has_every_student(finished: Path) -> None:
    table = (finished / "tokenizers.md").read_text(encoding="utf-8")
    values = json.loads((finished / "tokenizers.json").read_text(encoding="utf-8"))
    assert {student["name"] for student in values["students"]} == set(STUDENTS)
    for student in values["students"]:
        assert student["name"] in table
        assert student["spent"]["steps"]["mean"] == 6  # both phases
    seen = {s["name"]: s["spent"]["tokens"]["mean"] for s in values["students"]}
    for tokenizer in ("mft", "tabi"):  # equal tokens, whatever the start
        assert len({count for name, count in seen.items() if name.startswith(tokenizer)}) == 1
    for name in STUDENTS:
        run = finished / f"{name}-seed42"
        results = json.loads((run / "results.json").read_text(encoding="utf-8"))
        assert {row["role"] for row in results["rows"]} == {"teacher", "student", "untrained"}
        assert results["selected_by"] == "stsb_tr_pearson"
        log = json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
        assert {entry["phase"] for entry in log if "phase" in entry} == {1, 2}
        assert any(entry.get("num_input_tokens_seen", 0) > 0 for entry in log)
        for kept in ("model/modules.json", "README.md", "similarities.json", "checkpoint-6/trainer_state.json"):
            assert (run / kept).is_file(), kept


@pytest.mark.slow
def test_the_same_command_goes_on(recipe: ModuleType, config: Path, finished: Path, caplog, capsys) -> None:
    """A student whose last steps and scores are lost goes on; the others are not touched."""
    run = finished / "tabi-random-init-seed42"
    weights = {name: (finished / f"{name}-seed42/model/model.safetensors").read_bytes() for name in STUDENTS}
    for file in ("results.json", "similarities.json"):
        (run / file).unlink()
    shutil.rmtree(run / "checkpoint-6")
    shutil.rmtree(run / "model")
    times = {name: (finished / f"{name}-seed42/results.json").stat().st_mtime_ns for name in STUDENTS[:-1]}
    files = recipe.main(*recipe.parse(["--config", str(config), "--output_dir", str(finished)]))
    assert "6 runs; 5 are done already." in capsys.readouterr().out
    assert (run / "model" / "model.safetensors").read_bytes() == weights["tabi-random-init"]
    assert times == {name: (finished / f"{name}-seed42/results.json").stat().st_mtime_ns for name in STUDENTS[:-1]}
    assert not list(run.glob("checkpoint-*"))  # without --keep_checkpoints
    assert "tabi-random-init" in files["table"].read_text(encoding="utf-8")


@pytest.mark.slow
def test_students_encode_strings_and_ids_alike_without_the_library(
    finished: Path, tmp_path: Path, run_elsewhere: Callable[..., str]
) -> None:
    from sentence_transformers import SentenceTransformer

    from hf_distill.data.encoded_corpus import load_encoded_corpus

    corpus = load_encoded_corpus(finished / "corpus").select(range(12))
    (tmp_path / "texts.json").write_text(json.dumps(corpus["text"][:]), encoding="utf-8")
    names = ["mft-tiny-1layer", "tabi-random-init"]
    folders = [finished / f"{name}-seed42" / "model" for name in names]
    parts = [part for name, folder in zip(names, folders, strict=True) for part in (folder, tmp_path / f"{name}.npy")]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    run_elsewhere(ENCODE, tmp_path / "texts.json", *parts, cwd=tmp_path, env=environment)
    for name, folder in zip(names, folders, strict=True):
        assert str(finished.parent) not in "".join(p.read_text("utf-8") for p in folder.glob("*.json"))
        model = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
        for row, ids in enumerate(corpus[f"{name.partition('-')[0]}_input_ids"]):
            with torch.no_grad():
                batch = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
                vector = model(batch)["sentence_embedding"][0].numpy()
            np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy")[row], vector, atol=1e-5)


@pytest.mark.slow
def test_another_request_in_the_same_folder_is_refused(recipe: ModuleType, config: Path, finished: Path) -> None:
    for change, message in (
        (["--learning_rate", "0.1"], "training.learning_rate=.*--fresh"),
        (["--vocab_size", "400"], "vocab_size=320, but now vocab_size=400"),
    ):
        with pytest.raises(ValueError, match=message):
            recipe.main(*recipe.parse(["--config", str(config), "--output_dir", str(finished), *change]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "mft-gpt"], "--only mft-gpt: there is no such student; there are mft-tiny, "),
        (["--tokenizers", '{"tabi": "runs/nothing"}'], "'runs/nothing'"),
        (["--tokenizers", "mft"], "tokenizers must be JSON"),
        (["--stsb_tr_folder", "nowhere"], "figenfikri/stsb_tr"),
        (["--stsb_tr_folder", "nowhere"], "--stsb_tr_folder"),
        (["--backbones", '{"random-init": null}'], "random_shape"),
        (["--ensemble", "vote"], "ensemble must be one of mean, concat, route"),
        (["--num_texts_", "5"], "did you mean 'num_texts'?"),
    ],
)
def test_wrong_arguments(recipe: ModuleType, config: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises((ValueError, OSError)) as caught:
        recipe.main(*recipe.parse(["--config", str(config), "--output_dir", str(tmp_path / "out"), *arguments]))
    assert message in str(caught.value)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_wrong_argument_is_one_line(config: Path, tmp_path: Path) -> None:
    done = launch("--config", config, "--output_dir", tmp_path / "out", "--only", "mft-gpt")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: --only mft-gpt")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["table", "table_use", "smoke", *HUB_CONFIGS])
def test_every_config_is_understood(recipe: ModuleType, name: str) -> None:
    asked, args = recipe.parse(["--config", str(CONFIGS / f"{name}.yaml")])
    assert args.active_terms() == ["cosine"]
    assert args.load_best_model_at_end
    assert len({job.folder for job in asked.jobs(args)}) == {"table": 6, "table_use": 4, "smoke": 6}.get(name, 1)
    if name in HUB_CONFIGS:
        assert asked.names() == [
            f"{tokenizer}-{start}"
            for tokenizer in ("mft", "tabi")
            for start in ("embeddinggemma", "embeddingmagibu", "random-init")
        ]
        assert asked.only[0].replace("-", "_").startswith(name)
        assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 256
        assert (args.warmup_phase_steps, args.num_train_epochs, args.learning_rate) == (100, 1, 5e-5)
        assert asked.corpus == "alibayram/cosmos-corpus-encoded"


@pytest.mark.parametrize("failure", [FloatingPointError("The term cosine is nan."), KeyboardInterrupt()])
def test_finished_students_have_their_table_whatever_ends_the_run(
    recipe: ModuleType, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, failure: BaseException
) -> None:
    from hf_distill.trainers import tokenizer_materials, tokenizer_stages

    def run(job: Any, *_: Any) -> None:
        if job.name == "mft-random-init":
            raise failure
        job.folder.mkdir()
        for file in ("results.json", "similarities.json"):
            (job.folder / file).write_text("{}")

    def compare(folders: list[Path], output: str) -> dict[str, Path]:
        compared.append([folder.name for folder in folders])
        if broken:
            raise ValueError("a run lacks a row")
        table = Path(output) / "tokenizers.md"
        table.write_text("the table")
        return {"table": table}

    compared, broken = [], False
    monkeypatch.setattr(recipe, "run_student", run)
    monkeypatch.setattr(tokenizer_stages, "compare_tokenizers", compare)
    monkeypatch.setattr(tokenizer_materials, "prepare", lambda *_: SimpleNamespace(dataset=[1, 2]))
    arguments = ["--config", str(config), "--output_dir", str(tmp_path)]
    with pytest.raises(type(failure)) as caught:
        recipe.main(*recipe.parse(arguments))
    assert caught.value is failure
    assert compared == [["mft-tiny-seed42", "mft-tiny-1layer-seed42"]]
    assert capsys.readouterr().out.endswith("the table")
    broken = True
    with pytest.raises(type(failure)):
        recipe.main(*recipe.parse(arguments))
    assert "There is no table: a run lacks a row" in capsys.readouterr().err


def test_nan_is_one_line(monkeypatch: pytest.MonkeyPatch, config: Path, tmp_path: Path) -> None:
    from hf_distill import hardware
    from hf_distill.trainers import tokenizer_stages

    def fail(*_: Any) -> None:
        raise FloatingPointError("The term cosine is nan at step 3.")

    monkeypatch.setattr(hardware, "use_all_cores", lambda: None)
    monkeypatch.setattr(tokenizer_stages, "open_experiment", fail)
    monkeypatch.setattr(sys, "argv", [str(RECIPE), "--config", str(config), "--output_dir", str(tmp_path)])
    with pytest.raises(SystemExit, match="error: The term cosine is nan at step 3"):
        runpy.run_path(str(RECIPE), run_name="__main__")


def test_the_configuration_of_use_says_how_it_fits(recipe: ModuleType) -> None:
    asked, args = recipe.parse(["--config", str(CONFIGS / "table_use.yaml")])
    assert (asked.teacher, asked.teacher_dim) == ("use-multilingual-v3", 384)
    assert asked.tokenizers["tabi"] == "alibayram/TabiBERT-tokenizer-32k or train"
    table, others = recipe.parse(["--config", str(CONFIGS / "table.yaml")])
    assert asked.sources == table.sources
    assert args.output_dir != others.output_dir


@pytest.mark.slow
def test_a_plain_function_teaches_a_student(
    recipe: ModuleType, config: Path, tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    from hf_distill.teachers import named
    from hf_distill.teachers.manifest import TeacherSpec

    def letters(texts: list[str]) -> np.ndarray:
        return np.array(
            [[1 + text.count(chr(97 + n % 26)) * (n + 1) for n in range(40)] for text in texts], dtype=float
        )

    spec = TeacherSpec(teacher="use-multilingual-v3", weights_sha256="ab" * 32, dtype="float32")
    monkeypatch.setattr(named, "use_multilingual", lambda *_: (letters, spec))
    monkeypatch.setattr(named, "use_tokenizer", lambda: AutoTokenizer.from_pretrained(tiny_bert))
    change = ["--teacher", "use-multilingual-v3", "--teacher_dim", "32", "--only", "tabi-tiny-1layer"]
    files = recipe.main(*recipe.parse(["--config", str(config), "--output_dir", str(tmp_path / "out"), *change]))
    assert "| use-multilingual-v3 (teacher) |" in files["table"].read_text(encoding="utf-8")
    run = tmp_path / "out" / "tabi-tiny-1layer-seed42"
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    teacher = next(row for row in results["rows"] if row["role"] == "teacher")
    assert teacher["size"] is None
    assert teacher["metrics"]["test"]["stsb_tr_pearson"] != 0
    assert any("40 numbers a text are brought to the students' 32 by PCA" in note for note in results["notes"])
    assert results["training"]["teacher"]["name"] == "use-multilingual-v3"
    assert "use-multilingual-v3" in (run / "README.md").read_text(encoding="utf-8")

"""Export: one folder that works without hf_distill, outputs equal to the last bit; bad input leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from small_run import make_run, make_student
from transformers import AutoTokenizer, BertModel

from hf_distill.evaluation.results import Results
from hf_distill.hub import export
from hf_distill.hub.clean_process import check_in_clean_process
from hf_distill.hub.export import copy_model, expected_outputs, export_student, load_student


@pytest.fixture(scope="module")
def run(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tiny_bert, tmp_path_factory.mktemp("runs") / "small")


@pytest.fixture
def run_copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# ---- what is in the folder ----


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_becomes_a_folder_that_works_in_a_clean_process(run: Path, tmp_path: Path) -> None:
    folder = export_student(run, tmp_path / "out" / "student", repo_id="user/student")
    found = files_of(folder)
    assert {"model.safetensors", "config.json", "modules.json", "tokenizer.json", "README.md"} <= found
    assert {"results.json", "curves.png", "modeling_deltanet.py", "configuration_deltanet.py"} <= found
    assert json.loads((folder / "training_args.json").read_text()) == {"learning_rate": 0.001}
    assert ".eval_results/STSBenchmark.yaml" in found
    assert not {path for path in found if "checkpoint" in path or "cache" in path or path.endswith((".pt", ".bin"))}
    assert json.loads((folder / "config.json").read_text())["auto_map"].keys() == {"AutoConfig", "AutoModel"}
    card = (folder / "README.md").read_text()
    assert "0.8125" in card
    assert "user/student" in card
    assert "custom_code" in card
    assert Results.read(folder) == Results.read(run)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["student"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_bare_model_becomes_a_folder_that_works_in_a_clean_process(tiny_bert: str, tmp_path: Path) -> None:
    model = make_student(tiny_bert)[0].auto_model.train()
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    folder = export_student(model, tmp_path / "student", tokenizer=tokenizer)
    assert model.training  # as it was
    assert not (folder / "modules.json").exists()
    assert "not evaluated" in (folder / "README.md").read_text()
    loaded = load_student(folder)
    assert torch.equal(loaded.model.embeddings.word_embeddings.weight, model.embeddings.word_embeddings.weight)
    with pytest.raises(ValueError, match="A bare model is exported with its tokenizer"):
        export_student(model, tmp_path / "other")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_other_weights_or_code_are_found_out(run: Path, tmp_path: Path) -> None:
    """The clean process runs the folder's own code and weights, not the library's."""
    model = load_student(run).model
    folder = export_student(run, tmp_path / "student", check=False)
    code = folder / "modeling_deltanet.py"
    text = code.read_text()
    assert "return self.dropout(self.LayerNorm(embeddings))" in text
    code.write_text(text.replace("self.LayerNorm(embeddings))", "self.LayerNorm(embeddings) * 1.0001)"))
    expected = expected_outputs(model, model.tokenizer)
    with pytest.raises(ValueError, match="AutoModel differs by up to"):
        check_in_clean_process(folder, export._TEXTS, expected)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_code_that_needs_the_library_is_found_out(run: Path, tmp_path: Path) -> None:
    folder = export_student(run, tmp_path / "student", check=False)
    with (folder / "ops_ridge.py").open("a") as file:
        file.write("\nfrom hf_distill.losses import cosine_loss\n")
    with pytest.raises(ValueError, match="does not load where hf_distill is not installed") as error:
        check_in_clean_process(folder, ["a"], {"AutoModel": torch.zeros(1)})
    assert "hf_distill" in str(error.value).split("\n", 1)[1]
    assert str(tmp_path) not in str(error.value)


def test_a_folder_without_results_gets_a_card_without_numbers(tiny_sentence_transformer: str, tmp_path: Path) -> None:
    folder = export_student(tiny_sentence_transformer, tmp_path / "student", check=False, repo_id="user/student")
    card = (folder / "README.md").read_text()
    assert "This student was not evaluated." in card
    assert "model-index" not in card
    assert 'SentenceTransformer("user/student")' in card  # standard code: nothing to trust
    assert not (folder / "results.json").exists()


def test_nothing_points_to_this_machine(run: Path, tmp_path: Path) -> None:
    config = run / "model" / "tokenizer_config.json"
    assert "is_local" in config.read_text()
    folder = export_student(run, tmp_path / "student", check=False)
    values = json.loads((folder / "tokenizer_config.json").read_text())
    assert not {"is_local", "name_or_path", "local_files_only"} & set(values)
    for name in files_of(folder):
        assert str(run.parent).encode() not in (folder / name).read_bytes()


def test_an_exported_folder_can_be_exported_again(run: Path, tmp_path: Path) -> None:
    once = export_student(run, tmp_path / "once", check=False)
    twice = export_student(once, tmp_path / "twice", check=False)
    assert files_of(once) == files_of(twice)
    for name in files_of(once) - {"README.md"}:
        assert (once / name).read_bytes() == (twice / name).read_bytes(), name


def test_a_checkpoint_is_copied_without_pickles_and_state(run: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(run / "model", tmp_path / "checkpoint-7"))
    for name in ("optimizer.pt", "rng_state.pth", "training_args.bin", "trainer_state.json", "distill_state.json"):
        (checkpoint / name).write_text("{}")
    copied = copy_model(checkpoint, tmp_path / "copied")
    assert files_of(copied) == files_of(run / "model") - {"README.md"}


# ---- bad input ----


def export_fails(source: object, folder: Path, error: type[Exception], match: str) -> None:
    """Nothing but the error: no target, no temporary folder."""
    target = folder / "target" / "student"
    with pytest.raises(error, match=match):
        export_student(source, target, check=False)
    assert not target.exists()
    assert not target.parent.exists() or list(target.parent.iterdir()) == []


def test_no_folder_no_model_no_results(run_copy: Path, tmp_path: Path) -> None:
    export_fails(tmp_path / "nowhere", tmp_path, FileNotFoundError, "There is no folder")
    (run_copy / "results.json").rename(tmp_path / "results.json")
    export_fails(run_copy, tmp_path, FileNotFoundError, r"no results at .*results.json. Train or evaluate")
    shutil.rmtree(run_copy / "model")
    export_fails(run_copy, tmp_path, FileNotFoundError, "holds no model.*evaluate_student.py --run")
    shutil.rmtree(run_copy / "checkpoint-3")
    export_fails(run_copy, tmp_path, FileNotFoundError, "holds no model.*train first")


def test_results_that_were_edited(run_copy: Path, tmp_path: Path) -> None:
    file = run_copy / "results.json"
    file.write_text(file.read_text().replace("0.8125", "0.9125"))
    export_fails(run_copy, tmp_path, ValueError, "edited by hand")


def test_results_of_other_weights(run_copy: Path, tiny_bert: str, tmp_path: Path) -> None:
    make_student(tiny_bert, seed=5).save_pretrained(str(run_copy / "model"))
    export_fails(run_copy, tmp_path, ValueError, "other weights")


def test_a_tokenizer_that_is_not_the_models(run_copy: Path, tmp_path: Path) -> None:
    file = run_copy / "model" / "tokenizer.json"
    original = json.loads(file.read_text())
    words = original["model"]["vocab"]
    larger = {**words, "zebra": len(words)}
    file.write_text(json.dumps({**original, "model": {**original["model"], "vocab": larger}}))
    export_fails(run_copy, tmp_path, ValueError, "not the model's tokenizer: it has ids up to")
    swapped = {**words, "old": words["mill"], "mill": words["old"]}
    file.write_text(json.dumps({**original, "model": {**original["model"], "vocab": swapped}}))
    export_fails(run_copy, tmp_path, ValueError, "other weights|fingerprint")


def test_another_padding_token(tiny_bert: str, tmp_path: Path) -> None:
    model, tokenizer = make_student(tiny_bert)[0].auto_model, AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.pad_token = "[UNK]"
    with pytest.raises(ValueError, match="pads with id 1, the model's config says 0"):
        export_student(model, tmp_path / "student", tokenizer=tokenizer)


def test_a_model_whose_code_cannot_travel(tiny_bert: str, tmp_path: Path) -> None:
    class Scripted(BertModel):  # as one defined in a recipe
        pass

    model, tokenizer = Scripted.from_pretrained(tiny_bert), AutoTokenizer.from_pretrained(tiny_bert)
    with pytest.raises(ValueError, match=r"Scripted cannot be loaded from a folder: its auto_map is \{\}"):
        export_student(model, tmp_path / "student", tokenizer=tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_a_secret_in_the_results(run_copy: Path, tmp_path: Path) -> None:
    results = Results.read(run_copy)
    results.notes = ["data from /ho" + "me/ada/data.jsonl"]
    results.write(run_copy)
    export_fails(run_copy, tmp_path, ValueError, "must not be published")


def test_a_target_that_is_taken(run: Path, tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    assert export_student(run, tmp_path / "student", check=False) == tmp_path / "student"
    with pytest.raises(FileExistsError, match="is not empty"):
        export_student(run, tmp_path / "student", check=False)

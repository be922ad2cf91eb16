"""Pushes of a trainer, by every strategy: each revision loads, is safe and tells its own scores; failures cost nothing."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from hf_distill.evaluation.results import ModelRow, Results
from hf_distill.evaluation.score_cache import model_fingerprint
from hf_distill.hub.export import expected_outputs
from hf_distill.hub.push import stale_files
from hf_distill.hub.scan import scan_folder
from hf_distill.models.deltanet import HfdDeltaNetModel
from hf_distill.teachers.live import LiveTeacher
from hf_distill.trainers import hub_mixin

STRATEGIES = ("end", "every_save", "checkpoint", "all_checkpoints")
SAVES = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}


@dataclass
class FakeHub:
    """Keeps every revision of one repository as a folder."""

    root: Path
    private: bool | None = None
    titles: list[str] = field(default_factory=list)
    branches: list[str | None] = field(default_factory=list)
    fails: int = 0
    threads: set[str] = field(default_factory=set)

    def open_repo(self, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
        self.private = private
        return f"user/{repo_id.rpartition('/')[2]}"

    def upload(self, folder: Path, repo_id: str, *, revision=None, commit_message="", token=None) -> str:
        self.threads.add(threading.current_thread().name)
        if self.fails:
            self.fails -= 1
            raise ConnectionError(f"{repo_id}: the Hub answered 500")
        new = self.root / str(len(self.titles))
        if self.titles:
            shutil.copytree(self.revision(-1), new)
            there = [path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file()]
            pushed = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
            for name in stale_files(there, pushed):
                (new / name).unlink()
        shutil.copytree(folder, new, dirs_exist_ok=True)
        self.titles.append(commit_message)
        self.branches.append(revision)
        return f"commit {len(self.titles)}"

    def revision(self, index: int) -> Path:
        return self.root / str(range(len(self.titles))[index])

    def files(self, index: int) -> set[str]:
        folder = self.revision(index)
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


class FirstWeight(SentenceEvaluator):
    """A validation score that tells which weights it was computed from."""

    primary_metric = "valid_score"

    def __call__(self, model, output_path=None, epoch=-1, steps=-1) -> dict[str, float]:
        return {"valid_score": score_of(model)}


def score_of(model: SentenceTransformer) -> float:
    return float(sum(parameter.detach().double().abs().mean() for parameter in model.parameters()))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    fake.root.mkdir()
    monkeypatch.setattr(hub_mixin, "open_repo", fake.open_repo)
    monkeypatch.setattr(hub_mixin, "upload", fake.upload)
    return fake


@pytest.fixture
def deltanet(live: LiveTeacher, tmp_path: Path) -> SentenceTransformer:
    """A DeltaNet student, whose code must travel."""
    torch.manual_seed(3)
    encoder = HfdDeltaNetModel.from_teacher(live.encoder)
    for parameter in encoder.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    folder = tmp_path / "deltanet"
    encoder.save_pretrained(folder)
    live.model.tokenizer.save_pretrained(folder)
    modules = [Transformer(str(folder), max_seq_length=64), Pooling(32, pooling_mode="mean"), Normalize()]
    return SentenceTransformer(modules=modules, device="cpu")


@pytest.fixture
def make(make_trainer: Callable[..., Any]) -> Callable[..., Any]:
    """A trainer that pushes."""

    def build(**fields: Any) -> Any:
        return make_trainer(**{"push_to_hub": True, "hub_model_id": "user/student", **SAVES, **fields})

    return build


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


# ---- what is pushed during training ----


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_revision_is_complete_safe_and_of_its_step(make, hub, deltanet, tmp_path, strategy):
    evaluation = {"eval_strategy": "steps", "eval_steps": 4, "evaluator": FirstWeight()}
    trainer = make(student=deltanet, hub_strategy=strategy, hub_always_push=True, **evaluation)
    trainer.train()
    steps = [] if strategy == "end" else [2, 4]
    assert hub.titles == [f"Training in progress, step {step}" for step in steps]
    for index, step in enumerate(steps):
        folder, checkpoint = hub.revision(index), tmp_path / "run" / f"checkpoint-{step}"
        scan_folder(folder)
        found = hub.files(index)
        assert not {path for path in found if path.endswith((".pt", ".pth", ".bin", ".pkl"))}
        assert {"modeling_deltanet.py", "modules.json", "tokenizer.json", "training_args.json", "README.md"} <= found
        assert all(torch.equal(value, weights(checkpoint)[name]) for name, value in weights(folder).items())
        card = (folder / "README.md").read_text()
        assert f"step {step}," in card
        assert "Training in progress" in card
        assert "custom_code" in card
        assert "model-index" not in card
        assert ("eval_valid_score" in card) == (step == 4)  # there was no evaluation at step 2
        assert "trainer_state.json" not in found
        inner = {"checkpoint": "last-checkpoint", "all_checkpoints": f"checkpoint-{step}"}.get(strategy)
        assert {Path(path).parts[0] for path in found if "checkpoint" in path} == (
            set()
            if inner is None
            else {inner}
            if strategy == "checkpoint"
            else {f"checkpoint-{s}" for s in steps[: index + 1]}
        )
        if inner:
            assert {f"{inner}/{name}" for name in ("optimizer.pt.safetensors", "trainer_state.json")} <= found
    assert trainer.push_in_progress is None or trainer.push_in_progress.jobs == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_revision_from_the_middle_works_without_the_library(make, hub, deltanet, tmp_path):
    from hf_distill.hub import export
    from hf_distill.hub.clean_process import check_in_clean_process

    make(student=deltanet, hub_strategy="every_save", max_steps=3).train()
    model = SentenceTransformer(str(tmp_path / "run" / "checkpoint-2"), device="cpu", trust_remote_code=True)
    check_in_clean_process(hub.revision(0), export._TEXTS, expected_outputs(model, model.tokenizer))


def test_a_checkpoint_from_the_hub_resumes_exactly(make, hub, tmp_path):
    fields = {
        "hub_strategy": "all_checkpoints",
        "hub_always_push": True,
        "max_steps": 6,
        "save_steps": 3,
        "warmup_steps": 2,
    }
    straight = make(**fields)
    straight.train()
    pushed = hub.revision(0)
    shutil.rmtree(tmp_path / "run")
    checkpoint = Path(shutil.copytree(pushed / "checkpoint-3", tmp_path / "elsewhere" / "checkpoint-3"))
    assert not list(checkpoint.glob("*.pt"))
    torch.manual_seed(99)
    resumed = make(**{**fields, "push_to_hub": False})
    resumed.train(resume_from_checkpoint=str(checkpoint))

    def losses(trainer) -> list[tuple]:
        return [(e["loss"], e["learning_rate"], e["grad_norm"]) for e in trainer.state.log_history if "loss" in e]

    assert losses(resumed) == losses(straight)
    assert len(losses(resumed)) == 6
    for (name, value), other in zip(resumed.model.named_parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(value, other), name


def test_a_failed_push_does_not_stop_the_training(make, hub, tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(hub_mixin.logger, "warning", warnings.append)
    hub.fails = 1
    trainer = make(hub_strategy="every_save", hub_always_push=True)
    trainer.train()
    assert trainer.state.global_step == 4
    assert hub.titles == ["Training in progress, step 4"]
    assert [text for text in warnings if "A push failed: user/student: the Hub answered 500" in text]
    assert {"checkpoint-2", "checkpoint-4"} <= {path.name for path in (tmp_path / "run").iterdir()}


def test_a_secret_is_not_pushed_and_does_not_stop_the_training(make, hub, monkeypatch):
    def refuse(folder, allowed=()):
        raise ValueError("README.md: an access token")

    warnings = []
    monkeypatch.setattr(hub_mixin, "scan_folder", refuse)
    monkeypatch.setattr(hub_mixin.logger, "warning", warnings.append)
    trainer = make(hub_strategy="every_save")
    trainer.train()
    assert trainer.state.global_step == 4
    assert hub.titles == []
    assert "Step 2 was not pushed: README.md: an access token" in warnings


def test_branch_and_visibility(make, hub):
    trainer = make(hub_strategy="every_save", hub_revision="v1", hub_private_repo=True)
    assert hub.private is True
    trainer.train()
    assert set(hub.branches) == {"v1"}
    assert 'revision="v1"' in (hub.revision(0) / "README.md").read_text()
    assert "MainThread" not in hub.threads  # in the background


# ---- the finished student ----


def local(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_results(trainer, folder: Path, **fields: Any) -> None:
    row = ModelRow(
        "student", "tiny", metrics={"test": {"stsb_spearman": 0.7654}}, fingerprint=model_fingerprint(trainer.model)
    )
    Results("tiny-run", [row], **fields).write(folder)


def test_the_finished_student_with_its_results(make, hub, tmp_path):
    trainer = make(hub_strategy="every_save")
    trainer.train()
    write_results(trainer, tmp_path / "run")
    (tmp_path / "run" / "teacher_cache").mkdir()
    (tmp_path / "run" / "teacher_cache" / "shard.bin").write_bytes(bytes(4))
    before = local(tmp_path / "run")
    assert trainer.push_to_hub(check=False).startswith("commit")
    assert local(tmp_path / "run") == before
    assert hub.titles[-1] == "End of training"
    found, card = hub.files(-1), (hub.revision(-1) / "README.md").read_text()
    assert {"results.json", ".eval_results/STSBenchmark.yaml", "training_args.json"} <= found
    assert "0.7654" in card
    assert "Training in progress" not in card
    assert not {path for path in found if "cache" in path or "checkpoint" in path}
    assert json.loads((hub.revision(-1) / "training_args.json").read_text())["max_steps"] == 4


def test_results_of_other_weights_are_not_published(make, hub, tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(hub_mixin.logger, "warning", warnings.append)
    trainer = make(evaluator=FirstWeight())
    write_results(trainer, tmp_path / "run")  # of the untrained student
    trainer.train()
    trainer.push_to_hub(check=False)
    card = (hub.revision(-1) / "README.md").read_text()
    assert "0.7654" not in card
    assert "results.json" not in hub.files(-1)
    assert any("is of other weights" in str(text) for text in warnings)
    assert f"| eval_valid_score | {score_of(trainer.model):.4f} |" in card  # evaluated for the card


def test_edited_results_stop_the_push(make, hub, tmp_path):
    trainer = make()
    write_results(trainer, tmp_path / "run")
    file = tmp_path / "run" / "results.json"
    file.write_text(file.read_text().replace("0.7654", "0.9654"))
    with pytest.raises(ValueError, match="edited by hand"):
        trainer.push_to_hub(check=False)
    assert hub.titles == []


def test_a_failed_final_push_can_be_repeated(make, hub, tmp_path):
    trainer = make()
    hub.fails = 1
    with pytest.raises(ConnectionError, match="answered 500"):
        trainer.push_to_hub(check=False)
    trainer.push_to_hub(check=False, blocking=False).result()
    assert hub.titles == ["End of training"]
    assert "These weights were not evaluated" in (hub.revision(-1) / "README.md").read_text()


def test_the_card_is_of_the_weights_beside_it_or_refused(make, hub, tmp_path):
    folder = tmp_path / "run"
    trainer = make(push_to_hub=False)
    with pytest.raises(ValueError, match=r"no card without numbers.*evaluate_student.py"):
        trainer.create_model_card()
    trainer = make(push_to_hub=False, evaluator=FirstWeight())
    with pytest.raises(FileNotFoundError, match=r"Call save_model\(\) first"):
        trainer.create_model_card()
    trainer.save_model()
    trainer.create_model_card(license="apache-2.0", tags="mine")
    card = (folder / "README.md").read_text()
    assert f"| eval_valid_score | {score_of(trainer.model):.4f} |" in card
    assert "license: apache-2.0" in card
    trainer.train()
    with pytest.raises(ValueError, match="has other weights than the trainer's"):
        trainer.create_model_card()
    trainer.save_model()
    write_results(trainer, folder)
    trainer.create_model_card()
    assert "0.7654" in (folder / "README.md").read_text()


# ---- arguments ----


def test_arguments_of_the_hub(config, tmp_path):
    for strategy in STRATEGIES:
        assert config(push_to_hub=True, hub_strategy=strategy, save_strategy="steps").hub_strategy == strategy
    assert config().trackio_static_space_id is False
    for fields, message in (
        ({"hub_model_id": "user/na me"}, "is no id such as user/name"),
        ({"push_to_hub": True, "hub_strategy": "every_save"}, "save_strategy is 'no'"),
        ({"hub_token": "secret"}, "hf auth login"),
    ):
        with pytest.raises(ValueError, match=message):
            config(**fields)
    args = config(resume_from_checkpoint="/ho" + "me/ada/run/checkpoint-3")
    args.save_json(tmp_path)
    assert "/ada/" not in (tmp_path / "training_args.json").read_text()

"""Hub manners of every trainer: each pushed revision loads, holds no pickle, and says what its own weights score.

transformers pushes the whole `output_dir`; here a staged folder with only what is meant to be public is pushed, in one
commit, so nothing of the local run (caches, controls, logs with host names) can leak and nothing local changes.
"""

from __future__ import annotations

import shutil
import tempfile
from concurrent.futures import Future
from pathlib import Path

import torch.distributed as dist
from accelerate.utils import broadcast_object_list
from huggingface_hub import CommitInfo, HfApi
from sentence_transformers import SentenceTransformer
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging
from transformers.utils.hub import PushInProgress

from hf_distill.evaluation.results import RESULTS_FILE, Results
from hf_distill.hub.export import copy_model, export_student, load_student
from hf_distill.hub.push import open_repo, upload
from hf_distill.hub.scan import scan_folder
from hf_distill.hub.short_card import write_short_card
from hf_distill.teachers.fingerprint import sha256_of_weights
from hf_distill.trainers.distill_args import DistillArguments
from hf_distill.trainers.distributed import world_size
from hf_distill.trainers.state_files import write_state

logger = logging.get_logger(__name__)

_WITH_STATE = (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)
_LAST = "last-checkpoint"
_NO_METRICS = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "eval_model_preparation_time")


class HubMixin:
    """Put before a `transformers.Trainer` class.

    What is pushed, by `hub_strategy`:

    - `"end"`: nothing before `push_to_hub()`.
    - `"every_save"`: at every save the model as of that step, with its code, its tokenizer, `training_args.json` and a
      short card that shows the validation metrics of this step.
    - `"checkpoint"`: the same, and in `last-checkpoint/` what is needed to resume exactly: heads, and the states of
      optimiser, schedule and random generators as safetensors and JSON. `hf download ID --include "last-checkpoint/*"
      --local-dir FOLDER` gets it back for `train(resume_from_checkpoint="FOLDER/last-checkpoint")`.
    - `"all_checkpoints"`: the same in `checkpoint-<step>/`, one for every save.

    `push_to_hub()` replaces the model and its short card by the exported student with its full card, if
    `output_dir/results.json` is of the weights in memory, and else by one with freshly evaluated validation metrics.
    A push that fails is reported and costs nothing local; the next one, or `recipes/push_student.py`, makes up for it.
    """

    args: DistillArguments
    hub_model_id: str | None
    push_in_progress: PushInProgress | None = None

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Creates or finds the repository, before any step.

        Args:
            token: Another token than the one that is logged in.
            private: Whether it must be private; the arguments' `hub_private_repo` by default.

        Raises:
            PermissionError: If the token may not write there.
            ValueError: If the id is malformed, or the repository is public and should not be.
        """
        if not self.is_world_process_zero():
            return
        name = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        private = self.args.hub_private_repo if private is None else private
        self.hub_model_id = open_repo(name, private=private, token=token)

    # ---- during training ----
    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Pushes the model of a checkpoint in the background; what goes wrong is logged and training goes on."""
        strategy = HubStrategy(self.args.hub_strategy)
        if strategy in _WITH_STATE and world_size() > 1:
            dist.barrier()  # every process has written its random state
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        running = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if running and not self.args.hub_always_push:
            return
        self._report_pushes()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        staging = tempfile.TemporaryDirectory(prefix="hf-distill-push-")
        try:
            self._stage(Path(checkpoint_folder), Path(staging.name), strategy)
        except (OSError, ValueError) as error:
            staging.cleanup()
            logger.warning(f"Step {self.state.global_step} was not pushed: {error}")
            return
        self._start_push(staging, Path(staging.name), f"Training in progress, step {self.state.global_step}")

    def _stage(self, checkpoint: Path, folder: Path, strategy: HubStrategy) -> None:
        """Lays out a mid-training revision in an empty folder.

        Raises:
            ValueError: If it would hold a secret.
        """
        step = self.state.global_step
        copy_model(checkpoint, folder)
        if strategy in _WITH_STATE:
            inner = copy_model(checkpoint, folder / (_LAST if strategy == HubStrategy.CHECKPOINT else checkpoint.name))
            for path in checkpoint.glob("distill_*"):
                shutil.copy(path, inner / path.name)
            write_state(checkpoint, inner)
        status = (
            f"Training in progress: these are the weights of step {step}, not the finished student. They were not "
            "evaluated on any test set."
        )
        write_short_card(
            folder,
            status,
            metrics=self._logged_metrics(step),
            repo_id=self.hub_model_id,
            revision=self.args.hub_revision,
        )
        scan_folder(folder, allowed=[self.hub_model_id.partition("/")[0]])

    def _start_push(
        self, staging: tempfile.TemporaryDirectory, folder: Path, message: str, **options: str | None
    ) -> Future[CommitInfo]:
        """Uploads a staged folder in the background, after the pushes before it; the folder goes when it is done."""
        options = {"revision": self.args.hub_revision, **options}
        job = _uploads.run_as_future(upload, folder, self.hub_model_id, commit_message=message, **options)
        job.add_done_callback(lambda _: staging.cleanup())
        running = [] if self.push_in_progress is None else self.push_in_progress.jobs
        self.push_in_progress = PushInProgress([*running, job])
        return job

    def _logged_metrics(self, step: int) -> dict[str, float]:
        """The validation metrics that were logged at a step."""
        entries = [entry for entry in self.state.log_history if entry.get("step") == step]
        return _shown({key: value for entry in entries for key, value in entry.items()})

    def _finish_current_push(self) -> None:
        """Waits for the pushes that are under way, and says which failed."""
        super()._finish_current_push()
        self._report_pushes()

    def _report_pushes(self) -> None:
        """Logs why finished pushes failed, once, and forgets them."""
        jobs = [] if self.push_in_progress is None else self.push_in_progress.jobs
        for job in [job for job in jobs if job.done()]:
            jobs.remove(job)
            if job.exception() is not None:
                logger.warning(f"A push failed: {job.exception()}")

    # ---- the finished student ----
    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        check: bool = True,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """Exports the student that is in memory, checks it in a clean process, and publishes it in one commit.

        Every process has to call it.

        Args:
            commit_message: Title of the commit.
            blocking: Wait for the upload.
            token: Another token than the one that is logged in.
            revision: Branch to commit to; the arguments' `hub_revision` by default.
            private: Whether a new repository is private; the arguments' `hub_private_repo` by default.
            check: Load the exported folder where hf_distill cannot be imported before it is pushed.

        Returns:
            The commit, or its future; `None` in all processes but the first.

        Raises:
            ValueError: If the student would not load, or its folder holds a secret. Nothing is published then.
            PermissionError: If the token may not write there.
            ConnectionError: If the Hub fails; the same call can be repeated.
        """
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        results = self._matching_results()
        metrics = None if results is not None else self._fresh_metrics()
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        revision = revision or self.args.hub_revision
        output, staging = Path(self.args.output_dir), tempfile.TemporaryDirectory(prefix="hf-distill-push-")
        try:
            folder = export_student(
                self.model,
                Path(staging.name) / "student",
                results=results,
                check=check,
                tokenizer=self.processing_class,
                figures=sorted(output.glob("*.png")) if results is not None else (),
                repo_id=self.hub_model_id,
                revision=revision,
            )
            if results is None:
                status = "These weights were not evaluated on any test set."
                write_short_card(folder, status, metrics=metrics, repo_id=self.hub_model_id, revision=revision)
            self.args.save_json(folder)
            scan_folder(folder, allowed=[self.hub_model_id.partition("/")[0]])
        except BaseException:
            staging.cleanup()
            raise
        job = self._start_push(staging, folder, commit_message or "End of training", token=token, revision=revision)
        if not blocking:
            return job
        self.push_in_progress.jobs.remove(job)  # its error is raised here, not logged later
        return job.result()

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
    ) -> None:
        """Writes `README.md` beside the model that `save_model()` wrote into `output_dir`.

        With a `results.json` of these very weights it is the full card; else the weights are evaluated now, on
        validation, and a short card says so. Every process has to call it.

        Args:
            language: For a short card: the language's code.
            license: For a short card: the licence's id.
            tags: For a short card: further tags.
            model_name: For a short card: the model's id on the Hub, if it is not the arguments'.

        Raises:
            FileNotFoundError: If there is no model in `output_dir`.
            ValueError: If its weights are not those in memory, or there is nothing to evaluate them with.
        """
        folder, repo_id = Path(self.args.output_dir), model_name or self.hub_model_id or self.args.hub_model_id
        results = self._matching_results()
        metrics = None if results is not None else self._fresh_metrics()
        if metrics is None and results is None:
            raise ValueError(
                f"There is no card without numbers: {folder} has no {RESULTS_FILE} of these weights, and the trainer has no "
                f"evaluator. Evaluate the run (recipes/evaluate_student.py --run {folder}) or give it an evaluator."
            )
        if not self.is_world_process_zero():
            return
        if not any((folder / name).is_file() for name in ("modules.json", "config.json")):
            raise FileNotFoundError(f"There is no model in {folder} to write a card for. Call save_model() first.")
        if sha256_of_weights(load_student(folder).model) != sha256_of_weights(self.model):
            raise ValueError(f"The model in {folder} has other weights than the trainer's. Call save_model() first.")
        if results is not None:
            from hf_distill.hub.card import write_card

            write_card(folder, results, repo_id=repo_id)
            return
        status = "These weights were not evaluated on any test set."
        tags = [tags] if isinstance(tags, str) else tags or []
        write_short_card(
            folder, status, metrics=metrics, repo_id=repo_id, tags=tags, license=license, language=language
        )

    def _matching_results(self) -> Results | None:
        """The results of the run if they are of the weights in memory; all processes decide alike."""
        results = None
        file = Path(self.args.output_dir) / RESULTS_FILE
        if self.is_world_process_zero() and file.is_file() and isinstance(self.model, SentenceTransformer):
            from hf_distill.evaluation.score_cache import model_fingerprint

            results = Results.read(file)
            student = results.row("student")
            if student is None or student.fingerprint != model_fingerprint(self.model):
                logger.warning(f"{file} is of other weights than those in memory and is not published.")
                results = None
        return broadcast_object_list([results])[0] if world_size() > 1 else results

    def _fresh_metrics(self) -> dict[str, float] | None:
        """The validation metrics of the weights in memory, evaluated now; `None` without anything to evaluate with."""
        if self.eval_dataset is None and getattr(self, "evaluator", None) is None:
            return None
        return _shown(self.evaluate())


_uploads = HfApi(library_name="hf_distill")
"""Runs the uploads one after the other, in a thread of its own."""


def _shown(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics of a log that belong on a card."""
    return {
        key: value
        for key, value in metrics.items()
        if key.startswith("eval_") and key not in _NO_METRICS and isinstance(value, (int, float))
    }


__all__ = ["HubMixin"]

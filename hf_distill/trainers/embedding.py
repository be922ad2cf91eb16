"""Distils a sentence encoder from a teacher's embeddings (and hidden states): `EmbeddingDistillTrainer`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_distill.data.collators import DistillCollator, column_lengths, text_columns
from hf_distill.data.sampling import LengthBucketBatchSampler
from hf_distill.data.streams import RowStream
from hf_distill.evaluation.splits import refuse_test_split
from hf_distill.losses.hidden import pca_projection
from hf_distill.teachers.cached import TeacherCache
from hf_distill.teachers.live import LiveTeacher
from hf_distill.trainers.attention import attention_kernel
from hf_distill.trainers.embedding_config import EmbeddingDistillConfig
from hf_distill.trainers.objective import DistillObjective, student_encoder
from hf_distill.trainers.objective_mixin import ObjectiveTrainerMixin, distill_callbacks
from hf_distill.trainers.run_checkpoints import require_same_student
from hf_distill.trainers.students import has_position_table
from hf_distill.trainers.teacher_source import TeacherSource, student_tokenizer, training_length
from hf_distill.trainers.training_data import TrainingData, align_padding

_PCA_ROWS = 4096
"""Texts whose teacher vectors start a PCA head."""
_PCA_TOKENS = 65_536
"""Tokens whose hidden states start PCA heads, about: those of all these texts would fill gigabytes."""
_UNTAUGHT_LENGTH = 512
"""Longest training sequence of a student that no table of positions limits, where no teacher does either."""


class EmbeddingDistillTrainer(ObjectiveTrainerMixin, SentenceTransformerTrainer):
    """Trains a student encoder against a cached or live teacher, all loss terms in one student forward.

    Args:
        model: The student.
        args: Which terms, with which weights, and how to train.
        train_dataset: Rows with `text`, or `anchor` and `positive`: strings, or ids as `<column>_input_ids`; with a
            cache optionally `<column>_row`, the row of each text in it (looked up by the text otherwise). Or ids under
            any name, `args.ids_column`, with `row` or `text` for a cache; or vectors in `args.teacher_column`.
        eval_dataset: The same, for a validation loss.
        evaluator: Validation metrics, run every `eval_steps`.
        teacher: A `TeacherCache` (embeddings by row), a `LiveTeacher` (also hidden states), or `None` when no term
            compares with a teacher, or the data set has a teacher column.
        callbacks: Further callbacks.
        optimizers: An optimiser and scheduler instead of the arguments'.

    Raises:
        ValueError: Before any step, if data, teacher and terms do not fit together, or an evaluator reads a test split;
            the message names the fix.

    Example:
        >>> trainer = EmbeddingDistillTrainer(
        ...     student, EmbeddingDistillConfig("run", max_steps=500), data, teacher=cache
        ... )
        >>> trainer.train()
        >>> trainer.save_model("student")
    """

    training_args_class = EmbeddingDistillConfig
    _tag_names = ("hf_distill", "knowledge-distillation")
    _name = "Embedding distillation"
    _paper = {
        "title": "Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation",
        "id": "2004.09813",
    }

    def __init__(
        self,
        model: SentenceTransformer,
        args: EmbeddingDistillConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | None = None,
        evaluator: SentenceEvaluator | list[SentenceEvaluator] | None = None,
        teacher: TeacherCache | LiveTeacher | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, Any] = (None, None),
    ) -> None:
        args = EmbeddingDistillConfig(output_dir="student") if args is None else args
        if train_dataset is None:
            raise ValueError("train_dataset is missing: give a data set with `text`, or `anchor` and `positive`.")
        refuse_test_split(evaluator)
        self.source = TeacherSource(teacher, model, args)
        self.tokenizer_of_student = student_tokenizer(model)
        self.max_length = _usable_length(training_length(model, args), model, args, self.source)
        encoder = student_encoder(model)
        self.flat = encoder is None
        embeddings = model[0].embedding if self.flat else encoder.get_input_embeddings()
        align_padding(embeddings, self.tokenizer_of_student)
        collator = DistillCollator(
            self.tokenizer_of_student,
            self.max_length,
            too_long=args.too_long,
            vocab_size=embeddings.num_embeddings,
            teacher=self.source.cache,
            hidden_layers=[layer + 1 for layer in self.source.hidden_layers],
            flat=self.flat,
            keep_texts=self.source.needs_texts,
        )
        self.training_data = TrainingData(
            args,
            self.source,
            self.tokenizer_of_student,
            max_length=self.max_length,
            vocab_size=embeddings.num_embeddings,
            flat=self.flat,
        )
        train_dataset = self.training_data.prepare(train_dataset)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=None if eval_dataset is None else self.training_data.prepare(eval_dataset),
            loss=lambda student: self._make_objective(student, args),
            evaluator=evaluator,
            data_collator=collator,
            callbacks=distill_callbacks(args, callbacks),
            optimizers=optimizers,
        )
        self._attach_objective(self.loss, embeddings)
        self._start_heads()
        self.model.model_card_data.add_tags(list(self._tag_names))

    # ---- heads, before any step ----
    def _make_objective(self, student: SentenceTransformer, args: EmbeddingDistillConfig) -> DistillObjective:
        """Objective with the heads that the widths ask for; called after the seed is set."""
        return DistillObjective(
            student,
            args,
            teacher_width=self.source.embedding_width,
            teacher_layers=self.source.hidden_layers,
            teacher_hidden_width=self.source.hidden_width,
        )

    @torch.no_grad()
    def _start_heads(self) -> None:
        """Starts the heads that should start from PCA, fitted on the teacher's answers to the first training texts."""
        embedding, hidden = self.objective.embedding_head, self.objective.hidden_heads
        embedding = embedding if self.args.embedding_projection == "pca" else None
        hidden = hidden if self.args.hidden_projection == "pca" else None
        if embedding is None and hidden is None:
            return
        rows: dict[str | int, list[Tensor]] = {}
        texts = tokens = 0
        for inputs in self._build_dataloader(self.train_dataset, self.args.train_batch_size, "train"):
            inputs = self.source.answer(self._prepare_inputs(inputs), hidden is not None, self.args.device)
            rows.setdefault("embedding", []).append(inputs["teacher_embedding"].float().cpu())
            texts += self.rows_of(inputs)
            if hidden is not None and tokens < _PCA_TOKENS:
                real = inputs["attention_mask"].bool()
                for index, states in inputs["teacher_hidden_states"].items():
                    rows.setdefault(index, []).append(states[real].float().cpu())
                tokens += int(real.sum())
            if (embedding is None or texts >= _PCA_ROWS) and (hidden is None or tokens >= _PCA_TOKENS):
                break
        samples = {name: torch.cat(parts) for name, parts in rows.items()}
        if embedding is not None:
            embedding.set_pca(*pca_projection(samples["embedding"], min(embedding.weight.shape)))  # of the narrower
        for head, layer in zip(hidden or (), self.source.hidden_layers, strict=False):
            head.set_pca(*pca_projection(samples[layer + 1], min(head.weight.shape)))

    # ---- batches ----
    def _build_dataloader(self, dataset: Dataset | IterableDataset, batch_size: int, dataset_kind: str) -> DataLoader:
        """Reads only the columns that the collator uses; of a stream every process reads all rows and keeps its own."""
        if isinstance(dataset, IterableDataset):
            args = self.args
            return DataLoader(
                RowStream(dataset),
                batch_size=batch_size,
                collate_fn=self.data_collator,
                drop_last=args.dataloader_drop_last,
                num_workers=args.dataloader_num_workers,
                pin_memory=args.dataloader_pin_memory,
                persistent_workers=args.dataloader_persistent_workers,
                prefetch_factor=args.dataloader_prefetch_factor,
            )
        self._dataset_kind = dataset_kind
        dataset = dataset.select_columns(self.training_data.needed(dataset.column_names))
        return super()._build_dataloader(dataset, batch_size, dataset_kind)

    def get_batch_sampler(
        self,
        dataset: Dataset,
        batch_size: int,
        drop_last: bool,
        valid_label_columns: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> BatchSampler:
        """Batches of similar length; evaluation goes through the data once, longest texts first."""
        if self._dataset_kind != "train":
            lengths = np.minimum(column_lengths(dataset, text_columns(dataset.column_names)), self.max_length)
            return LengthBucketBatchSampler(lengths, batch_size, shuffle=False)
        return self.length_sampler(dataset, batch_size, self.max_length, drop_last)

    # ---- the loss ----
    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Any]]:
        """One student forward, all terms, their weighted sum.

        Args:
            model: The wrapped objective in training, the student in evaluation.
            inputs: A batch of `DistillCollator`.
            return_outputs: Also return an empty dictionary of outputs.
            num_items_in_batch: Texts of the whole optimiser step, over micro-batches and processes.

        Returns:
            The loss, scaled so that accumulated and distributed gradients add up to those of the whole batch.
        """
        weights = self.args.weights_at(self.state.global_step)
        inputs = self.source.answer(inputs, weights.get("hidden", 0) > 0, self.args.device)
        module = model if model is self.model_wrapped and model is not self.model else self.objective
        with self.accelerator.autocast(), attention_kernel(inputs["input_ids"], self.args.gradient_checkpointing):
            terms = module(inputs, weights)
        loss = terms.pop("loss")
        rows = self.rows_of(inputs)
        self.record_terms(terms, rows)
        loss = self.scale_loss(loss, rows, num_items_in_batch)
        return (loss, {}) if return_outputs else loss

    # ---- saving and resuming ----
    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Saves the bare student and readable arguments; no pickle."""
        folder = Path(self.args.output_dir if output_dir is None else output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        is_checkpoint = folder.name.startswith(PREFIX_CHECKPOINT_DIR)
        self.model.save_pretrained(str(folder), create_model_card=not is_checkpoint)
        self.args.save_json(folder)

    def _load_weights(self, checkpoint: str) -> None:
        """Loads the student's weights.

        Raises:
            ValueError: If the checkpoint holds another student.
        """
        encoder = student_encoder(self.model)
        if encoder is not None:
            require_same_student(checkpoint, encoder.config)
        try:
            SentenceTransformerTrainer._load_from_checkpoint(self, checkpoint)
        except RuntimeError as error:
            raise ValueError(
                f"{checkpoint} holds a student of another configuration than this run's. Resume with the config it was "
                f"written with, or choose another output_dir. ({error})"
            ) from error

    def _load_best_model(self) -> None:
        """Loads the best checkpoint and makes the card show ITS scores, not those of the last evaluation."""
        super()._load_best_model()
        card = self.model.model_card_data
        card.set_best_model_step(self.state.best_global_step)
        logs = [entry for entry in self.state.log_history if entry.get("step") == self.state.best_global_step]
        values = {key.removeprefix("eval_"): value for entry in logs for key, value in entry.items()}
        for evaluator, metrics in card.eval_results_dict.items():
            card.eval_results_dict[evaluator] = {key: values.get(key, value) for key, value in metrics.items()}


def _usable_length(own: int, model: SentenceTransformer, args: EmbeddingDistillConfig, source: TeacherSource) -> int:
    """Longest training sequence that both sides can read.

    A student without a table of positions reads texts far longer than its teacher has an answer to: without
    `max_length` it trains on what the teacher reads.

    Args:
        own: What the student can take, or the argument `max_length`.
        model: The student.
        args: Whether `max_length` was given.
        source: The teacher.

    Returns:
        Tokens.

    Raises:
        ValueError: If a live teacher that reads the student's ids has too few positions for `max_length`.
    """
    live, given = source.live, args.max_length is not None
    if not given and not has_position_table(model):
        cache = None if source.column is not None else source.cache
        reads = live.model.max_seq_length if live is not None else None if cache is None else cache.spec.max_seq_length
        own = min(own, reads or _UNTAUGHT_LENGTH)
    if live is None or source.needs_texts:
        return own
    positions = live.encoder.config.to_dict().get("max_position_embeddings", own)
    if given and own > positions:
        raise ValueError(
            f"max_length={own}, but the live teacher reads the student's token ids and has positions for {positions} "
            "only. Lower max_length, or set hidden_weight=0 and pass a cache of the teacher's embeddings, for which it cut "
            "every text to its own limit."
        )
    return min(own, positions)


__all__ = ["EmbeddingDistillTrainer"]

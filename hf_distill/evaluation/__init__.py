"""Evaluation: similarity, fidelity to the teacher, retrieval, classification, speed and the report.

Import from the modules; each brings only what it needs (mteb and matplotlib are slow to load):

* `encode`: the fast encoder that everything here shares
* `sts`, `fidelity`: evaluators for the training loop
* `splits`: keeps evaluators of a test split out of the training loop
* `corpus`, `tasks`: held-out texts, and mteb tasks made of them; `mteb_runs`: any task of mteb by its name
* `quantized`: STS-B and retrieval with embeddings in int8 or bits
* `lm_harness`: causal students on tasks of lm-eval
* `speed`: size, throughput, latency and memory
* `suite`: all of it on one model, kept in a `score_cache` that runs share
* `checkpoints`: the checkpoints of a run, and the one that becomes its model
* `turkish`, `bitext`: STSb-TR and Turkish to English retrieval; `tokenizer_stats`: what a tokenizer does with text
* `results`, `training_summary`: results.json; `hashed_json`: files that were not edited by hand
* `report`, `html_report`: table, curves and pages of a run; `comparison`: of several; `seeds`: their mean and spread
* `tokenizer_comparison`: students of one teacher that differ in tokenizer and start, as table and figures; `paired`: the
  difference of two models on the same pairs
"""

from __future__ import annotations

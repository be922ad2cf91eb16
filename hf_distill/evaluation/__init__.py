"""Evaluation: similarity, fidelity to the teacher, retrieval, classification, speed and the report.

Import from the modules; each brings only what it needs (mteb and matplotlib are slow to load):

* `encode`: the fast encoder that everything here shares
* `sts`, `fidelity`: evaluators for the training loop
* `corpus`, `tasks`: held-out texts, and mteb tasks made of them
* `speed`: size, throughput and latency
* `suite`: all of it on one model
* `checkpoints`: the checkpoints of a run, and the one that becomes its model
* `results`, `report`: results.json, the table and the curves
"""

from __future__ import annotations

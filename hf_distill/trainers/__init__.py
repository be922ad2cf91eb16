"""Trainers: one file and one config file a regime. Import from the files; this package itself imports nothing heavy."""

from __future__ import annotations

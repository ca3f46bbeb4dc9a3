"""Evaluation: accuracy on clean and attacked inputs, tables, pictures."""

from soatfast.evaluate.accuracy import AccuracyResult, accuracy
from soatfast.evaluate.table import Column, Table, mean_and_spread

__all__ = ["AccuracyResult", "Column", "Table", "accuracy", "mean_and_spread"]

"""The papers' tables and claims beside what a comparison measured."""

from .claims import CLAIMS, UNTESTED, Claim
from .measured import Measured, measured
from .page import PAGE, RECORD, record, write
from .tables import FLAGS, TABLES, Figure, PaperTable

__all__ = [
    "CLAIMS",
    "FLAGS",
    "PAGE",
    "RECORD",
    "TABLES",
    "UNTESTED",
    "Claim",
    "Figure",
    "Measured",
    "PaperTable",
    "measured",
    "record",
    "write",
]

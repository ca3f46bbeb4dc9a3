"""The papers' tables and claims beside what a comparison measured."""

from soatfast.commands.papers.claims import CLAIMS, UNTESTED, Claim
from soatfast.commands.papers.measured import Measured, measured
from soatfast.commands.papers.page import PAGE, RECORD, record, write
from soatfast.commands.papers.tables import FLAGS, TABLES, Figure, PaperTable

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

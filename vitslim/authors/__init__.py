"""Checkpoints that the methods' authors released, brought onto our models tensor by tensor."""

from vitslim.authors.importing import SOURCES, Imported, import_checkpoint
from vitslim.authors.key_mapping import ImportReport

__all__ = ["SOURCES", "ImportReport", "Imported", "import_checkpoint"]

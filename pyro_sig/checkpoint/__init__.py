"""Saving and exact resuming of whatever trains."""

from pyro_sig.checkpoint._files import CheckpointError, CheckpointWarning
from pyro_sig.checkpoint.folder import CheckpointFolder
from pyro_sig.checkpoint.one_file import load, save

__all__ = ["CheckpointError", "CheckpointFolder", "CheckpointWarning", "load", "save"]

"""Saving and exact resuming of whatever trains."""

from pyro_sig.checkpoint.files import CheckpointError, CheckpointWarning
from pyro_sig.checkpoint.folder import CheckpointFolder
from pyro_sig.checkpoint.state import load, save

__all__ = ["CheckpointError", "CheckpointFolder", "CheckpointWarning", "load", "save"]

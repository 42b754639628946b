"""Files of data sets: where they lie, and what they hold once decompressed."""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path


def find(folders: Sequence[Path], name: str, suffixes: Sequence[str]) -> Path | None:
    """Return the first file of that name, with one of the suffixes, in the first folder with it."""
    paths = (folder / f"{name}{suffix}" for folder in folders for suffix in suffixes)
    return next((path for path in paths if path.is_file()), None)


def read_bytes(path: Path, kind: str) -> bytes:
    """Return what a plain, gzip or xz file holds; its content, not its name, tells which it is.

    :raises ValueError: if it is damaged; `kind` says in the message what it should be.
    """
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            return gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise _corrupt(path, kind, "gzip", error) from error
    if data[:6] == b"\xfd7zXZ\x00":
        import lzma  # some builds of Python have none

        try:
            return lzma.decompress(data)
        except (lzma.LZMAError, EOFError) as error:
            raise _corrupt(path, kind, "xz", error) from error
    return data


def _corrupt(path: Path, kind: str, form: str, error: Exception) -> ValueError:
    return ValueError(f"`path` must be {kind}, {path} is corrupt {form}: {error}")

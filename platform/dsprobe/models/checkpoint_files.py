"""The files of a checkpoint's folder: JSON, weights in safetensors and their headers, digests. No model is built."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open

from dsprobe.errors import CheckpointError
from dsprobe.untrusted import parse_json

INDEX: Final = "model.safetensors.index.json"
"""Names the weight files, where there are several."""
SINGLE: Final = "model.safetensors"
"""The weight file, where there is one."""
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,250}\.safetensors")
"""What an index may call a file: one name, in the folder of the index."""

_UNSAFE: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "tokenizer.model",
)

DTYPE_BYTES: Final = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}
"""Bytes of a number, by safetensors' name of its dtype."""


def folder_digest(folder: Path) -> str:
    """SHA-256 over all files of a local folder that loading reads.

    Raises:
        CheckpointError: There are no weights in safetensors.
    """
    files = [folder / name for name in ("config.json", "generation_config.json", *_TOKENIZER_FILES)]
    digest = hashlib.sha256()
    for file in sorted(f for f in [*files, *weight_files(folder)] if f.is_file()):
        digest.update(f"{file.name}:{_file_digest(file)}\n".encode())
    return digest.hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, sorted.

    Raises:
        CheckpointError: There are none, one named in the index is missing, or one cannot be read.
    """
    names = weight_names(folder)
    missing = [name for name in names if not (folder / name).is_file()]
    if not missing:
        return [folder / name for name in names]
    if (folder / INDEX).is_file():
        raise CheckpointError(f"{folder}: the index names missing files: {', '.join(missing)}.")
    pickles = sorted(file.name for pattern in _UNSAFE for file in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder}: only pickled weights ({', '.join(pickles)}), which can run code when opened. "
            "Convert them to safetensors first."
        )
    raise CheckpointError(f"{folder}: no {SINGLE} and no {INDEX}.")


def weight_names(folder: Path) -> list[str]:
    """Names of the weight files that a folder ought to have, by its index where it has one.

    Raises:
        CheckpointError: The index cannot be read.
    """
    index = folder / INDEX
    return _indexed(index) if index.is_file() else [SINGLE]


def _indexed(index: Path) -> list[str]:
    """File names of an index, each in the index's own folder."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()) or not names:
        raise CheckpointError(f"{index}: no `weight_map` from tensors to file names.")
    files = sorted(set(names.values()))
    for name in files:
        if not _FILE_NAME.fullmatch(name):
            raise CheckpointError(f"{index}: `{name[:80]!a}` is no name of a safetensors file in this folder.")
    return files


def stored_dtype(folder: Path) -> str:
    """Name of the dtype that most weight bytes are stored in, e.g. ``"BF16"``."""
    total: Counter[str] = Counter()
    for file in weight_files(folder):
        total += tensor_bytes(file)
    return total.most_common(1)[0][0]


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: The file is missing or not a JSON object.
    """
    if not file.is_file():
        raise CheckpointError(f"{file.parent}: no {file.name}.")
    try:
        content = parse_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not valid JSON ({error}).") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: expected a JSON object.")
    return content


def tensor_bytes(file: Path) -> Counter[str]:
    """Bytes per stored dtype, from the header alone.

    Raises:
        CheckpointError: It is no safetensors file.
    """
    try:
        with safe_open(file, framework="numpy") as tensors:
            header = {key: tensors.get_slice(key) for key in tensors.keys()}  # noqa: SIM118
            sizes: Counter[str] = Counter()
            for entry in header.values():
                count = 1
                for length in entry.get_shape():
                    count *= length
                sizes[entry.get_dtype()] += count * DTYPE_BYTES.get(entry.get_dtype(), 1)
            return sizes
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: damaged or not a safetensors file ({error}).") from None


def tensor_count(file: Path) -> int:
    """Number of tensors, from the header alone."""
    with safe_open(file, framework="numpy") as tensors:
        return len(tensors.keys())


def _file_digest(file: Path) -> str:
    stat = file.stat()
    return _hash_file(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _hash_file(file: Path, _size: int, _mtime_ns: int) -> str:
    """SHA-256 of a file; size and time are part of the key, so a changed file is read again."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

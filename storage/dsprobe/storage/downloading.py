"""Large objects as local files: parts side by side, going on where an earlier copy ended, checked at the end.

While it is copied, ``NAME.partial`` has its final length and ``NAME.parts`` names the parts that are in it, each
written after its part. A killed copy goes on from there; after a restart of the machine it begins anew.

The checksum is the ETag where that is an MD5: of the object, or of the MD5s of its parts (Amazon S3 User Guide,
"Checking object integrity"). Where the store tells no such thing the length is all that is checked.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from dsprobe.errors import StorageError
from dsprobe.storage.objects import ObjectEntry, ObjectStore

_LOG: Final = logging.getLogger(__name__)

PART_BYTES: Final = 16 << 20
"""Bytes of a request; as many times the number of parts side by side are held in memory."""
SIDE_BY_SIDE: Final = 8
_CHUNK_BYTES: Final = 1 << 20
_MD5_ETAG: Final = re.compile(r"([0-9a-f]{32})(?:-(\d{1,5}))?")


def partial_of(target: Path) -> Path:
    """Where an object lies while it is copied."""
    return target.with_name(f"{target.name}.partial")


def reserve(entry: ObjectEntry, target: Path) -> None:
    """Give a file that is to be copied its final length, so that others count it; what is copied already stays.

    Raises:
        OSError: The disk refuses.
    """
    if target.exists():
        return
    journal, header = _journal_of(target), _header(entry)
    if not (journal.is_file() and journal.read_text().startswith(header) and partial_of(target).is_file()):
        partial_of(target).unlink(missing_ok=True)
        journal.write_text(header)
    with partial_of(target).open("ab") as file:
        file.truncate(entry.bytes)


def download(objects: ObjectStore, entry: ObjectEntry, target: Path) -> None:
    """Copy an object to a local file, which has its name only when it is whole, checked and on the disk.

    One process at a time may copy to a target.

    Args:
        objects: The store.
        entry: From `ObjectStore.entries`.
        target: The file; nothing is done where it is there.

    Raises:
        StorageError: The store failed, the object was replaced meanwhile, or it arrived damaged twice.
        OSError: The local disk is full or fails.
    """
    for last in (False, True):
        if target.exists():
            return
        reserve(entry, target)
        _copy_missing(objects, entry, target)
        if _intact(objects, entry, partial_of(target)):
            _finish(target)
            return
        _journal_of(target).unlink()
        if last:
            place = objects.address(entry.name)
            raise StorageError(f"{place} arrived damaged twice: its MD5 is not the one that the store tells.")
        _LOG.warning("%s arrived damaged, or was damaged on this disk; it is copied again", entry.name)


def _copy_missing(objects: ObjectStore, entry: ObjectEntry, target: Path) -> None:
    done = _parts_done(target)
    parts = [part for part in range(-(-entry.bytes // PART_BYTES)) if part not in done]
    with (
        _opened(partial_of(target), os.O_WRONLY) as file,
        _opened(_journal_of(target), os.O_WRONLY | os.O_APPEND) as log,
    ):

        def copy(part: int) -> None:
            start = part * PART_BYTES
            data = objects.read_range(entry, start, min(start + PART_BYTES, entry.bytes))
            _write_at(file, data, start)
            os.write(log, b"%d\n" % part)

        with ThreadPoolExecutor(SIDE_BY_SIDE, "download") as pool:
            try:
                for copied in as_completed([pool.submit(copy, part) for part in parts]):
                    copied.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _write_at(file: int, data: bytes, start: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, start)
        view, start = view[written:], start + written


def _journal_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.parts")


def _header(entry: ObjectEntry) -> str:
    return f"{entry.version} {entry.bytes} {PART_BYTES} {_boot()}\n"


@functools.cache
def _boot() -> str:
    """Which start of this machine it is: parts are not synced one by one, so a power failure may have taken some."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        return ""


def _parts_done(target: Path) -> set[int]:
    """Parts that the journal names on whole lines: a kill may have cut the last one."""
    lines = _journal_of(target).read_text().split("\n")[1:-1]
    return {int(line) for line in lines if line.isdecimal()}


def _finish(target: Path) -> None:
    with _opened(partial_of(target), os.O_RDONLY) as file:
        os.fsync(file)
    partial_of(target).replace(target)
    _journal_of(target).unlink()


def _intact(objects: ObjectStore, entry: ObjectEntry, file: Path) -> bool:
    """Whether a file is what the store says; True where the store says nothing that can be checked."""
    etag = _MD5_ETAG.fullmatch(entry.etag)
    if objects.kind != "s3" or etag is None:
        return True
    expected, count = etag[1], int(etag[2] or 0)
    head = _head(objects, entry)
    if str(head.get("ServerSideEncryption", "")).startswith("aws:kms") or "SSECustomerAlgorithm" in head:
        return True  # then it only looks like an MD5
    if not count:
        return bool(_md5(file, 0, entry.bytes).hexdigest() == expected)
    part = int(_head(objects, entry, PartNumber=1)["ContentLength"])
    if part == 0 or -(-entry.bytes // part) != count:
        return True  # some servers do not tell the size of a part
    starts = range(0, entry.bytes, part)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        pieces = b"".join(pool.map(lambda start: _md5(file, start, min(start + part, entry.bytes)).digest(), starts))
    if hashlib.md5(pieces, usedforsecurity=False).hexdigest() == expected:
        return True
    sizes = {int(_head(objects, entry, PartNumber=number)["ContentLength"]) for number in range(2, count)}
    return not sizes <= {part}  # parts of different sizes: the sum was over other pieces


def _head(objects: ObjectStore, entry: ObjectEntry, **options: Any) -> dict[str, Any]:
    bucket, _, key = objects.path(entry.name).partition("/")
    with objects.named("cannot be read", entry.name):
        answer: dict[str, Any] = objects.fs.call_s3("head_object", Bucket=bucket, Key=key, **options)
    return answer


def _md5(file: Path, start: int, stop: int) -> Any:
    found = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as source:
        source.seek(start)
        while start < stop and (data := source.read(min(_CHUNK_BYTES, stop - start))):
            found.update(data)
            start += len(data)
    return found


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)

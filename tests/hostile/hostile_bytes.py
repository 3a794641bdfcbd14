"""Hostile documents out of bytes, so that Hypothesis, atheris and a file of findings drive the same code."""

from __future__ import annotations

import copy
import json
import math


class Chooser:
    """Choices taken from bytes, front to back; zeros once they are used up."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def number(self, below):
        """A number from 0 to `below` - 1."""
        size = max(1, ((below - 1).bit_length() + 7) // 8)
        part = self.data[self.at : self.at + size]
        self.at += size
        return int.from_bytes(part, "little") % below

    def pick(self, items):
        return items[self.number(len(items))]

    def rest(self):
        found = self.data[self.at :]
        self.at = len(self.data)
        return found


DEEP = json.loads("[" * 400 + "]" * 400)

HOSTILE_VALUES = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31,
    2**63,
    -(2**63) - 1,
    10**30,
    0.5,
    -0.0,
    1e308,
    math.nan,
    math.inf,
    -math.inf,
    "",
    " ",
    "x",
    "0",
    "../../../../etc/passwd",
    "/etc/passwd",
    "..",
    ".",
    "%2e%2e/%2e%2e/x",
    "..\\..\\x",
    "C:\\x",
    "a\0b",
    "x'); ATTACH 'y'; --",
    "\x1b[31mred\x1b[0m",
    "<script>alert(1)</script>",
    "\u202egnp.exe",
    "\ud800",
    "é" * 3,
    "\U0001f600",
    "A" * 100_000,
    "${HOME}",
    "s3://user:password@bucket/x",
    "file:///etc",
    "http://[::1",
    [],
    {},
    [[]],
    {"": {}},
    {"name": 3},
    [None] * 50,
    {"name": "toy", "name2": {"name": []}},
    ["direct", "direct"],
    {"a": {"a": {"a": {"a": {}}}}},
    DEEP,
)


def places(value, path=()):
    """Paths of everything in a document, containers included."""
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from places(item, (*path, index))


def mutated(document, choose, most=3):
    """A document with up to `most` hostile changes."""
    document = copy.deepcopy(document)
    for _ in range(1 + choose.number(most)):
        paths = list(places(document))
        path = choose.pick(paths)
        if not path:
            document = choose.pick(HOSTILE_VALUES) if choose.number(8) == 0 else document
            continue
        node = document
        for part in path[:-1]:
            node = node[part]
        _change(node, path[-1], choose)
    return document


def _change(node, key, choose):
    change = choose.number(5)
    if change == 0:
        del node[key]
    elif change == 1 and isinstance(node, dict):
        node[choose.pick([v for v in HOSTILE_VALUES if isinstance(v, str)])[:2000]] = node.pop(key)
    elif change == 2:
        node[key] = [copy.deepcopy(node[key])]
    elif change == 3 and isinstance(node[key], str):
        node[key] = node[key] + choose.pick(["\0", "/", "/..", "\n", "é", "\x1b[2J", " ", "'", "*"])
    else:
        node[key] = copy.deepcopy(choose.pick(HOSTILE_VALUES))


def as_json(value):
    """JSON bytes, lone surrogates and NaN included."""
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b"[" * 5000


def damaged(data, choose, most=8):
    """Bytes with some of them changed, cut, doubled or swapped."""
    data = bytearray(data)
    for _ in range(1 + choose.number(most)):
        if not data:
            break
        at = choose.number(len(data))
        change = choose.number(6)
        if change == 0:
            data[at] = choose.number(256)
        elif change == 1:
            data[at] ^= 1 << choose.number(8)
        elif change == 2:
            del data[at:]
        elif change == 3:
            del data[at : at + 1 + choose.number(64)]
        elif change == 4:
            data[at:at] = data[at : at + 1 + choose.number(64)]
        else:
            data[at : at + 8] = choose.pick((b"\xff" * 8, b"\x00" * 8, b"\x7f" + b"\xff" * 7, b"\x80" * 8))
    return bytes(data)

"""Reads a checkpoint file from anyone: its sizes are compared with the file's before anything is allocated.

A file is a zip archive: `data.pkl` describes a structure of plain types and tensors, and `data/K` holds the numbers of
one storage. `torch.load(weights_only=True)` runs no code from `data.pkl`, but it believes the sizes in it.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from pg_lightning.checkpoint.storages import Described, check_storages, element_size, rebuild_functions
from pg_lightning.checkpoint.values import Damage, Unchecked

MAX_PICKLE = 64 * 2**20  # bytes of data.pkl; that of a run with 64 ranks of 100 environments has about 3 MiB
MAX_OPERATIONS = 5_000_000
MAX_DIRECTORY = 64 * 2**20  # bytes of the zip directory, which has about 100 per storage
MAX_DEPTH = 64
END_RECORD = b"PK\x05\x06"

# What torch.save writes, in any protocol.
OPERATIONS = {
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "NEWOBJ", "BINPERSID"),
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINSTRING", "SHORT_BINSTRING"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS"),
    *("EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_SET", "ADDITEMS"),
    *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "MEMOIZE"),
}


def read(path: Path, map_location: Unchecked = "cpu") -> Unchecked:
    """The content of a checkpoint: tensors and plain types only.

    Args:
        path: the file.
        map_location: of `torch.load`; "meta" for tensors without values.

    Raises:
        Damage: if the file is not a checkpoint, or its parts disagree about their sizes.
        Exception: any other of `zipfile` or `torch.load`.
    """
    check(path, checksums=True)
    return torch.load(path, map_location=map_location, weights_only=True)


def check(path: Path, checksums: bool = False) -> None:
    """Compares all sizes that a checkpoint file declares with the file, without loading it.

    Args:
        path: the file.
        checksums: also verify the checksums of the content, which reads the whole file; torch does not.

    Raises:
        Damage: naming the part and what is wrong with it.
        OSError: if the file cannot be read.
    """
    if not path.is_file():  # a pipe would block
        raise Damage("the file", "is missing, or not a regular file")
    size = path.stat().st_size
    if not zipfile.is_zipfile(path):
        raise Damage("the file", "is truncated, or not a zip archive as torch.save writes it")
    with path.open("rb") as file:
        _check_directory(file, size)
        with zipfile.ZipFile(file) as archive:
            records = _records(archive, size)
            if checksums and (damaged := archive.testzip()):
                raise Damage(f"damaged at {damaged}:", "it has another checksum")
            described = next((name for name in records if name.endswith("/data.pkl")), "")
            if not described or described.count("/") != 1:
                raise Damage("data.pkl", "is missing")
            if records[described] > MAX_PICKLE:
                raise Damage("data.pkl", f"has {records[described]} bytes, more than {MAX_PICKLE}")
            root = described.removesuffix("data.pkl")
            storages = {name.removeprefix(f"{root}data/"): size for name, size in records.items()}
            check_pickle(archive.read(described), storages)


def check_pickle(content: bytes, storages: Mapping[str, int]) -> None:
    """Checks `data.pkl`: operations, names, depth and the sizes of tensors.

    Args:
        content: of `data.pkl`.
        storages: bytes in the archive by key.

    Raises:
        Damage: naming what no checkpoint has.
    """
    for count, (operation, argument, _) in enumerate(pickletools.genops(content)):
        if operation.name not in OPERATIONS:
            raise Damage("data.pkl", f"uses {operation.name}, which torch.save does not write")
        # Python reserves memory up to the index.
        if operation.name in ("BINPUT", "LONG_BINPUT") and int(argument or 0) > count:
            raise Damage("data.pkl", f"has a memo index of {argument}")
        if count > MAX_OPERATIONS:
            raise Damage("data.pkl", f"has more than {MAX_OPERATIONS} operations")
    found = _Inert(io.BytesIO(content), storages)
    structure = found.load()
    limit = 4 * max(len(content), 1000)
    parts = structure.items() if isinstance(structure, Mapping) else [("", structure)]
    tensors = [(str(name), x) for name, part in parts for x in _tensors(part, limit)]
    check_storages([x for _, x in tensors], storages)
    for name, x in tensors:
        if x.overlaps and name != "state_dict":  # a module copies its weights, but others write into their tensors
            raise Damage(name, "has a tensor whose elements are not all stored, as after Tensor.expand")


def _check_directory(file: io.BufferedReader, size: int) -> None:
    """Refuses a zip directory that would not fit into memory. Another record holds its size if that exceeds 4 GiB."""
    file.seek(max(0, size - 2**16 - 22))
    tail = file.read()
    start = tail.rfind(END_RECORD)
    directory = int.from_bytes(tail[start + 12 : start + 16], "little")
    large = tail.rfind(b"PK\x06\x06", 0, start)
    if large >= 0:
        directory = max(int.from_bytes(tail[large + 40 : large + 48], "little"), directory % 0xFFFFFFFF)
    if directory > MAX_DIRECTORY:
        raise Damage("the zip directory", f"has {directory} bytes, more than {MAX_DIRECTORY}")
    file.seek(0)


def _records(archive: zipfile.ZipFile, size: int) -> dict[str, int]:
    """The size of every part by its name. All are uncompressed, so that together they are no larger than the file."""
    records: dict[str, int] = {}
    for part in archive.infolist():
        if part.compress_type != zipfile.ZIP_STORED or part.compress_size != part.file_size:
            raise Damage(part.filename, "is compressed, which torch.save does not do")
        if part.filename in records:
            raise Damage(part.filename, "is in the file twice")
        records[part.filename] = part.file_size
    if (total := sum(records.values())) > size:
        raise Damage("the zip directory", f"declares {total} bytes, the file has {size}")
    return records


class _Inert(pickle.Unpickler):
    """Reads `data.pkl` without creating tensors; the names in it stand for functions that do nothing."""

    def __init__(self, file: io.BytesIO, storages: Mapping[str, int]) -> None:
        super().__init__(file)
        self._storages = storages

    def find_class(self, module: str, name: str) -> Unchecked:
        path = f"{module}.{name}"
        known = _known(path)
        if known is None:
            raise Damage("data.pkl", f"names {path[:80]}, which is neither a tensor nor a plain type")
        return known

    def persistent_load(self, pid: Unchecked) -> Described:
        match pid:
            case ("storage", str() as kind, str() as key, str(), int() as numel) if not isinstance(numel, bool):
                expected = numel * element_size(kind)
                if self._storages.get(key) != expected:
                    there = self._storages.get(key, "no")
                    raise Damage(f"data/{key}", f"has {there} bytes, data.pkl declares {expected}")
                return Described(key, element_size(kind), numel)
        raise Damage("data.pkl", "names a storage that is none")


def _known(path: str) -> Unchecked:
    """What a name in `data.pkl` stands for here; None if no checkpoint has it."""
    plain: dict[str, Unchecked] = {
        "collections.OrderedDict": OrderedDict,
        "collections.Counter": Counter,
        "torch.Size": tuple,
        "torch.device": _nothing,
        "builtins.set": set,
        "builtins.complex": _nothing,
        "builtins.bytearray": _nothing_of_bytes,
        "_codecs.encode": _nothing,
        **rebuild_functions(),
    }
    plain["__builtin__.set"], plain["__builtin__.bytearray"] = plain["builtins.set"], plain["builtins.bytearray"]
    if path in plain:
        return plain[path]
    module, _, name = path.rpartition(".")
    if module in ("torch", "torch.storage") and (name.endswith("Storage") or _is_dtype(name)):
        return name
    return Opaque if path in _allowed_by_user() else None


def _is_dtype(name: str) -> bool:
    return isinstance(getattr(torch, name, None), torch.dtype)


def _allowed_by_user() -> Iterator[str]:
    """The names that were given to `torch.serialization.add_safe_globals`."""
    for allowed in torch.serialization.get_safe_globals():
        if isinstance(allowed, tuple):
            yield str(allowed[1])
        else:
            yield f"{getattr(allowed, '__module__', '')}.{getattr(allowed, '__qualname__', '')}"


class Opaque(dict[Unchecked, Unchecked]):
    """An object of a class that the user allows `torch.load` to create."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        """Ignores the state."""


def _nothing(*args: object) -> None:
    """Stands for a function whose result needs no check."""


def _nothing_of_bytes(*args: object) -> None:
    """Stands for `bytearray`, which reserves as many bytes as it is told."""
    if any(isinstance(x, int) for x in args):
        raise Damage("data.pkl", "reserves memory")


def _tensors(structure: Unchecked, limit: int) -> Iterator[Described]:
    """The tensors in a structure; refuses one that contains itself, or repeats parts of itself beyond any use."""
    waiting: list[tuple[Unchecked, int]] = [(structure, 0)]
    while waiting:
        x, depth = waiting.pop()
        limit -= 1
        if limit < 0:
            raise Damage("data.pkl", "repeats its parts so often that they do not fit into memory")
        if depth > MAX_DEPTH:
            raise Damage("data.pkl", f"is nested more than {MAX_DEPTH} deep")
        if isinstance(x, Described):
            yield x
        elif isinstance(x, Mapping):
            waiting += [(part, depth + 1) for pair in x.items() for part in pair]
        elif isinstance(x, (list, tuple, set)):
            waiting += [(part, depth + 1) for part in x]

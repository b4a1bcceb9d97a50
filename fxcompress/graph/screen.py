"""Look into a `.pt2` file before torch does.

`torch.export.load` runs code that a file brings along: sample inputs fall back to full unpickling when the
safe loader refuses them, pickled weights, constants and custom objects are unpickled outright, symbolic sizes
are evaluated by sympy, guards are compiled and executed, structure descriptions import modules, and every
node and argument name is pasted into generated source. `screen_pt2` checks each of these and loads nothing
itself. It reads the records with torch's own zip reader, so that what is checked is what will be loaded.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fxcompress.errors import InputError, UnsafeFile
from fxcompress.graph.screen_model import Refused, check_model, check_payloads

_TRUST = "open it only if you know who made it, with trust=True"
_LARGEST_JSON = 1 << 30
_MODEL = re.compile(r"models/(?P<name>[A-Za-z0-9_]+)\.json")
_PLAIN_RECORDS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|\.format_version|\.storage_alignment"
    r"|extra/[A-Za-z0-9_.-]+|data/(weights|constants)/(weight|tensor)_[0-9]+"
)
_CONFIG = re.compile(r"data/(weights|constants)/[A-Za-z0-9_]+_config\.json")
_SAFELY_PICKLED = re.compile(r"data/(sample_inputs|weights|constants)/[A-Za-z0-9_]+\.pt")


def screen_pt2(path: str | Path) -> None:
    """Return when `path` is a `.pt2` file that torch can load without running code from it.

    Raises InputError for a file that is missing, truncated or no `.pt2` archive, and UnsafeFile, naming the
    entry, for one that carries code, pickled objects or anything else that is not plain data.
    """
    path = Path(path)
    _check_container(path)
    try:
        reader = torch._C.PyTorchFileReader(str(path))
        records = list(reader.get_all_records())
        archive_format = reader.get_record("archive_format") if "archive_format" in records else b""
    except RuntimeError as error:
        raise _not_pt2(path, "its index cannot be read") from error
    if archive_format != b"pt2":
        raise _not_pt2(path, "it has no archive_format record that says pt2")
    if not any(_MODEL.fullmatch(record) for record in records):
        raise _not_pt2(path, "it holds no exported model")
    for record in records:
        try:
            _check_record(reader, record)
        except Refused as refusal:
            raise UnsafeFile(f"{path.name}: {record}: {refusal}", hint=_TRUST) from None
        except RuntimeError as error:
            raise _not_pt2(path, f"{record} cannot be read") from error


def _not_pt2(path: Path, reason: str) -> InputError:
    return InputError(
        f"{path.name} is not a .pt2 file, or it is damaged: {reason}",
        hint="write one with torch.export.save(torch.export.export(model, args), path)",
    )


def _check_container(path: Path) -> None:
    """The zip itself: stored entries in one folder, without duplicates, detours or overlaps."""
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            entries, comment = archive.infolist(), archive.comment
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror or error}", hint="check the path"
        ) from error
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise _not_pt2(path, "it is not a zip archive") from error
    names = [entry.filename for entry in entries]
    roots = {name.split("/")[0] for name in names}
    problems = {
        "an entry is compressed or encrypted": any(e.compress_type or e.flag_bits & 1 for e in entries),
        "an entry name occurs twice": len(set(names)) != len(names),
        "an entry name leaves the archive": any(
            ".." in n.split("/") or "\\" in n or n.startswith("/") for n in names
        ),
        "its entries overlap": sum(entry.file_size for entry in entries) > size,
        "something follows the archive": bool(comment),
    }
    for problem, present in problems.items():
        if present:
            raise UnsafeFile(f"{path.name}: {problem}; torch writes no such file", hint=_TRUST)
    if len(roots) != 1 or not all("/" in name for name in names):
        raise _not_pt2(path, "its entries are not in one folder")


def _check_record(reader: Any, record: str) -> None:
    if _PLAIN_RECORDS.fullmatch(record):
        return
    if _MODEL.fullmatch(record):
        check_model(_json(reader, record))
    elif _CONFIG.fullmatch(record):
        check_payloads(_json(reader, record), _sizes(reader, record))
    elif _SAFELY_PICKLED.fullmatch(record):
        _check_pickle(reader.get_record(record))
    else:
        raise Refused(
            "this is not part of an exported program (compiled code, a custom object, an older format)"
        )


def _json(reader: Any, record: str) -> Any:
    if reader.get_record_size(record) > _LARGEST_JSON:
        raise Refused("the description is unreasonably large")
    try:
        return json.loads(reader.get_record(record).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise RuntimeError("not JSON") from error


def _sizes(reader: Any, record: str) -> dict[str, int]:
    """Bytes of every record in the folder of a payload config, by file name."""
    folder = record.rsplit("/", 1)[0] + "/"
    records: Iterator[str] = (r for r in reader.get_all_records() if r.startswith(folder))
    return {r.removeprefix(folder): reader.get_record_size(r) for r in records}


def _check_pickle(data: bytes) -> None:
    """What torch's safe loader refuses, `torch.export.load` would unpickle in full; so it must not refuse."""
    try:
        torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:  # noqa: BLE001  whatever the reason, torch.export.load would unpickle it unsafely
        forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it refers to {forbidden[1]}" if forbidden else "torch's safe loader refuses it"
        raise Refused(f"pickled data that could run code: {what}") from None

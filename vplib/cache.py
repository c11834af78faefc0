"""Trained models on disk: found again by what they were trained from, or trained anew.

A file holds tensors only (safetensors, never pickle), named by a hash of everything that decides
them. It is written beside its place and renamed, so that a reader sees a whole file or none; its
contents are hashed again on reading, so that a damaged or foreign file is trained anew.
"""

import contextlib
import functools
import hashlib
import os
import re
import sys
import types
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from vplib import paths

counts = {"reused": 0, "trained": 0}  # models of this process, for the reader of a notebook
_told: set[str] = set()


def fingerprint(*parts) -> str:
    """A hash of tensors, models, dicts, numbers and texts; equal for equal contents.

    A model counts with its structure, its weights, which of them are frozen, the attributes of
    its modules, and the code of the classes that are not torch's own; what these take from outside
    themselves (globals, variables of an enclosing function) is not seen.

    Args:
        *parts: what to hash, in order.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            flat = part.detach().cpu().contiguous()
            digest.update(f"{flat.dtype} {tuple(flat.shape)}".encode())
            digest.update(flat.flatten().view(torch.uint8).numpy() if flat.numel() else b"")
        elif isinstance(part, nn.Module):
            for name, module in part.named_modules(remove_duplicate=False):
                given = {k: v for k, v in vars(module).items() if k not in _OF_ANY_MODULE}
                digest.update(fingerprint(name, type(module), given).encode())
            values = [*part.named_parameters(), *part.named_buffers()]
            frozen = [name for name, value in values if not value.requires_grad]
            digest.update(fingerprint(dict(values), frozen).encode())
        elif isinstance(part, dict):
            digest.update(fingerprint(*(x for item in part.items() for x in item)).encode())
        elif isinstance(part, type):
            names = [f"{kind.__module__}.{kind.__qualname__}" for kind in part.__mro__]
            digest.update(fingerprint(names, *map(_members, part.__mro__)).encode())
        elif isinstance(part, types.FunctionType):
            wrapped = getattr(part, "__wrapped__", None)
            rest = part.__defaults__, part.__kwdefaults__, wrapped
            digest.update(fingerprint(part.__code__, *rest).encode())
        elif isinstance(part, functools.partial):
            digest.update(fingerprint(part.func, part.args, part.keywords).encode())
        elif isinstance(part, types.CodeType):  # not the text: a notebook's cell has no file
            digest.update(fingerprint(part.co_code, part.co_names, *part.co_consts).encode())
        elif isinstance(part, frozenset):
            digest.update(repr(sorted(map(repr, part))).encode())
        else:
            digest.update(re.sub(" at 0x[0-9A-Fa-f]+", "", repr(part)).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def kept(
    parts: tuple | None, compute: Callable[[], dict[str, Tensor]], num_models: int = 1
) -> dict[str, Tensor]:
    """What `compute` returns: from the disk where equal parts led to it before, else computed now.

    Args:
        parts: everything that decides the result, for `fingerprint`: data, settings, seed, device,
            and the code (a function counts with what it calls); torch's version is added here.
            None computes anew and keeps nothing.
        compute: makes the result, tensors by name; it is called only where there is none.
        num_models: how many models that is, for `counts`.

    Returns:
        The tensors by name, detached and on the CPU, whether computed or read.
    """
    key = None if parts is None else fingerprint(torch.__version__, *parts)
    state = key and read(key)
    counts["reused" if state else "trained"] += num_models
    if not state:
        # A copy, since safetensors refuses tensors that share memory, as tied weights do.
        state = {name: value.detach().cpu().clone() for name, value in compute().items()}
        if key:
            write(key, state)
    return state


def read(key: str) -> dict[str, Tensor] | None:
    """The tensors kept under this key, or None if there are none that are whole.

    Args:
        key: from `fingerprint`.
    """
    path = _path(key)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        return None
    except Exception as error:  # truncated, no safetensors file, unreadable
        _tell("the cached model {} cannot be read ({}): training anew", path, error)
        return None
    if said.get("key") != key or said.get("contents") != fingerprint(_ordered(state)):
        _tell("the cached model {} is damaged or foreign: training anew", path)
        return None
    return state


def write(key: str, state: dict[str, Tensor]) -> None:
    """Keeps tensors under this key; where that is not possible, says so once and goes on.

    Args:
        key: from `fingerprint`.
        state: tensors by name.
    """
    path = _path(key)
    whole = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    said = {"key": key, "contents": fingerprint(_ordered(whole))}
    beside = path.with_name(f".{key[:8]}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "xb") as file:
            file.write(safetensors.torch.save(whole, said))
        os.replace(beside, path)
    except OSError as error:
        _tell(
            "trained models cannot be kept in {} ({}); results are right, but the next run trains "
            "again. Free some space, or set VPLIB_CACHE to a folder that can be written",
            paths.cache_root(),
            error.strerror or error,
        )
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def files() -> list[Path]:
    """The files of the cache, also those that an interrupted run left half-written."""
    return sorted(p for p in (paths.cache_root() / "models").rglob("*") if p.is_file())


def _path(key: str) -> Path:
    return paths.cache_root() / "models" / key[:2] / f"{key}.safetensors"


def _ordered(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(sorted(state.items()))


_OF_ANY_MODULE = set(vars(nn.Module()))


def _members(kind: type) -> dict:
    """What a class that is not torch's own computes with, by name."""
    if kind.__module__.split(".")[0] in ("builtins", "torch"):
        return {}
    return {
        name: repr(value) if isinstance(value, type) else getattr(value, "__func__", value)
        for name, value in vars(kind).items()
        if not name.startswith("__") or callable(value)
    }


def _tell(template: str, *about) -> None:
    """Warns in one line, once for each template, at the line that called into vplib."""
    if template not in _told:
        _told.add(template)
        frame, level = sys._getframe(), 1
        while frame.f_back and frame.f_globals.get("__name__", "").startswith("vplib."):
            frame, level = frame.f_back, level + 1
        warnings.warn(" ".join(template.format(*about).split()), stacklevel=level)

"""Trained models on disk: found again by what they were trained from, or trained anew.

A file holds tensors only (safetensors, never pickle), named by a hash of everything that decides
them. It is written beside its place and renamed, so that a reader sees a whole file or none; its
contents are hashed again on reading, so that a damaged or foreign file is trained anew.
"""

import hashlib
import inspect
import json
import os
import tempfile
import warnings
from pathlib import Path

import platformdirs
import safetensors.torch
import torch
from torch import Tensor, nn

counts = {"reused": 0, "trained": 0}  # models of this process, for the reader of a notebook
_told: set[str] = set()


def root() -> Path:
    """Where trained models are kept: `VPLIB_CACHE`, else the platform's user cache."""
    given = os.environ.get("VPLIB_CACHE")
    return Path(given).expanduser() if given else platformdirs.user_cache_path("vplib")


def fingerprint(*parts) -> str:
    """A hash of tensors, models, dicts, numbers and texts; equal for equal contents.

    A model counts with its structure, its weights, and the source of what is not torch's own.

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
            own = {type(m) for m in part.modules() if not type(m).__module__.startswith("torch.")}
            sources = sorted(f"{kind.__qualname__} {_source(kind)}" for kind in own)
            digest.update(fingerprint(repr(part), *sources, dict(part.state_dict())).encode())
        elif isinstance(part, dict):
            digest.update(fingerprint(*(x for item in part.items() for x in item)).encode())
        else:
            digest.update(repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()


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
        _tell(f"the cached model {path} cannot be read ({error}): training anew")
        return None
    if said.get("key") != key or said.get("contents") != fingerprint(_ordered(state)):
        _tell(f"the cached model {path} is damaged or foreign: training anew")
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
    beside = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem[:8]}.")
        with os.fdopen(handle, "wb") as file:
            file.write(safetensors.torch.save(whole, said))
        os.replace(beside, path)
    except OSError as error:
        _tell(
            f"trained models cannot be kept in {root()} ({error.strerror or error}); results "
            "are right, but the next run trains again. Free some space, or set VPLIB_CACHE"
        )
        if beside is not None and os.path.exists(beside):
            os.unlink(beside)


def files() -> list[Path]:
    """The files of the cache, also those that an interrupted run left half-written."""
    return sorted(p for p in (root() / "models").rglob("*") if p.is_file())


def _path(key: str) -> Path:
    return root() / "models" / key[:2] / f"{key}.safetensors"


def _ordered(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(sorted(state.items()))


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # typed into a shell
        return json.dumps(sorted(vars(kind)))


def _tell(message: str) -> None:
    kind = message.split(" (")[0].split("/")[0]
    if kind not in _told:
        _told.add(kind)
        warnings.warn(message, stacklevel=4)

"""Trained models on disk: found again by what they were trained from, or trained anew.

A file holds tensors only (safetensors, never pickle), named by a hash of everything that decides
them. It is written beside its place and renamed, so that a reader sees a whole file or none; its
contents are hashed again on reading, so that a damaged or foreign file is trained anew.
"""

import contextlib
import dis
import functools
import hashlib
import importlib.util
import os
import sys
import types
import uuid
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from vplib import paths, threads

FOREIGN = "the cached model {} is damaged or foreign: training anew"
counts = {"reused": 0, "trained": 0}  # models of this process, for the reader of a notebook
_told: set[str] = set()


def fingerprint(*parts) -> str:
    """A hash of what values are made of: equal for equal contents, in any process.

    A model counts with its structure, its weights, which of them are frozen, and the attributes
    and hooks of its modules; a function with its code, its defaults, the variables of enclosing
    functions and the globals it reads; an object with its class and what pickle would take of it.
    What is torch's, Python's or another installed package's counts by name.

    Args:
        *parts: what to hash, in order.

    Raises:
        TypeError: a value does not tell what it holds: a lock, a generator, an open file.
    """
    return _digest(parts, {}, 0).hex()


def kept(
    parts: tuple | None,
    compute: Callable[[], dict[str, Tensor]],
    like: dict[str, Tensor],
    num_models: int = 1,
) -> dict[str, Tensor]:
    """What `compute` returns: from the disk where equal parts led to it before, else computed now.

    It is computed on one core, or what is kept would depend on how many there were.

    Args:
        parts: everything that decides the result, for `fingerprint`: data, settings, seed, device,
            and the code (a function counts with what it calls); torch's version is added here.
            None computes anew and keeps nothing, and so does a part that cannot be hashed.
        compute: makes the result, tensors by name; it is called only where there is none.
        like: tensors of the names, shapes and types of the result; what has others is not believed.
        num_models: how many models that is, for `counts`.

    Returns:
        The tensors by name, detached and on the CPU, whether computed or read.
    """
    key = state = None
    if parts is not None:
        try:
            key = fingerprint(torch.__version__, *parts)
        except Exception as error:  # whatever a stranger's value does when it is looked into
            _tell("what is trained here cannot be kept ({}); the next run trains again", error)
    if key and (state := read(key)) and _forms(state) != _forms(like):
        state = _tell(FOREIGN, _path(key))
    counts["reused" if state else "trained"] += num_models
    if not state:
        with threads.one_thread():
            found = compute()
        # A copy, since safetensors refuses tensors that share memory, as tied weights do.
        state = {name: value.detach().cpu().clone() for name, value in found.items()}
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
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise OSError("no regular file")
        with safetensors.safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        return None
    except Exception as error:  # truncated, no safetensors file, unreadable
        _tell("the cached model {} cannot be read ({}): training anew", path, error)
        return None
    if said.get("key") != key or said.get("contents") != fingerprint(dict(sorted(state.items()))):
        return _tell(FOREIGN, path)
    return state


def write(key: str, state: dict[str, Tensor]) -> None:
    """Keeps tensors under this key; where that is not possible, says so once and goes on.

    Args:
        key: from `fingerprint`.
        state: tensors by name.
    """
    path = _path(key)
    whole = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    said = {"key": key, "contents": fingerprint(dict(sorted(whole.items())))}
    beside = path.with_name(f".{key[:8]}.{uuid.uuid4().hex}")
    try:
        paths.cache_root().mkdir(parents=True, exist_ok=True)
        for folder in (path.parent.parent, path.parent):
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                _share(folder, 0o2777)
        with open(beside, "xb") as file:
            file.write(safetensors.torch.save(whole, said))
        _share(beside, 0o666)
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


def _share(new: Path, bits: int) -> None:
    """Gives a new file or folder the group and the mode of the cache's root: who may use that."""
    root = paths.cache_root().stat()
    for set_one in (lambda: os.chown(new, -1, root.st_gid), lambda: new.chmod(root.st_mode & bits)):
        with contextlib.suppress(OSError):  # no member of the group, a file system without modes
            set_one()


def _path(key: str) -> Path:
    return paths.cache_root() / "models" / key[:2] / f"{key}.safetensors"


def _forms(state: dict[str, Tensor]) -> dict:
    return {name: (value.shape, value.dtype) for name, value in state.items()}


_OF_ANY_MODULE = set(vars(nn.Module()))
_WRAPPERS = types.MethodType, staticmethod, classmethod, property, functools.cached_property
_PLAIN = {type(None), type(...), bool, int, float, complex, str, bytes, torch.layout}


def _digest(part, seen: dict, depth: int) -> bytes:
    """The hash of a value: of its kind, and of all that it holds.

    Args:
        part: the value.
        seen: values met before by identity, each with its hash, or its depth while it is open.
        depth: how many values hold this one.
    """
    if type(part) in _PLAIN:
        return hashlib.sha256(
            f"{type(part).__name__} {part!r}".encode(errors="surrogatepass")
        ).digest()
    if id(part) in seen:
        known = seen[id(part)][1]
        return known if isinstance(known, bytes) else _digest(("circle", depth - known), seen, 0)
    seen[id(part)] = part, depth  # the value too, so that its identity stays its own
    kind, inside = _contents(part)
    found = [_digest(value, seen, depth + 1) for value in inside]
    if isinstance(part, (set, frozenset)):  # ordered otherwise in each process
        found.sort()
    digest = hashlib.sha256(f"{kind} {len(found)} ".encode() + b"".join(found))
    if isinstance(part, Tensor) and part.numel():
        digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    seen[id(part)] = part, digest.digest()
    return digest.digest()


def _contents(part) -> tuple[str, Iterable]:
    """The kind of a value, and the values that tell it from others of its kind."""
    kind = f"{type(part).__module__}.{type(part).__qualname__}"
    if isinstance(part, Tensor):
        return f"tensor {part.dtype} {tuple(part.shape)}", ()
    if type(part) is np.ndarray and not part.dtype.hasobject:
        return f"array {part.dtype} {part.shape}", (part.tobytes(),)
    if isinstance(part, nn.Module):
        modules = list(part.named_modules(remove_duplicate=False))
        held = [[v for v in vars(m).items() if v[0] not in _OF_ANY_MODULE] for _, m in modules]
        hooks = [
            list(v.values()) for _, m in modules for k, v in vars(m).items() if k[-5:] == "hooks"
        ]
        values = dict([*part.named_parameters(), *part.named_buffers()])
        frozen = [name for name, value in values.items() if not value.requires_grad]
        return "model", ([(name, type(m)) for name, m in modules], held, hooks, values, frozen)
    if type(part) in (list, tuple, set, frozenset):
        return kind, part
    if type(part) in (dict, types.MappingProxyType):
        return kind, (value for item in part.items() for value in item)
    if isinstance(part, type):
        names = [f"{base.__module__}.{base.__qualname__}" for base in part.__mro__]
        return "class", (names, *map(_members, part.__mro__))
    if isinstance(part, types.FunctionType):
        return "function", (*_code(part), part.__defaults__, part.__kwdefaults__, vars(part))
    if isinstance(part, types.CodeType):  # not the text: a notebook's cell has no file
        names = part.co_names, part.co_varnames, part.co_argcount, part.co_kwonlyargcount
        return kind, (part.co_code, part.co_exceptiontable, part.co_flags, *names, *part.co_consts)
    if isinstance(part, types.ModuleType):
        return kind, (part.__name__,)
    if isinstance(part, _WRAPPERS):
        names = ("__self__", "__func__", "fget", "fset", "fdel", "func")
        return kind, [getattr(part, name, None) for name in names]
    if isinstance(part, types.CellType):
        with contextlib.suppress(ValueError):  # not filled yet
            return kind, (part.cell_contents,)
    if isinstance(part, weakref.ref):  # an LSTM has them to its weights
        return kind, (part(),)
    try:
        made = part.__reduce_ex__(4)
    except Exception:
        raise TypeError(f"a {kind} does not tell what it holds") from None
    if isinstance(made, str):
        return kind, (getattr(part, "__module__", None), made, getattr(part, "__dict__", None))
    return kind, (type(part), *made[:3], *(list(more or ()) for more in made[3:5]))


def _code(function: types.FunctionType) -> Iterator:
    """What a function computes with, its arguments aside."""
    code, space = function.__code__, function.__globals__
    home = str(space.get("__name__"))
    yield from function.__closure__ or ()
    if _installed(home):
        yield f"{home}.{code.co_qualname}"
        return
    yield code
    loaded, imported, names = _names(code)
    found, opened = [(name, space[name]) for name in loaded if name in space], []
    for name in imported:
        with contextlib.suppress(ImportError, ValueError):  # where the function gets none, too
            found.append((name, not _installed(name) and importlib.import_module(name)))
    for name, value in found:
        yield name
        yield value
        if isinstance(value, types.ModuleType) and value not in opened:
            opened.append(value)
            if not _installed(value.__name__):
                found += [(n, getattr(value, n)) for n in names if hasattr(value, n)]


@functools.cache
def _names(code: types.CodeType) -> list[list[str]]:
    """The globals that a code reads, the modules that it imports, and all names in it.

    Those of inner functions are included.
    """
    own = [set(), set(), set(code.co_names)]
    for i in dis.get_instructions(code):
        if i.opname in ("LOAD_GLOBAL", "LOAD_NAME", "IMPORT_NAME"):
            own[i.opname == "IMPORT_NAME"].add(i.argval)
    inner = [_names(const) for const in code.co_consts if isinstance(const, types.CodeType)]
    return [sorted(one.union(*others)) for one, *others in zip(own, *inner, strict=True)]


@functools.cache
def _installed(module: str) -> bool:
    """Whether a module is Python's or an installed package's (or this one, which counts)."""
    top = module.split(".")[0]
    if top in ("vplib", "__main__"):  # a kernel's __main__ says it is of ipykernel
        return module == __name__
    found = sys.modules.get(top) or importlib.util.find_spec(top)
    file = getattr(found, "__file__", None) or getattr(found, "origin", None) or ""
    return top in {*sys.stdlib_module_names, "torch"} or bool(
        {"site-packages", "dist-packages"} & set(Path(file).parts)
    )


def _members(kind: type) -> dict:
    """What a class that is not of an installed package computes with, by name."""
    if _installed(kind.__module__):
        return {}
    own = {k: v for k, v in vars(kind).items() if not k.startswith("__") or callable(v)}
    return {k: v for k, v in own.items() if k != "_abc_impl"}  # what ABCs remember of others


def _tell(template: str, *about) -> None:
    """Warns in one line, once for each template, at the line that called into vplib."""
    if template not in _told:
        _told.add(template)
        frame, level = sys._getframe(), 1
        while frame.f_back and frame.f_globals.get("__name__", "").startswith("vplib."):
            frame, level = frame.f_back, level + 1
        warnings.warn(" ".join(template.format(*about).split()), stacklevel=level)

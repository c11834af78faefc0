"""A pretended GPU: everything computes on the CPU, and what a GPU refuses is refused.

A tensor "on the GPU" is a CPU tensor whose storage carries a mark; views, parameters, gradients
and the tensors inside vmap share their storage and with it the mark. Two modes of torch keep it:

- `_Surface` sees the functions that Python calls. It answers `device`, `to`, `cuda` and `cpu`,
  takes the device off factories, and refuses numpy and generators of the other device.
- `_Kernels` sees the operations under them, those of the backward pass and of the optimizers
  included. It marks results, and refuses operands of two devices as CUDA's kernels do.

Errors are the ones that a GPU raises, word for word where code could look at the words. Not seen:
memory, speed, rounding, kernels that do not exist, what asynchrony hides, and random numbers,
which are the CPU's. Sparse tensors and torch.compile are not supported.

    with pretended():  # in a test
    install()          # for the rest of the process: in a kernel's start-up file
"""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped as _unwrapped
from torch._C._functorch import is_functorch_wrapped_tensor as _is_wrapped
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

GPU = torch.device("cuda", 0)
MEMORY = 16 << 30  # bytes: a Colab T4
MIXED = "Expected all tensors to be on the same device, but found at least two devices, {}!"

_call = threading.local()  # .given: the arguments of the call under way, or its device


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    while _is_wrapped(tensor):  # inside vmap, grad, ...
        tensor = _unwrapped(tensor)
    return tensor.untyped_storage()


def on_gpu(tensor: Tensor) -> bool:
    """Whether a tensor lies on the pretended GPU."""
    return getattr(_storage(tensor), "on_gpu", False)


def _place(values, gpu: bool):
    """Marks the tensors among results, or takes their mark off; returns the results."""
    for tensor in _tensors((values,)):
        _storage(tensor).on_gpu = gpu
    return values


def _tensors(values) -> list[Tensor]:
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
        elif isinstance(value, dict):
            found += _tensors(value.values())
    return found


def _wants_gpu(device) -> bool:
    """Whether a `device=` names the GPU; a number does, as in torch."""
    device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if device.type == "cuda" and device.index not in (None, 0):
        raise RuntimeError("CUDA error: invalid device ordinal")
    return device.type == "cuda"


def _names_device(value) -> bool:
    return isinstance(value, str | torch.device) or type(value) is int


# What Python asks of a tensor


def _to(tensor, *args, **kwargs):
    """`Tensor.to` with its three forms: a device, a type, or another tensor to be like."""
    gpu, rest = on_gpu(tensor), []
    for value in args:
        if _names_device(value):
            gpu = _wants_gpu(value)
        elif isinstance(value, Tensor):
            gpu = on_gpu(value)
            rest.append(value.dtype)
        elif value is not None:
            rest.append(value)
    if (other := kwargs.pop("other", None)) is not None:
        gpu = on_gpu(other)
        rest.append(other.dtype)
    if (device := kwargs.pop("device", None)) is not None:
        gpu = _wants_gpu(device)
    if rest and all(isinstance(value, bool) for value in rest):  # to(device, non_blocking, copy)
        kwargs["copy"], rest = kwargs.get("copy", False) or rest[1:2] == [True], []
    if kwargs.get("dtype", 0) is None:
        del kwargs["dtype"]
    out = tensor.to(*rest, **kwargs) if rest or kwargs else tensor
    if gpu == on_gpu(tensor):
        return out
    return _place(out.clone() if out is tensor else out, gpu)


def _cuda(tensor, device=None, *args, **kwargs):
    return _to(tensor, GPU if device is None else device)


def _cpu(tensor, *args, **kwargs):
    return _to(tensor, "cpu")


def _device(tensor):
    return GPU if on_gpu(tensor) else Tensor.device.__get__(tensor)


def _numpy(tensor, *args, force=False, **kwargs):
    if on_gpu(tensor) and not force:
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the "
            "tensor to host memory first."
        )
    return tensor.detach().cpu().numpy() if force else tensor.numpy(*args, **kwargs)


def _array(tensor, *args, **kwargs):
    return Tensor.__array__(tensor, *args, **kwargs) if not on_gpu(tensor) else _numpy(tensor)


def _set_grad(tensor, grad):
    if grad is not None and on_gpu(grad) != on_gpu(tensor):
        raise RuntimeError("attempting to assign a gradient with device type of another tensor")
    Tensor.grad.__set__(tensor, grad)


def _deepcopy(tensor, memo):
    return _place(tensor.__deepcopy__(memo), on_gpu(tensor))  # copies a storage past all kernels


def _as_tensor(data, *args, **kwargs):
    if isinstance(data, Tensor):
        return _to(data, *args, **kwargs)
    gpu = _wants_gpu(kwargs.pop("device", None) or "cpu")
    return _place((torch.tensor if gpu else torch.as_tensor)(data, *args, **kwargs), gpu)


_SURFACE = {
    Tensor.device.__get__: _device,
    Tensor.is_cuda.__get__: on_gpu,
    Tensor.is_cpu.__get__: lambda tensor: not on_gpu(tensor),
    Tensor.get_device: lambda tensor: 0 if on_gpu(tensor) else -1,
    Tensor.to: _to,
    Tensor.cuda: _cuda,
    Tensor.cpu: _cpu,
    Tensor.numpy: _numpy,
    Tensor.__array__: _array,
    Tensor.grad.__set__: _set_grad,
    Tensor.__deepcopy__: _deepcopy,
    Tensor.pin_memory: lambda tensor, *args: tensor,
    torch.as_tensor: _as_tensor,
}
_SILENT = {  # say nothing about devices, and are called often
    Tensor.shape.__get__,
    Tensor.dtype.__get__,
    Tensor.ndim.__get__,
    Tensor.requires_grad.__get__,
    Tensor.untyped_storage,
    Tensor.size,
    Tensor.dim,
    Tensor.numel,
    Tensor.__len__,
}


class _Surface(TorchFunctionMode):
    """What Python sees of a tensor's device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _SILENT:
            return func(*args, **kwargs)
        if func in _SURFACE:
            return _SURFACE[func](*args, **kwargs)
        given = (args, kwargs)
        asked = kwargs.get("device")
        if asked is not None:
            given = _wants_gpu(asked)
            kwargs = {**kwargs, "device": "cpu"} if given else kwargs
        if (generator := kwargs.get("generator")) is not None:
            wanted, found = "cuda" if _belongs(given) else "cpu", generator.device.type
            if wanted != found:
                raise RuntimeError(
                    f"Expected a '{wanted}' device type for generator but found '{found}'"
                )
        before = getattr(_call, "given", False)
        _call.given = given
        try:
            out = func(*args, **kwargs)
        finally:
            _call.given = before
        copies = func is Tensor.new_tensor or (func is torch.tensor and isinstance(args[0], Tensor))
        if asked is not None or copies:  # may be made past all kernels
            _place(out, _belongs(given))
        return out


def _belongs(given) -> bool:
    """Whether what a call makes belongs on the GPU: by its device, or where its tensors are."""
    if isinstance(given, bool):
        return given
    marks = [(on_gpu(tensor), tensor.dim() > 0) for tensor in _tensors(given)]
    return (True, True) in marks or bool(marks and all(mark for mark, _ in marks))


# What the kernels take

_COPYING = {torch.ops.aten.copy_.default, torch.ops.aten._foreach_copy_.default}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
_TAKES_CPU_SCALAR = {"masked_fill", "masked_fill_", "where", "fill", "fill_", "index_fill_"}


class _Kernels(TorchDispatchMode):
    """Operations on the tensors of one device give tensors of that device; others are refused."""

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # else the first operation imports torch's compiler: three seconds

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        ours, others = [], []
        for tensor in _tensors(args) + _tensors(kwargs.values()) if kwargs else _tensors(args):
            marked = getattr(tensor.untyped_storage(), "on_gpu", False)  # here none is wrapped
            (ours if marked else others).append(tensor)
        if ours and others:
            if func in _COPYING:  # the one way between devices
                return func(*args, **kwargs)
            _check_mixture(func, args, others)
        out = func(*args, **kwargs)
        if ours or (not others and _belongs(getattr(_call, "given", False))):
            _place(out, True)
        return out


def _check_mixture(func, args, others):
    """Raises what a GPU raises for operands of two devices, where it does not take them."""
    name = func._schema.name.removeprefix("aten::")
    if name in _INDEXING:  # a GPU tensor takes indices from the CPU, not the other way round
        if not on_gpu(args[0]):
            raise RuntimeError(
                "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
            )
        if len(args) < 3 or on_gpu(args[2]) or args[2].dim() == 0:
            return
    scalars = all(tensor.dim() == 0 for tensor in others)  # 0-d CPU tensors count as numbers
    takes_scalars = torch.Tag.pointwise in func.tags or name.startswith("_foreach")
    written = func._schema.is_mutable and isinstance(args[0], Tensor) and not on_gpu(args[0])
    if scalars and not written and (takes_scalars or name in _TAKES_CPU_SCALAR):
        return
    raise RuntimeError(MIXED.format("cuda:0 and cpu") + f" (in {name})")


# The process


class _Generator(torch.Generator):
    """A generator that remembers which device it was made for, and draws on the CPU."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls, device="cpu")
        made.gpu = _wants_gpu(device)
        return made

    @property
    def device(self):
        return GPU if self.gpu else torch.device("cpu")


@contextmanager
def _modes():
    with _Kernels(), _Surface():
        yield


def _running_backward(real):
    """The backward pass, with the modes for the Python code in it and the device of its roots."""

    def run(roots, *args, **kwargs):
        before, inside = getattr(_call, "given", False), ExitStack()
        with inside:
            if not torch._C._len_torch_function_stack():  # set aside for Tensor.backward itself
                inside.enter_context(_Surface())
            _call.given = (roots,)
            try:
                return real(roots, *args, **kwargs)
            finally:
                _call.given = before

    return run


def _running_thread(real):
    def run(self):
        with _modes():
            real(self)

    return run


@contextmanager
def pretended() -> Iterator[None]:
    """Torch has a GPU inside."""
    engine, thread = torch.autograd._engine_run_backward, threading.Thread._bootstrap_inner
    about = SimpleNamespace(name="virtual GPU", total_memory=MEMORY, major=7, minor=5)
    cuda = {
        "is_available": lambda: True,
        "_initialized": True,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "default_generators": (_Generator("cuda"),),
        "get_device_name": lambda *_: about.name,
        "get_device_properties": lambda *_: about,
        "get_device_capability": lambda *_: (about.major, about.minor),
        "mem_get_info": lambda *_: (MEMORY, MEMORY),
        "max_memory_allocated": lambda *_: 0,
        "memory_allocated": lambda *_: 0,
        "reset_peak_memory_stats": lambda *_: None,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "is_current_stream_capturing": lambda: False,
    }
    with ExitStack() as stack:
        for name, value in cuda.items():
            stack.enter_context(patch.object(torch.cuda, name, value))
        for owner, name, value in (
            (torch, "Generator", _Generator),
            (torch._C, "_cuda_getDevice", lambda: 0),
            (torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda self: None),
            (torch.autograd, "_engine_run_backward", _running_backward(engine)),
            (threading.Thread, "_bootstrap_inner", _running_thread(thread)),
        ):
            stack.enter_context(patch.object(owner, name, value, create=True))
        stack.enter_context(_modes())
        yield


_installed = ExitStack()


def install() -> None:
    """Torch has a GPU for the rest of the process."""
    _installed.enter_context(pretended())


def ipython_folder(folder: Path) -> Path:
    """Writes a folder for `IPYTHONDIR` whose kernels have the GPU before their first cell.

    Args:
        folder: an empty one.
    """
    startup = folder / "profile_default" / "startup"
    startup.mkdir(parents=True)
    code = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    code += "import virtual_gpu\nvirtual_gpu.install()\nsys.path.pop(0)\ndel sys, virtual_gpu\n"
    (startup / "00_virtual_gpu.py").write_text(code)
    return folder

"""A torch device that every machine has: its numbers are the CPU's, and it refuses what a GPU refuses.

A tensor on the device "fake" holds a CPU tensor, and every operation is the CPU's. An operation on a tensor of the
device and one of the CPU is an error, as is `Tensor.numpy`. It is stricter than CUDA in one respect: indices on the CPU
are refused too, since CUDA copies them to the device at every use. As MPS, it has no double precision.

`register` makes it the accelerator of the whole process, for good, and before any gradient is computed; so tests do it
in a process of their own.
"""

from __future__ import annotations

import torch
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "fake"
DEVICE = torch.device("cpu")  # until `register` has made the device known
present = True  # whether torch is to find it
elements_to_cpu: list[int] = []  # of each tensor that was copied to the CPU

_libraries: list[torch.library.Library] = []


class OnDevice(torch.Tensor):
    """A tensor on the device, around one on the CPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> OnDevice:
        if held.dtype == torch.float64:
            raise TypeError(f"Cannot make a tensor of float64 on {DEVICE}.")
        with torch.inference_mode(held.is_inference()):  # a view of a weight is none, also within inference mode
            made = torch.Tensor._make_wrapper_subclass(
                cls,
                held.shape,
                strides=held.stride(),
                storage_offset=held.storage_offset(),
                dtype=held.dtype,
                device=DEVICE,
                requires_grad=held.requires_grad,
            )
        made.held = held
        return made

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"OnDevice({self.held})"

    def tolist(self) -> object:  # torch's own refuses subclasses; on a device it copies
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        # In inference mode, operations that are made of others arrive as a whole.
        done = func.decompose(*args, **(kwargs or {}))
        return _call(func, args, kwargs or {}) if done is NotImplemented else done


def register() -> torch.device:
    """Make the device known to this process, as its accelerator."""
    global DEVICE
    if _libraries:
        return DEVICE
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    DEVICE = torch.device(NAME, 0)
    library = torch.library.Library("aten", "IMPL")
    for name, function in _factories():
        library.impl(name, _factory(function), "PrivateUse1")

    def copy(source: torch.Tensor, to: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        return _call(torch.ops.aten.copy_.default, (to, source), {})

    # `torch.tensor(..., device=...)` copies below the level of tensor subclasses.
    library.impl("_copy_from", copy, "PrivateUse1")
    _libraries.append(library)
    return DEVICE


class _Module(_DummyBackendModule):
    """What torch asks a device for, as `torch.cuda` has it."""

    def is_available(self) -> bool:
        return present

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: object = None) -> torch.Tensor:  # of the CPU, which draws the numbers
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: object = None) -> None:
        torch.set_rng_state(state)

    def synchronize(self, device: object = None) -> None:
        """Nothing runs in the background."""


def _call(func, args, kwargs):
    """What the operation gives on the CPU, on the device."""
    name = func._schema.name
    if name == "aten::_has_compatible_shallow_copy_type":  # whether a module may swap the data of a parameter
        return all(isinstance(each, OnDevice) for each in args)
    copies = name in ("aten::copy_", "aten::_to_copy")
    on_device = [each for each in pytree.tree_leaves((args, kwargs)) if isinstance(each, OnDevice)]

    def unwrapped(value):
        if isinstance(value, OnDevice):
            return value.held
        if isinstance(value, torch.Tensor) and value.dim() and not copies:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but {name} got {DEVICE} and {value.device} "
                f"(shape {tuple(value.shape)})."
            )
        return torch.device("cpu") if isinstance(value, torch.device) else value

    to_cpu = copies and (
        not isinstance(args[0], OnDevice) or torch.device(kwargs.get("device") or DEVICE).type == "cpu"
    )
    args, kwargs = pytree.tree_map(unwrapped, (args, kwargs))
    result = func(*args, **kwargs)
    if to_cpu:
        elements_to_cpu.append(result.numel())
        return result
    same = {id(each.held): each for each in on_device}  # results of in-place operations, and of those with out=

    def wrapped(value):
        if not isinstance(value, torch.Tensor):
            return value
        return same[id(value)] if id(value) in same else OnDevice(value)

    return pytree.tree_map(wrapped, result)


def _factory(func):
    def made(*args, **kwargs):
        kwargs.pop("pin_memory", None)
        return OnDevice(func(*args, **(kwargs | {"device": torch.device("cpu")})))

    return made


def _factories():
    """Every operation that makes a tensor of no other: it has no tensor whose device would say where it runs."""
    for full in torch._C._dispatch_get_all_op_names():
        space, _, rest = full.partition("::")
        name, _, overload = rest.partition(".")
        if space != "aten" or any(part in name for part in ("sparse", "quantized", "cudnn", "nested", "from_file")):
            continue
        function = getattr(getattr(torch.ops.aten, name), overload or "default", None)
        if function is None:
            continue
        arguments, returns = function._schema.arguments, function._schema.returns
        takes_device = any(each.name == "device" for each in arguments)
        if takes_device and len(returns) == 1 and not any("Tensor" in str(each.type) for each in arguments):
            yield rest, function

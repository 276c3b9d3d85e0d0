"""What an engine was built with and for, and whether this machine is that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from opfuse.engine.gpu import Gpu
from opfuse.errors import MissingComponent

_DISTRIBUTIONS = {"tensorrt_rtx": "tensorrt-rtx-cu13", "tensorrt": "tensorrt-cu13"}
_REBUILD = "build it again here, from its fused.onnx (unzip -p {0} fused.onnx) or from the model"


@dataclass(frozen=True)
class Lock:
    """What a bundle needs.

    Args:
        module: The TensorRT that built the engines: ``"tensorrt_rtx"`` or ``"tensorrt"``.
        tensorrt: Its version, to the last number: engines of another one do not load.
        gpu: The GPU that it was built on; None where there was none to build for.
        library: SHA-256 of the plugin library; empty where no plugin is used.
        architectures: What the plugin library has kernels for, as it says itself.
        opfuse: The version that wrote the bundle.
    """

    module: str
    tensorrt: str
    gpu: Gpu | None
    library: str
    architectures: tuple[str, ...]
    opfuse: str

    def as_dict(self) -> dict[str, Any]:
        """The lock as JSON has it."""
        return asdict(self)

    @staticmethod
    def from_dict(facts: Mapping[str, Any]) -> Lock:
        """Read what `as_dict` wrote.

        Raises:
            KeyError, TypeError: It is something else.
        """
        gpu = None if facts["gpu"] is None else Gpu(**facts["gpu"])
        return Lock(**{**facts, "gpu": gpu, "architectures": tuple(facts["architectures"])})


def check_tensorrt(lock: Lock, path: object, installed: str) -> None:
    """Refuse another TensorRT than the one that built the engines.

    Raises:
        MissingComponent: ``installed`` is another version.
    """
    if installed != lock.tensorrt:
        wheel = _DISTRIBUTIONS.get(lock.module, lock.module)
        raise MissingComponent(
            f"{path} was built by {lock.module} {lock.tensorrt}; {installed} is installed",
            f"pip install {wheel}=={lock.tensorrt}, or {_REBUILD.format(path)}",
        )


def check_gpu(lock: Lock, path: object, here: Gpu) -> None:
    """Refuse another GPU than the one that the engines and the plugin library are for.

    Raises:
        MissingComponent: ``here`` has another compute capability, or one that the library has no
            kernels for.
    """
    if lock.gpu is not None and lock.gpu.compute_capability != here.compute_capability:
        raise MissingComponent(
            f"{path} was built for {_shown(lock.gpu)}; this is {_shown(here)}",
            _REBUILD.format(path),
        )
    if lock.library and not runs_on(lock.architectures, here.compute_capability):
        raise MissingComponent(
            f"the plugin library of {path} has kernels for {', '.join(lock.architectures)}; "
            f"this is {_shown(here)}",
            "build the plugin library for this GPU, and the bundle with it",
        )


def check_library(lock: Lock, path: object, library: object, digest: str) -> None:
    """Refuse another plugin library than the one that the bundle was built with.

    Raises:
        MissingComponent: ``digest`` is not the one in the lock.
    """
    if digest != lock.library:
        raise MissingComponent(
            f"{path} was built with another plugin library than {library} "
            f"(SHA-256 {lock.library[:12]}..., this one has {digest[:12]}...)",
            "name the right one with --plugins, or build the bundle again",
        )


def runs_on(architectures: tuple[str, ...], compute_capability: str) -> bool:
    """Whether a library for these CMake architectures has code for a GPU.

    ``"90-real"`` is a cubin and runs on 9.x from 9.0 on, ``"90a-real"`` on 9.0 alone,
    ``"90-virtual"`` is PTX for all from 9.0 on, ``"90"`` is both.
    """
    major, minor = map(int, compute_capability.split("."))
    here = major * 10 + minor
    for text in architectures:
        number, _, kind = text.partition("-")
        suffix = number.lstrip("0123456789")
        built = int(number.removesuffix(suffix)) if suffix else int(number)
        if suffix == "a":
            if built == here:
                return True
            continue
        if kind != "virtual" and built // 10 == major and built <= here:
            return True
        if kind != "real" and not suffix and built <= here:
            return True
    return False


def _shown(gpu: Gpu) -> str:
    return f"{gpu.name} (compute capability {gpu.compute_capability})"

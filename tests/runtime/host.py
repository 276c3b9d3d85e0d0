"""A GPU, a TensorRT, and a plugin library that are none: they run in host memory, by onnxruntime.

The code under test is the same: contexts get shapes and addresses, graphs replay the addresses
that were captured, and memory is full of NaN until somebody writes it. An "engine" is the ONNX of
its segment.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, helper

from opfuse.engine import assemble
from opfuse.engine.backend import EngineInfo
from opfuse.engine.gpu import Gpu
from opfuse.engine.profile import resolve
from opfuse.runtime import loading
from opfuse.runtime.engine import Engine
from opfuse.runtime.tensorrt import ELEMENTS
from opfuse.stages.fuse import export, fuse
from opfuse.stages.load import load
from opfuse.stages.lower import lower
from opfuse.stages.normalise import normalise
from opfuse.stages.save import save

POISON = 0xFF  # NaN in every floating-point type
SCRATCH = 1024  # bytes that every engine asks for and spoils
VERSION = "1.4.0.76"
_NAMES = {element: name for name, element in ELEMENTS.items()}


class HostDevice:
    """Memory of the process in the place of a GPU's."""

    def __init__(self, capability: str = "9.0") -> None:
        self.gpu = Gpu("a test", capability)
        self.dlpack = (1, 0)
        self.live: dict[int, ctypes.Array] = {}
        self.graphs: dict[int, list] = {}
        self.recording: list | None = None
        self._next = 1

    def enter(self):
        pass

    def allocate(self, size):
        buffer = ctypes.create_string_buffer(bytes([POISON]) * max(size, 1), max(size, 1))
        address = ctypes.addressof(buffer)
        self.live[address] = buffer
        return address

    def free(self, address):
        if address:
            del self.live[address]

    def open_stream(self):
        self._next += 1
        return self._next

    def close_stream(self, stream):
        pass

    def do(self, work):
        """Do it now, or put it into the graph that is being captured."""
        (work() if self.recording is None else self.recording.append(work))

    def copy(self, target, source, size, stream):
        self.do(lambda: ctypes.memmove(target, source, size))

    def synchronize(self, stream):
        assert self.recording is None

    def capture(self, stream, work):
        self.recording = []
        work()
        self._next += 1
        self.graphs[self._next] = self.recording
        self.recording = None
        return self._next

    def launch(self, graph, stream):
        for work in self.graphs[graph]:
            work()

    def destroy(self, graph):
        del self.graphs[graph]

    def open_event(self):
        return 0

    def record(self, event, stream):
        pass

    def mark(self, event, stream):
        assert self.recording is not None

    def elapsed_us(self, start, end):
        return 1.0

    def close_event(self, event):
        pass

    def used_bytes(self):
        return sum(map(len, self.live.values()))


class Runner:
    """A model in onnxruntime; shapes of outputs are found by running it on ones."""

    def __init__(self, model: ModelProto) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        self.types = {i.name: i.type.tensor_type.elem_type for i in model.graph.input}
        self.outputs = [item.name for item in model.graph.output]
        self._shapes: dict[tuple, list] = {}

    def __call__(self, feeds):
        return self.session.run(None, feeds)

    def shapes(self, inputs):
        key = tuple(sorted(inputs.items()))
        if key not in self._shapes:
            ones = {name: np.ones(shape, dtype(self.types[name])) for name, shape in inputs.items()}
            self._shapes[key] = [array.shape for array in self(ones)]
        return self._shapes[key]


def dtype(element):
    return helper.tensor_dtype_to_np_dtype(element)


def at(address, element, shape):
    """The array at an address."""
    kind = np.dtype(dtype(element))
    size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    raw = np.frombuffer((ctypes.c_char * max(size, 1)).from_address(address), np.uint8)
    return raw[:size].view(kind).reshape(shape)


@lru_cache(maxsize=256)
def runner(plan: bytes) -> Runner:
    model = onnx.load_from_string(plan)
    for node in model.graph.node:  # for TensorRT alone
        kept = [item for item in node.attribute if item.name != "TRT_decomposable"]
        del node.attribute[:]
        node.attribute.extend(kept)
    return Runner(model)


class Context:
    def __init__(self, engine) -> None:
        self.engine, self.shapes, self.addresses, self.memory = engine, {}, {}, None
        self._profiler, self._had_profiler = None, False

    @property
    def profiler(self):
        return self._profiler

    @profiler.setter
    def profiler(self, profiler):
        self._profiler, self._had_profiler = profiler, True

    def set_input_shape(self, name, shape):
        want = self.engine.get_tensor_shape(name)
        if len(want) != len(shape) or any(
            w not in (-1, s) for w, s in zip(want, shape, strict=True)
        ):
            return False
        self.shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name):
        run = self.engine.runner
        return run.shapes(self.shapes)[run.outputs.index(name)]

    def update_device_memory_size_for_shapes(self):
        return SCRATCH

    def set_device_memory(self, address, size):
        self.memory = (address, size)

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        assert self.engine.device.recording is None or not self._had_profiler
        if self.profiler is not None:
            self.profiler.report_layer_time("a MatMul", 0.002)
        shapes, addresses, memory = dict(self.shapes), dict(self.addresses), self.memory
        self.engine.device.do(lambda: self.engine.compute(shapes, addresses, memory))
        return True


class HostEngine:
    def __init__(self, plan: bytes, device: HostDevice) -> None:
        self.runner, self.device = runner(plan), device
        graph = onnx.load_from_string(plan).graph
        self.values = {item.name: (item, True) for item in graph.input}
        self.values |= {item.name: (item, False) for item in graph.output}
        self.num_io_tensors = len(self.values)

    def compute(self, shapes, addresses, memory):
        types = self.runner.types
        feeds = {n: at(addresses[n], types[n], shape).copy() for n, shape in shapes.items()}
        ctypes.memset(memory[0], POISON, memory[1])
        for name, array in zip(self.runner.outputs, self.runner(feeds), strict=True):
            element = self.values[name][0].type.tensor_type.elem_type
            at(addresses[name], element, array.shape)[...] = array

    def get_tensor_name(self, index):
        return list(self.values)[index]

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name=_NAMES[self.values[name][0].type.tensor_type.elem_type])

    def get_tensor_mode(self, name):
        return SimpleNamespace(name="INPUT" if self.values[name][1] else "OUTPUT")

    def get_tensor_shape(self, name):
        dims = self.values[name][0].type.tensor_type.shape.dim
        return [dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims]

    def get_tensor_profile_shape(self, name, profile):
        assert profile == 0
        return [[abs(dim) * size for dim in self.get_tensor_shape(name)] for size in (1, 2, 3)]

    def create_execution_context(self, strategy):
        return Context(self)


def api(device: HostDevice, version: str = VERSION, *, needs_library: bool = False):
    """A module like tensorrt_rtx; where it ``needs_library`` it loads nothing without one."""

    class Runtime:
        def __init__(self, logger):
            self.logger, self.libraries = logger, []

        def get_plugin_registry(self):
            return SimpleNamespace(load_library=lambda name: self.libraries.append(name) or name)

        def deserialize_cuda_engine(self, plan):
            if needs_library and not self.libraries:
                self.logger.log(SimpleNamespace(name="ERROR"), "no plugin AddRmsNorm")
                return None
            return HostEngine(bytes(plan), device)

    return SimpleNamespace(
        __version__=version,
        ILogger=object,
        IProfiler=object,
        Runtime=Runtime,
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED=2),
    )


class HostPlugin:
    """An op whose shapes are the library's and whose numbers are those of its body."""

    def __init__(self, bodies, device, real, op, attributes):
        self._device, self._real = device, real(op, attributes)
        self._body, self._op, self._attributes = bodies, op, attributes

    def infer(self, inputs, outputs):
        return self._real.infer(inputs, outputs)

    def workspace_size(self, inputs):
        return self._real.workspace_size(inputs) + SCRATCH

    def enqueue(self, inputs, outputs, stream, workspace):
        self._device.do(lambda: self._compute(inputs, outputs, workspace))

    def _compute(self, inputs, outputs, workspace):
        ctypes.memset(workspace, POISON, SCRATCH)
        names = [f"i{index}" for index in range(len(inputs))]
        made = _one_node(
            self._body,
            self._op,
            tuple(sorted(self._attributes.items())),
            tuple(item.dtype for item in inputs),
            tuple(item.dtype for item in outputs),
        )
        feeds = {n: at(i.data, i.dtype, i.shape).copy() for n, i in zip(names, inputs, strict=True)}
        written = outputs[: 1 if self._attributes.get("sum_is_read") == 0 else None]
        for slot, array in zip(written, made(feeds), strict=False):
            at(slot.data, slot.dtype, slot.shape)[...] = array


def copy(device, copied, stream):
    """`abi.copy` in host memory."""
    device.do(lambda: [_copy_one(item) for item in copied])


def _copy_one(item):
    sizes, *steps = zip(*item.box.axes, strict=True)
    ends = zip((item.source, item.target), item.box.first, steps, strict=True)
    source, target = (_strided(address + first, sizes, by) for address, first, by in ends)
    target[...] = source


def _strided(address, sizes, steps):
    """Bytes that lie apart by ``steps``."""
    reach = 1 + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
    raw = np.frombuffer((ctypes.c_char * reach).from_address(address), np.uint8)
    return np.lib.stride_tricks.as_strided(raw, sizes, steps, writeable=True)


@lru_cache(maxsize=256)
def _one_node(bodies: bytes, op, attributes, reads, writes) -> Runner:
    model = onnx.load_from_string(bodies)
    (function,) = [f for f in model.functions if f.name.rstrip("_") == f"{op}_body"]
    info = partial(helper.make_tensor_value_info, shape=None)
    inputs = [info(f"i{n}", element) for n, element in enumerate(reads)]
    outputs = [info(f"o{n}", element) for n, element in enumerate(writes)]
    node = helper.make_node(
        function.name,
        [item.name for item in inputs],
        [item.name for item in outputs],
        domain=function.domain,
        **dict(attributes),
    )
    graph = helper.make_graph([node], "one", inputs, outputs)
    made = helper.make_model(graph, opset_imports=model.opset_import, functions=model.functions)
    made.ir_version = model.ir_version
    return Runner(made)


def lowered(path: Path, folder: Path, ops) -> ModelProto:
    """What stage build gets: ``path`` fused and lowered, with fused.onnx in the folder."""
    source = load(path)
    fused = fuse(normalise(source))
    model = export(fused, source)
    save(fused.graph, model, source, folder / "fused.onnx")
    lower(model, "plugin", ops)
    return model


def bundle(model: ModelProto, folder: Path, library: Path, output: Path, *, embed=True):
    """A bundle of "engines" for the fake TensorRT; returns what was built and the draft."""
    profile = resolve(model.graph, ({}, {}, {}))
    parts = assemble.draft(model, folder, library)
    built = [
        EngineInfo("tensorrt-rtx", VERSION, "", str(p), 0, "", 1, {}, {}, {}, (), "network")
        for p in parts.models
    ]
    info = assemble.pack(parts, built, profile, folder, output, embed=embed)
    return info, parts


def open_engine(monkeypatch, path: Path, model: ModelProto, device=None, **options) -> Engine:
    """Load a bundle on the fake GPU; ``model`` has the bodies of its plugins."""
    device = device or HostDevice()
    skeleton = ModelProto()
    skeleton.CopyFrom(model)
    skeleton.ClearField("graph")
    bodies = skeleton.SerializeToString()
    genuine = loading._plugins

    def plugins(opened, explicit):
        return partial(HostPlugin, bodies, device, genuine(opened, explicit))

    monkeypatch.setattr(loading, "_plugins", plugins)
    monkeypatch.setattr(loading, "_copies", lambda opened, explicit: partial(copy, device))
    monkeypatch.setattr(loading, "import_module", lambda name: api(device))
    program = loading.load(path, options.pop("plugins", None), lambda: device)
    contexts, graphs = options.pop("contexts", 1), options.pop("graphs", True)
    return Engine(program, contexts, graphs, options.pop("max_graphs", 8))

"""ONNX file to engine file, for every TensorRT of the 10 and 11 API: runs in a child process."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from opfuse import child
from opfuse.engine import gpu, layers
from opfuse.engine.backend import EngineInfo, Request, ShapesRefused, TensorInfo
from opfuse.errors import EngineError
from opfuse.files import translated

if TYPE_CHECKING:
    import tensorrt as trt

NAMESPACE = "opfuse"
_LISTING = "Layers:"
_ELSEWHERE = {"tensorrt-rtx": "; TensorRT itself runs on more: pip install 'opfuse[tensorrt]'"}
_SHAPES_REFUSED = "violate shape constraints"
_MAX_SHOWN = 12
_EVENT_INTERVAL_S = 0.05


class Journal:
    """What TensorRT logs, as far as it is needed later: errors, warnings, the layer listing."""

    def __init__(self, verbose: bool) -> None:
        self.verbose = verbose
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.listing = ""

    def log(self, severity: Any, message: str) -> None:
        """Called by TensorRT, from any of its threads."""
        if severity.name in ("ERROR", "INTERNAL_ERROR"):
            self.errors.append(message)
        elif severity.name == "WARNING":
            self.warnings.append(message)
        elif message.startswith(_LISTING):
            self.listing = message
        if self.verbose:
            print(f"[{severity.name}] {message}", flush=True)

    def last_errors(self) -> str:
        """The end of the error log, for a message."""
        lines = [line.strip()[:400] for line in self.errors[-4:]]
        return "".join(f"\n  | {line}" for line in lines)


class Monitor:
    """Passes TensorRT's progress on as events; it asks for none of it to stop."""

    def __init__(self) -> None:
        self._totals: dict[str, int] = {}
        self._sent = 0.0

    def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase begins, inside ``parent`` where that is not None."""
        self._totals[phase] = steps
        self._send(phase, 0)

    def step_complete(self, phase: str, step: int) -> bool:
        """Step number ``step``, from 0, is done; True lets the build go on."""
        self._send(phase, step + 1)
        return True

    def phase_finish(self, phase: str) -> None:
        """A phase has ended."""
        self._totals.pop(phase, None)

    def _send(self, phase: str, done: int) -> None:
        now = time.monotonic()
        if done == 0 or now - self._sent > _EVENT_INTERVAL_S:
            self._sent = now
            child.emit({"text": phase, "done": done, "total": self._totals.get(phase, 0)})


def build(api: ModuleType, name: str, request: Request) -> EngineInfo:
    """Build an engine, or only parse where the request names no engine file.

    Args:
        api: The TensorRT module.
        name: The backend, for messages and the result.
        request: What to build; the engine and the timing cache are written where it says.

    Raises:
        EngineError: TensorRT refuses the plugin library, the model, or the network.
        InputError: The engine file cannot be written.
    """
    journal = Journal(request.verbose)
    logger = _implement(api.ILogger, journal, "log")
    builder: trt.Builder = api.Builder(logger)
    title = f"{name} {api.__version__}"
    if request.plugin_library is not None:
        _load_plugins(builder.get_plugin_registry(), request.plugin_library, journal, title)
    network = _parse(api, builder, logger, request.model, title)
    plugins = _plugin_nodes(api, network)
    notes: list[str] = []
    read_from, found, digest, size = "network", _parsed_layers(network), "", 0
    if request.engine is not None:
        config = _configure(api, builder, network, request, embed=bool(plugins))
        cache = _TimingCache(config, request.timing_cache, journal)
        monitor = _implement(api.IProgressMonitor, Monitor(), *_MONITOR_METHODS)
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise _build_error(title, journal, plugins)
        digest, size = _write(plan, request.engine)
        notes += cache.save()
        read_from, found = _read_back(api, name, logger, journal, plan, request, notes)
    counted = layers.count_plugins(found, plugins) if request.engine else _count(plugins)
    return EngineInfo(
        backend=name,
        version=api.__version__,
        why="",
        path=str(request.engine or ""),
        bytes=size,
        sha256=digest,
        layers=len(found),
        layer_types=layers.count_types(found),
        plugin_layers=counted,
        dtypes=layers.count_dtypes(found),
        io=tuple(_tensors(network, request)),
        read_from=read_from,
        notes=(*notes, *_merged_plugins(plugins, counted)),
        **_products(found, plugins),
    )


def _products(found: list[layers.Layer], plugins: dict[str, str]) -> dict[str, Any]:
    """What the engine's information says of its products."""
    products = layers.products(found, plugins)
    return {
        "products": {dtype: len(items) for dtype, items in products.items()},
        "fp32_products": tuple(products.get("fp32", ())),
    }


_MONITOR_METHODS = ("phase_start", "step_complete", "phase_finish")


def _implement(interface: type, target: object, *methods: str) -> Any:
    """An object of a TensorRT interface whose methods are those of ``target``."""

    def start(self: Any) -> None:
        interface.__init__(self)  # type: ignore[misc]

    def forward(method: str) -> Any:
        return lambda self, *args: getattr(target, method)(*args)

    body = {"__init__": start, **{method: forward(method) for method in methods}}
    return type(interface.__name__, (interface,), body)()


def _load_plugins(registry: Any, library: Path, journal: Journal, title: str) -> None:
    if registry.load_library(str(library)) is None:
        raise EngineError(
            f"{title} cannot load the plugin library {library}{journal.last_errors()}",
            "build it again for this TensorRT, or leave the plugins out with --lower leave",
        )


def _parse(
    api: ModuleType, builder: trt.Builder, logger: Any, model: Path, title: str
) -> trt.INetworkDefinition:
    flags = api.NetworkDefinitionCreationFlag
    strongly_typed = getattr(flags, "STRONGLY_TYPED", None)  # the only way from 11.0 on
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = api.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        raise EngineError(f"{title} cannot import the model{_failures(errors)}", _FIX)
    return network


_FIX = (
    "load the library that has a missing plugin (--plugins), or export the named nodes in "
    "operators that TensorRT supports; opfuse's own nodes import without plugins by --lower leave"
)


def _failures(errors: list[trt.ParserError]) -> str:
    lines = [
        f"\n  {error.node_name() or 'model'} ({error.node_operator() or '-'}): "
        f"{' '.join(error.desc().split())[:300]}"
        for error in errors
    ]
    more = len(lines) - _MAX_SHOWN
    return "".join(lines[:_MAX_SHOWN]) + (f"\n  and {more} more" if more > 0 else "")


def _plugin_nodes(api: ModuleType, network: trt.INetworkDefinition) -> dict[str, str]:
    """The op of each of our plugin layers, by layer name."""
    ops = {}
    for index in range(network.num_layers):
        layer: Any = network.get_layer(index)
        if layer.type == api.LayerType.PLUGIN_V3:
            layer.__class__ = api.IPluginV3Layer
            core = layer.plugin.get_capability_interface(api.PluginCapabilityType.CORE)
            if core.plugin_namespace == NAMESPACE:
                ops[layer.name] = core.plugin_name
    return ops


def _parsed_layers(network: trt.INetworkDefinition) -> list[layers.Layer]:
    found = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        outputs = [layer.get_output(number) for number in range(layer.num_outputs)]
        dtypes = tuple(layers.dtype_name(output.dtype.name) for output in outputs)
        found.append(layers.Layer(layer.name, layer.type.name, dtypes, ()))
    return found


def _configure(
    api: ModuleType,
    builder: trt.Builder,
    network: trt.INetworkDefinition,
    request: Request,
    *,
    embed: bool,
) -> trt.IBuilderConfig:
    config = builder.create_builder_config()
    config.profiling_verbosity = api.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.is_shape_tensor:
            raise EngineError(
                f"the values of input {tensor.name!r} decide the shapes of other tensors, which "
                "opfuse has no option to bound",
                "make it a constant, or take the size from the shape of another input",
            )
        if tensor.name in request.ranges:
            profile.set_shape(tensor.name, *request.ranges[tensor.name])
    config.add_optimization_profile(profile)
    if embed and request.embed_plugins:
        config.plugins_to_serialize = [str(request.plugin_library)]
    return config


def _build_error(title: str, journal: Journal, plugins: dict[str, str]) -> EngineError:
    errors = journal.last_errors()
    if _SHAPES_REFUSED in errors:
        return ShapesRefused(
            f"{title} finds that the model does not take the shapes of the profile{errors}",
            "set --minShapes, --optShapes and --maxShapes to sizes that the model takes",
        )
    fix = "try --lower leave, which keeps the plugins out" if plugins else ""
    return EngineError(f"{title} could not build the engine{errors}", fix)


class _TimingCache:
    """The timing cache of one build; a file that does not fit is replaced, never a failure."""

    def __init__(self, config: trt.IBuilderConfig, path: Path | None, journal: Journal) -> None:
        self._config = config
        self._path = path
        self._replaced = False
        if path is not None:
            data = path.read_bytes() if path.exists() else b""
            cache = config.create_timing_cache(data)
            refused = cache is None or not config.set_timing_cache(cache, False)
            if refused:
                config.set_timing_cache(config.create_timing_cache(b""), False)
            # A damaged cache gives an empty one and a warning.
            warned = any("timing cache" in warning for warning in journal.warnings)
            self._replaced = bool(data) and (refused or warned)

    def save(self) -> list[str]:
        """Write the cache back; what to tell about it."""
        if self._path is None:
            return []
        with translated(self._path):
            self._path.write_bytes(memoryview(self._config.get_timing_cache().serialize()))
        return ["the timing cache was damaged or of another TensorRT: replaced"] * self._replaced


def _write(plan: Any, path: Path) -> tuple[str, int]:
    view = memoryview(plan)
    with translated(path, view.nbytes):
        path.write_bytes(view)
    return hashlib.sha256(view).hexdigest(), view.nbytes


def _read_back(
    api: ModuleType,
    name: str,
    logger: Any,
    journal: Journal,
    plan: Any,
    request: Request,
    notes: list[str],
) -> tuple[str, list[layers.Layer]]:
    """The layers of the engine, by the inspector where a GPU can load it."""
    if not gpu.absent():
        runtime = api.Runtime(logger)
        if request.plugin_library is not None and not request.embed_plugins:
            runtime.get_plugin_registry().load_library(str(request.plugin_library))
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is not None:
            inspector = engine.create_engine_inspector()
            text = inspector.get_engine_information(api.LayerInformationFormat.JSON)
            return "inspector", layers.from_inspector(text)
        fix = _ELSEWHERE.get(name, "")
        notes.append(f"this GPU cannot load the engine{fix}{journal.last_errors()}")
    return "builder", layers.from_listing(journal.listing)


def _tensors(network: trt.INetworkDefinition, request: Request) -> list[TensorInfo]:
    def info(tensor: trt.ITensor, mode: str) -> TensorInfo:
        dtype = layers.dtype_name(tensor.dtype.name)
        known = request.ranges.get(tensor.name) if mode == "input" else None
        return TensorInfo(tensor.name, mode, dtype, tuple(tensor.shape), known)

    inputs = [info(network.get_input(i), "input") for i in range(network.num_inputs)]
    return inputs + [info(network.get_output(i), "output") for i in range(network.num_outputs)]


def _count(plugins: dict[str, str]) -> dict[str, int]:
    ops = list(plugins.values())
    return {op: ops.count(op) for op in sorted(set(ops))}


def _merged_plugins(parsed: dict[str, str], built: dict[str, int]) -> list[str]:
    lost = len(parsed) - sum(built.values())
    return [f"{lost} of {len(parsed)} plugin nodes are not in the engine"] if lost > 0 else []

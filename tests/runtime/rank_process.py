"""One rank on a GPU that is none: ``python -m tests.runtime.rank_process JOB BUNDLE LOWERED``.

Its launcher sets the variables that torchrun sets. Sums go over the sockets of the meeting.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx

from opfuse.errors import OpfuseError
from opfuse.graph.collectives import SPEAKING
from opfuse.runtime import group, loading
from opfuse.runtime.engine import Engine
from tests.runtime import host


class Wire:
    """In the place of the communicator: it has no kernels that could wait."""

    transport = "sockets"

    def __init__(self, library, rank, size, exchange, timeout_ms, nccl):
        assert exchange(bytes([rank])) == [bytes([other]) for other in range(size)]
        self.aborted = False

    def state(self):
        return 1 if self.aborted else 0

    def abort(self):
        self.aborted = True

    def close(self):
        pass


class Speaking:
    """A collective by NumPy; shapes are the library's."""

    def __init__(self, device, real, op, attributes):
        self._device, self._real = device, real(op, attributes)
        self._op, self._attributes = op, attributes

    def infer(self, inputs, outputs):
        return self._real.infer(inputs, outputs)

    def workspace_size(self, inputs):
        return self._real.workspace_size(inputs)

    def enqueue(self, inputs, outputs, stream, workspace):
        self._device.do(lambda: self._compute(inputs, outputs))

    def _compute(self, inputs, outputs):
        given = [host.at(item.data, item.dtype, item.shape) for item in inputs]
        everything = group._group.share(given[0].tobytes())
        parts = [np.frombuffer(data, given[0].dtype).reshape(given[0].shape) for data in everything]
        if self._op == "AllGather":
            made = [np.concatenate(parts, self._attributes["axis"])]
        else:
            made = [sum(part.astype(np.float64) for part in parts)]
        if self._op == "AllReduceAddNorm":
            made = self._normed(made[0] + given[1], *given[2:])
        for slot, array in zip(outputs, made, strict=True):
            host.at(slot.data, slot.dtype, slot.shape)[...] = array

    def _normed(self, total, gamma, *rest):
        assert (self._attributes["norm"], rest) == ("rms", ())
        mean = np.mean(total**2, -1, keepdims=True)
        return [total / np.sqrt(mean + self._attributes["epsilon"]) * gamma, total]


def opened(bundle: Path, model: Path) -> Engine:
    """The bundle as `Engine.load` would open it on a GPU."""
    device = host.HostDevice()
    skeleton = onnx.load(model)
    skeleton.ClearField("graph")
    bodies = skeleton.SerializeToString()
    genuine = loading._plugins

    def plugins(found, explicit):
        real = genuine(found, explicit)

        def make(op, attributes):
            if op in SPEAKING:
                return Speaking(device, real, op, attributes)
            return host.HostPlugin(bodies, device, real, op, attributes)

        return make

    def open_device(local=0):
        device.address = f"gpu {local}"
        return device

    def import_module(name):
        """The first thing that is loaded; weights of many gigabytes take their time."""
        if os.environ.get("RANK", "0") == os.environ.get("SLOW_RANK"):
            time.sleep(8)
        return host.api(device)

    loading._plugins = plugins
    loading.import_module = import_module
    group.Communicator = Wire
    return Engine(loading.load(bundle, None, open_device), 1, True, 8)


def run(engine: Engine) -> None:
    """Print what the ranks make of the inputs on stdin."""
    given = {
        name: np.asarray(values, host.dtype(next(v.dtype for v in engine.inputs if v.name == name)))
        for name, values in json.load(sys.stdin).items()
    }
    with engine:
        first = engine.run(given)
        again = engine.run(given)
        for name, array in first.items():
            assert array.tobytes() == again[name].tobytes()
        print(json.dumps({name: array.tolist() for name, array in first.items()}))


def serve(engine: Engine) -> None:
    """Run until something happens."""
    given = {value.name: np.ones((1, 4), host.dtype(value.dtype)) for value in engine.inputs}
    print("serving", flush=True)
    with engine:
        while True:
            engine.run(given)


def wait(engine: Engine) -> None:
    """Sit in code that never looks at the other ranks, as a synchronise does."""
    print("waiting", flush=True)
    time.sleep(600)


def fail(engine: Engine) -> None:
    """Rank 1 gives wrong inputs, the others run."""
    with engine:
        given = {value.name: np.ones((1, 4), host.dtype(value.dtype)) for value in engine.inputs}
        if engine.group.world.rank == 1:
            del given["input_ids"]
        engine.run(given)


def verify(engine: Engine, files: list[str]) -> None:
    """Compare with the model, as `opfuse verify --tp` does in a child process."""
    from opfuse.numerics import together
    from opfuse.numerics.whole import Subject

    model, plan = files
    ports = json.loads(Path(plan).read_text())
    parts = {p["name"]: (p["axis"], [np.asarray(own) for own in p["ranks"]]) for p in ports}
    together.Engine = SimpleNamespace(load=lambda path, plugins: engine)
    subject = Subject(Path(model), Path(model).parent, {})
    found = together.compare_rank(Path("bundle"), subject, parts, 0, None, {}, None)
    print(json.dumps([found.passed, len(found.outputs), found.max_rel_err, found.refused]))


def bench(engine: Engine, files: list[str]) -> None:
    """Time it, as `opfuse bench --tp` does in a child process."""
    from opfuse.runtime import timing

    timing.Engine = SimpleNamespace(load=lambda path, **options: engine)
    timing.open_device = lambda device: engine.device
    found = timing.measure(Path("bundle"), {}, 3, 2, 0)
    print(json.dumps([asdict(item) for item in found.ranks]))


def main() -> int:
    """Does what the command line of opfuse would."""
    job, bundle, model, *files = sys.argv[1:]
    try:
        engine = opened(Path(bundle), Path(model))
        if job in ("verify", "bench"):
            {"verify": verify, "bench": bench}[job](engine, files)
        else:
            {"run": run, "serve": serve, "wait": wait, "fail": fail}[job](engine)
    except OpfuseError as error:
        print(f"opfuse: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

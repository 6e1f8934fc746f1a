"""Our part of torch-tensorrt, called through the package itself on a machine without a GPU.

usage: python torch_tensorrt_calls.py PART ANSWER.json FOLDER BACKBONE PRECISION GRAPH ...
with the folder that `build` made on PYTHONPATH; a graph is encoder or fuser

PART is "plugin", in the environment of tensorrt_stubs: every operator of the lowered networks has a converter, and ours
makes the plugin through TensorRT's own registry. Or "engines": the networks are converted and built, all of them, by
TensorRT for RTX, whose builder needs no GPU but takes no plugin: the operator is its GridSample form there.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

MOST = 8


def missing() -> str | None:
    """Why this cannot be done here."""
    for package in ("torch_tensorrt", "dllist", "psutil"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed (pip install --no-deps torch-tensorrt dllist psutil)"
    return None


def build(folder: Path) -> Path:
    """The package without its libraries, which want CUDA: what its builds without a C++ runtime are."""
    spec = importlib.util.find_spec("torch_tensorrt")
    assert spec
    assert spec.submodule_search_locations
    (source,) = spec.submodule_search_locations
    shutil.copytree(source, folder / "torch_tensorrt", ignore=shutil.ignore_patterns("lib", "bin", "*.so", "include"))
    return folder


def import_package(distribution: str) -> Any:
    """The package as if torch was built for CUDA, which it asks when it is imported, and as a distribution's."""
    import torch

    torch.cuda.get_device_capability = lambda *_: (9, 0)
    torch.cuda.current_device = lambda: 0
    torch.cuda.mem_get_info = lambda *_: (1 << 34, 1 << 34)
    torch._C._CudaDeviceProperties = type("_CudaDeviceProperties", (), {})
    importlib.metadata.packages_distributions = lambda: {"torch_tensorrt": [distribution]}
    from streampose.engines.torch_tensorrt import import_torch_tensorrt

    return import_torch_tensorrt()


def modules(backbone: str, precision: str, *graphs: str) -> list[tuple[Any, tuple[Any, ...]]]:
    """Encoder or fuser or both of a network with random weights, each with inputs."""
    import torch

    from streampose.engines.torch_tensorrt import example_inputs, torch_modules
    from streampose.model import fami_pose

    torch.manual_seed(0)
    network = fami_pose(backbone).eval()
    inputs = example_inputs(network, network.input_size, precision, MOST)
    both = zip(("encoder", "fuser"), torch_modules(network, precision), inputs, strict=True)
    return [(module, given) for graph, module, given in both if graph in graphs]


def engines(*network: str) -> dict[str, Any]:
    """Bytes of the engines and of the weights."""
    torch_tensorrt = import_package("torch-tensorrt-rtx")
    from torch_tensorrt.dynamo.conversion import _TRTInterpreter as interpreter

    from streampose.engines import torch_tensorrt as ours
    from streampose.model import align
    from streampose.plugins.deform_conv.reference import deform_conv2d_reference

    assert torch_tensorrt.ENABLED_FEATURES.tensorrt_rtx
    tensorrt_rtx = interpreter.trt

    class Kept:
        """Loading what was built needs a GPU; it is kept as it is."""

        def __init__(self, _logger: Any) -> None:
            pass

        def deserialize_cuda_engine(self, plan: Any) -> Any:
            return SimpleNamespace(serialize=lambda: plan)

    class Module:
        Runtime = Kept

        def __getattr__(self, name: str) -> Any:
            return getattr(tensorrt_rtx, name)

    ours.register_converters(network[1])  # type: ignore[arg-type]
    answer = {}
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(align, "deform_conv2d", deform_conv2d_reference))
        stack.enter_context(mock.patch.object(interpreter, "trt", Module()))
        for module, inputs in modules(*network):
            cache = str(Path(sys.argv[3]) / "timing")
            plan = ours.build_plan(torch_tensorrt, module, inputs, MOST, type(module).__name__, cache)
            answer[type(module).__name__] = {
                "plan": len(plan), "weights": sum(parameter.numel() for name, parameter in module.named_parameters()
                                                  if not name.startswith("network.encoder.")),
            }  # fmt: skip
    return answer


def plugin(*network: str) -> dict[str, Any]:
    """What is not converted, with and without our converter; and what our converter adds to a network."""
    torch_tensorrt = import_package("torch-tensorrt")
    import torch
    from torch_tensorrt.dynamo import CompilationSettings
    from torch_tensorrt.dynamo.conversion import DYNAMO_CONVERTERS
    from torch_tensorrt.dynamo.lowering import get_decompositions, post_lowering, pre_export_lowering

    from streampose.engines import torch_tensorrt as ours
    from streampose.plugins.deform_conv.tensorrt_plugin import register

    storage = network[1]
    settings = CompilationSettings(device=torch_tensorrt.Device(gpu_id=0), require_full_compilation=True)
    DYNAMO_CONVERTERS.set_compilation_settings(settings)
    graphs = []
    for module, inputs in modules(*network):
        program = pre_export_lowering(ours.export_program(module, inputs, MOST), settings)
        graphs.append(post_lowering(program.run_decompositions(get_decompositions(False)).module(), settings))

    def refused() -> list[str]:
        nodes = [node for graph in graphs for node in graph.graph.nodes if node.op == "call_function"]
        return sorted({str(node.target) for node in nodes if node not in DYNAMO_CONVERTERS})

    answer: dict[str, Any] = {"without": refused()}
    register("sm_90")
    ours.register_converters(storage)  # type: ignore[arg-type]
    answer["with"] = refused()
    (fuser,) = graphs
    ours_node = torch.ops.streampose.deform_conv2d.default
    (node,) = (node for node in fuser.graph.nodes if node.target is ours_node)
    answer["added"] = converted(DYNAMO_CONVERTERS, settings, fuser, node)
    return answer


def converted(converters: Any, settings: Any, graph: Any, node: Any) -> dict[str, Any]:
    """Run the registered converter of a node on a network that keeps what is added to it."""
    import numpy as np
    import tensorrt as trt
    import torch

    types = {torch.float16: trt.float16, torch.float32: trt.float32}

    class Tensor(trt.ITensor):  # type: ignore[misc]
        """Of no network: the bindings make them of a builder's only."""

        @classmethod
        def of(cls, dtype: Any, made_by: Any) -> Any:
            tensor = cls.__new__(cls)
            tensor.known, tensor.made_by = dtype, made_by
            return tensor

        @property
        def dtype(self) -> Any:
            return self.known

        @property
        def name(self) -> str:
            return str(self.made_by)

    def layer(dtype: Any, made_by: Any) -> Any:
        return SimpleNamespace(get_output=lambda _: Tensor.of(dtype, made_by), name="")

    plugins = []

    class Network:
        def add_constant(self, _shape: Any, weights: Any) -> Any:
            values = np.array(weights.numpy() if hasattr(weights, "numpy") else weights)
            return layer(trt.float16 if values.dtype == np.float16 else trt.float32, values)

        def add_cast(self, tensor: Any, dtype: Any) -> Any:
            return layer(dtype, f"cast of {tensor.made_by}")

        def add_plugin(self, call: Any, aot: bool) -> Any:
            assert aot
            inputs, shapes, made = call(trt.QuickPluginCreationRequest.STRICT_AOT)
            assert shapes == []
            plugins.append((inputs, made))
            return layer(inputs[0].dtype, "plugin")

    def value(argument: Any) -> Any:
        if not isinstance(argument, torch.fx.Node):
            return argument
        if argument.op == "get_attr":
            return graph.get_parameter(argument.target)
        return Tensor.of(types[argument.meta["val"].dtype], argument.name)

    context = SimpleNamespace(
        net=Network(), compilation_settings=settings, record_weight=lambda *_: None,
        cpu_weights_reference_holder=[], weight_refit_map={}, requires_output_allocator=False,
    )  # fmt: skip
    converter = converters[node][0]
    made = converter(context, node.target, tuple(value(argument) for argument in node.args), {}, node.name)
    ((inputs, instance),) = plugins
    weight = value(node.args[3]).detach().numpy()
    return {
        "types": [str(tensor.dtype) for tensor in inputs],
        "names": [tensor.name for tensor in inputs if isinstance(tensor.made_by, str)],
        "packed": inputs[3].made_by.tolist(), "weight": weight.tolist(), "bias": inputs[4].made_by.tolist(),
        "attributes": {name: int(np.ravel(number)[0]) for name, number in instance.attrs.items()},
        "result": str(made.dtype), "map": str(types[node.args[0].meta["val"].dtype]),
    }  # fmt: skip


if __name__ == "__main__":
    part = {"plugin": plugin, "engines": engines}[sys.argv[1]]
    Path(sys.argv[2]).write_text(json.dumps(part(*sys.argv[4:])), encoding="utf-8")

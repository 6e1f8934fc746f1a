"""Calls the plugin's functions as TensorRT's builder does, through its bindings and registry.

usage: python plugin_calls.py JOBS.json ANSWERS.json, in the environment that tensorrt_stubs.build returns.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import tensorrt as trt
from tensorrt_stubs import Expressions, Extras, readable_expressions

from streampose.plugins.deform_conv import tensorrt_plugin

TYPES = {"fp32": trt.DataType.FLOAT, "fp16": trt.DataType.HALF}
GRID = ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_mem")


def created(attributes: dict[str, int]) -> Any:
    """A plugin as the ONNX parser makes it: creator from the registry, attributes as fields."""
    creator = trt.get_plugin_registry().get_creator("deform_conv", "1", "streampose")
    declared = [(field.name, field.type) for field in creator.field_names]
    assert declared == [(name, trt.PluginFieldType.INT64) for name in tensorrt_plugin.ATTRIBUTES], declared
    fields = [trt.PluginField(name, np.array([attributes[name]]), trt.PluginFieldType.INT64) for name, _ in declared]
    return creator.create_plugin(
        "deform_conv", "streampose", trt.PluginFieldCollection(fields), trt.TensorRTPhase.BUILD,
        trt.QuickPluginCreationRequest.STRICT_AOT,
    )  # fmt: skip


def description(shape: list[int], most: int, type_: Any, layout: Any) -> Any:
    """A tensor in a network whose batch, -1, goes from 1 to `most`."""
    described = trt.DynamicPluginTensorDesc()
    desc = trt.PluginTensorDesc()
    desc.dims, desc.type, desc.format, desc.scale = shape, type_, layout, 1.0
    described.desc = desc
    described.min, described.opt, described.max = (
        [batch if size < 0 else size for size in shape] for batch in (1, max(1, most // 2), most)
    )
    return described


def main(job: dict[str, Any]) -> dict[str, Any]:
    tensorrt_plugin.register("sm_75")
    registration = tensorrt_plugin.register(job["arch"])
    assert registration.kernels == {}
    plugin = created(job["attributes"])
    shapes, stored = job["shapes"], TYPES[job["storage"]]
    types = [stored, TYPES["fp32"], stored, stored, TYPES["fp32"]]
    assert plugin.get_num_outputs() == 1
    (out_type,) = plugin.get_output_data_types(types, [len(shape) for shape in shapes])
    builder = Expressions()
    sizes = []
    for shape in shapes:
        sizes.append([builder.batch() if size < 0 else builder.constant(size) for size in shape])
    (out_shape,) = plugin.get_output_shapes(sizes, [], builder)
    out_sizes = []
    for batch in job["batches"]:
        builder.set_batch(batch)
        out_sizes.append([out_shape[axis].get_constant_value() for axis in range(len(out_shape))])
    constant = [out_shape[axis].is_constant() for axis in range(len(out_shape))]
    tensors = [
        description(shape, 64, type_, trt.TensorFormat.LINEAR)
        for shape, type_ in zip([*job["declared"], [-1, *out_sizes[0][1:]]], [*types, out_type], strict=True)
    ]
    offered = plugin.get_supported_format_combinations(tensors, len(shapes))
    count = len(tensors)
    combinations = [offered[i : i + count] for i in range(0, len(offered), count)]
    launches = []
    for combination in combinations:
        given = [
            description(tensor.desc.dims, 64, found.type, found.format)
            for tensor, found in zip(tensors, combination, strict=True)
        ]
        plugin.configure_plugin(given[:-1], given[-1:])
        tactics = plugin.get_valid_tactics()
        plugin.set_tactic(0)
        launch, extras = SimpleNamespace(), Extras()
        plugin.get_launch_params(sizes, given, len(shapes), launch, extras, builder)
        concrete = [tensor.desc for tensor in given]
        name, ptx = plugin.get_kernel(concrete[:-1], concrete[-1:])
        numbers = {}
        for batch in job["batches"]:
            builder.set_batch(batch)
            grid = [getattr(launch, key).number() for key in GRID]
            numbers[batch] = {"grid": grid, "extras": extras.numbers()}
        launches.append({
            "types": [str(found.type) for found in combination],
            "formats": [str(found.format) for found in combination],
            "tactics": tactics, "kernel": name, "ptx": ptx.decode(), "numbers": numbers,
        })  # fmt: skip
    return {
        "out_type": str(out_type), "out_sizes": out_sizes, "constant": constant, "launches": launches,
        "kernels": {entry: kernel.isa for entry, kernel in registration.kernels.items()},
    }  # fmt: skip


if __name__ == "__main__":
    readable_expressions()
    jobs = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(json.dumps([main(job) for job in jobs]), encoding="utf-8")

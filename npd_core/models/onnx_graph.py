"""Networks from ONNX files: a graph of known operators with its weights, no code. Needs the extra `onnx`."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from npd_core.errors import CheckpointError, ConfigError, first_line

ONNX = "onnx"
"""The name of the architecture of such a network; its graph is kept beside its weights."""
GRAPH = "network.onnx"
MAX_NODES = 20_000
MAX_BYTES = 700_000_000
OPSET = 17
"""Version of the operators that `onnx2torch` converts; later ones are rewritten where they say the same."""


def network_from_onnx(path: Path) -> nn.Module:
    """Build the network of an ONNX file with its weights, in eval mode.

    Raises:
        ConfigError: the packages are not installed.
        CheckpointError: too large, damaged, with data in other files, or with operators that are not
        supported, which
            are named.
    """
    try:
        import onnx
        import onnx2torch
    except ImportError as error:
        raise ConfigError(
            "Reading ONNX needs the packages onnx and onnx2torch: run `pip install .[onnx]`."
        ) from error
    if path.stat().st_size > MAX_BYTES:
        raise CheckpointError(
            f"The ONNX file has more than {MAX_BYTES / 1e6:.0f} MB: upload a smaller network."
        )
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # the parser raises its own class
        raise CheckpointError(f"The ONNX file is damaged ({first_line(error)}): export it again.") from error
    _check(model)
    _lower(model)
    _check_operators(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net: nn.Module = onnx2torch.convert(model)
    except Exception as error:  # whatever a graph that contradicts itself leads to
        raise CheckpointError(
            f"The graph of the ONNX file cannot be converted ({first_line(error)}): export it with "
            "opset_version=17."
        ) from error
    return net.eval()


def _check(model: Any) -> None:
    """Refuse what is not one bounded graph from images to logits."""
    import onnx

    graph = model.graph
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or len(tensor.external_data):
            raise CheckpointError(
                f"The ONNX file keeps {tensor.name[:60]!r} in another file, which is not read: export it "
                "with "
                "external_data=False."
            )
    if not len(graph.node):
        raise CheckpointError("The ONNX file has no operators: export it again.")
    if len(graph.node) > MAX_NODES:
        raise CheckpointError(f"The ONNX file has {len(graph.node)} operators, at most {MAX_NODES} are read.")
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1 or not graph.output:
        raise CheckpointError(
            f"The ONNX file has {len(inputs)} inputs and {len(graph.output)} outputs: export a network of "
            "one batch "
            "of images that returns logits."
        )
    batch = inputs[0].type.tensor_type.shape.dim[:1]
    if batch and batch[0].dim_value == 1:
        raise CheckpointError(
            "The ONNX file takes one image at a time: export it with dynamic_axes={'x': [0]}, or "
            "dynamic_shapes."
        )
    del graph.output[1:]


def _tensors(model: Any) -> Iterator[Any]:
    """Yield every tensor of a model, those in attributes and inner graphs included."""
    waiting = [model.graph]
    while waiting:
        graph = waiting.pop()
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield sparse.values
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                if attribute.HasField("g"):
                    waiting.append(attribute.g)
                waiting.extend(attribute.graphs)


def _check_operators(model: Any) -> None:
    from onnx2torch.node_converters.registry import get_converter

    versions = {opset.domain: opset.version for opset in model.opset_import}
    lacking = set()
    for node in model.graph.node:
        try:
            get_converter(
                domain=node.domain, operation_type=node.op_type, version=versions.get(node.domain, OPSET)
            )
        except NotImplementedError:
            lacking.add(f"{node.domain}.{node.op_type}".lstrip("."))
    if lacking:
        shown = ", ".join(sorted(name[:40] for name in lacking)[:8])
        raise CheckpointError(
            f"The ONNX file uses {shown}, which is not supported: export it with opset_version=17, or repair "
            "the "
            "network in Python with `npd.polarize`."
        )


def _lower(model: Any) -> None:
    """Rewrite operators of later versions in those of OPSET, and drop copies of weights."""
    import onnx

    graph = model.graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            held[node.output[0]] = node.attribute[0].t
    same: dict[str, str] = {}
    outputs = {value.name for value in graph.output}
    kept = []
    fresh = (f"lowered_{k}" for k in itertools.count())
    for node in graph.node:
        for k, name in enumerate(node.input):
            node.input[k] = same.get(name, name)
        if node.op_type == "Identity" and node.output[0] not in outputs:
            same[node.output[0]] = node.input[0]
        elif node.op_type == "Gelu":
            kept += _gelu(graph, node, fresh)
        else:
            _to_attributes(node, held)
            kept.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(kept)
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = min(opset.version, OPSET)


def _to_attributes(node: Any, held: dict[str, Any]) -> None:
    """Axes of a reduction are an input since version 18; `allowzero` and `noop_with_empty_axes` keep their
    default."""
    import onnx
    from onnx import numpy_helper

    if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum" and len(node.input) == 2:
        if node.input[1] not in held:
            return
        axes = numpy_helper.to_array(held[node.input[1]]).flatten().tolist()
        del node.input[1:]
        node.attribute.append(onnx.helper.make_attribute("axes", axes))
    sizes = held.get(node.input[1]) if node.op_type == "Reshape" else None
    if sizes is not None and (numpy_helper.to_array(sizes) != 0).all():
        for attribute in node.attribute:
            attribute.i = 0  # without a zero among the sizes, `allowzero` says nothing
    later = [a for a in node.attribute if a.name in ("allowzero", "noop_with_empty_axes") and not a.i]
    later += [a for a in node.attribute if a.name == "num_outputs" and node.op_type == "Split"]
    for attribute in later:
        node.attribute.remove(attribute)


def _gelu(graph: Any, node: Any, fresh: Iterator[str]) -> list[Any]:
    """Gelu of version 20 as 0.5 x (1 + erf(x / sqrt 2)), or with tanh where the node says so."""
    import onnx
    from onnx import helper

    x, made = node.input[0], []
    tanh = any(a.name == "approximate" and a.s == b"tanh" for a in node.attribute)

    def constant(value: float) -> str:
        name = next(fresh)
        graph.initializer.append(helper.make_tensor(name, onnx.TensorProto.FLOAT, [], [value]))
        return name

    def apply(kind: str, *inputs: str, output: str | None = None) -> str:
        name = output or next(fresh)
        made.append(helper.make_node(kind, list(inputs), [name], name=next(fresh)))
        return name

    if tanh:
        cube = apply("Mul", apply("Mul", apply("Mul", x, x), x), constant(0.044715))
        curve = apply("Tanh", apply("Mul", apply("Add", x, cube), constant(math.sqrt(2 / math.pi))))
    else:
        curve = apply("Erf", apply("Mul", x, constant(math.sqrt(0.5))))
    apply("Mul", apply("Mul", x, constant(0.5)), apply("Add", curve, constant(1.0)), output=node.output[0])
    return made

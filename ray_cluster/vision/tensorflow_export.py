"""TensorFlow functions as frozen graphs: weights as constants, one piece. Imports TensorFlow."""

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from services.contracts.errors import InternalError

IMAGE = "image:0"
"""The input of an exported graph."""
RESULT = "result:0"
"""Its output."""


def freeze(function: Callable[[tf.Tensor], tf.Tensor], argument: tf.TensorSpec) -> Any:
    """A concrete function of one tensor with its variables as constants."""
    return convert_variables_to_constants_v2(tf.function(function).get_concrete_function(argument))


def encode(frozen: Any) -> bytes:
    """What `freeze` made of a function as a serialised `GraphDef` from `IMAGE` to `RESULT`; the same bytes each time.

    Raises `InternalError` for a function that calls others.
    """
    graph_def = frozen.graph.as_graph_def()
    functions = {each.signature.name: each for each in graph_def.library.function}
    constants = {node.name: node for node in graph_def.node if node.op == "Const"}
    # TensorFlow's own names count what the process made before.
    ends = {IMAGE: frozen.inputs[0], RESULT: frozen.outputs[0]}
    names = {tensor.op.name: end.removesuffix(":0") for end, tensor in ends.items()}
    for node in graph_def.node:
        names.setdefault(node.name, f"n{len(names)}")
        if node.op in ("PartitionedCall", "StatefulPartitionedCall"):
            _inline(node, functions[node.attr["f"].func.name], constants)
    for node in graph_def.node:
        node.name = names[node.name]
        node.input[:] = [_renamed(each, names) for each in node.input]
        node.attr.pop("_class", None)  # which others it was to be near
    graph_def.ClearField("library")
    return graph_def.SerializeToString(deterministic=True)


def _inline(call: Any, function: Any, constants: Mapping[str, Any]) -> None:
    """Makes a depthwise convolution of the call of one.

    Keras has XLA compile any convolution in groups, which TensorFlow does not know on CPUs. XLA would time its kernels
    on a GPU, and a graph of one piece loads anywhere. Those of the backbones have one channel in each group.
    """
    convolutions = [each for each in function.node_def if each.op == "Conv2D"]
    kernels = [each for each in call.input if each in constants]
    others = {each.op for each in function.node_def} - {"Conv2D", "Identity", "NoOp"}
    if others or len(convolutions) != 1 or len(call.input) != 2 or len(kernels) != 1:
        raise InternalError(f"{call.name} calls a function that is not one convolution")
    (kernel,), (convolution,) = kernels, convolutions
    tensor = constants[kernel].attr["value"].tensor
    height, width, group, channels = tf.make_ndarray(tensor).shape
    if group != 1:
        raise InternalError(f"{call.name} has groups of {group} channels")
    depthwise = tf.make_ndarray(tensor).reshape(height, width, channels, 1)
    tensor.CopyFrom(tf.make_tensor_proto(depthwise))
    call.op = "DepthwiseConv2dNative"
    call.input[:] = [*(each for each in call.input if each != kernel), kernel]
    call.attr.clear()
    for name in ("T", "strides", "padding", "explicit_paddings", "data_format", "dilations"):
        call.attr[name].CopyFrom(convolution.attr[name])


def _renamed(source: str, names: dict[str, str]) -> str:
    """An input of a node: `name`, `name:1`, or `^name` for one that is only waited for."""
    waits, named = ("^", source[1:]) if source.startswith("^") else ("", source)
    name, colon, output = named.partition(":")
    return f"{waits}{names[name]}{colon}{output}"

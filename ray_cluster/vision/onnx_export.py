"""TensorFlow functions as ONNX models. Imports TensorFlow.

Knows the operations that backbones, their preprocessing and heads are made of, and refuses any other by name. In ONNX
convolution and pooling want the channels first (BCHW), in TensorFlow they are last (BHWC). What lies between two of
them is computed with the channels first as well, so hardly anything is ever transposed.

Array axes: B batch, H height, W width, C channel, O and I channel of a kernel's output and input.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import tensorflow as tf
from onnx import TensorProto, helper, numpy_helper
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.lite.python.util import get_grappler_config, run_graph_optimizations
from tensorflow.python.framework.function_def_to_graph import function_def_to_graph

from ray_cluster.vision.tensorflow_export import freeze
from services.contracts.errors import InternalError

OPSET = 17
_IR_VERSION = 8
_FIRST, _LAST = (0, 3, 1, 2), (0, 2, 3, 1)
"""Axes of a BHWC array as BCHW, and the other way round."""
_IMAGE_RANK = 4

Array = npt.NDArray[Any]


def convert(function: Callable[[tf.Tensor], tf.Tensor], argument: tf.TensorSpec, output: str) -> bytes:
    """A function of one tensor as an ONNX model with that output, weights as they are; the same bytes each time.

    The input is called as the argument is, and takes any number of images where the argument does. Raises
    `InternalError` for an operation that has no counterpart here.
    """
    return encode(freeze(function, argument), argument.name or "input", output)


def encode(frozen: Any, name: str, output: str) -> bytes:
    """`convert` of a function that is frozen already, and whose input is called `name`."""
    config = get_grappler_config(["constfold"])
    folded: Any = run_graph_optimizations(
        frozen.graph.as_graph_def(), frozen.inputs, frozen.outputs, config, frozen.graph
    )
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(folded, name="")
    source, result = (graph.get_tensor_by_name(each.name) for each in (frozen.inputs[0], frozen.outputs[0]))
    writer = _Writer({each.signature.name: each for each in folded.library.function})
    writer.keep(source, name)
    for operation in graph.get_operations():
        _write(writer, operation)
    writer.node("Identity", [writer.last(result)], named=output)
    ends = [
        helper.make_tensor_value_info(name, _TYPES[tensor.dtype], ["batch" if d is None else d for d in tensor.shape])
        for name, tensor in ((name, source), (output, result))
    ]
    model = helper.make_model(
        helper.make_graph(writer.nodes, "rekindle", ends[:1], ends[1:], writer.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="rekindle",
    )
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


_Key = tuple[tf.Graph, str]
"""Names a tensor: those of one graph have different names."""


@dataclass(frozen=True, slots=True)
class _Value:
    """A tensor as far as it was written."""

    name: str
    first: bool
    """Whether its channels come first."""


class _Writer:
    """The ONNX graph so far. Names are numbers, in order, so they are the same each time."""

    def __init__(self, functions: dict[str, FunctionDef]) -> None:
        """`functions` are those that TensorFlow's graph calls, by name."""
        self.functions = functions
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        self._values: dict[_Key, _Value] = {}
        self._turned: dict[tuple[_Key, bool], str] = {}
        self._arrays: dict[_Key, Array] = {}

    def keep(self, tensor: tf.Tensor, name: str, *, first: bool = False) -> None:
        self._values[_key(tensor)] = _Value(name, first)

    def keep_array(self, tensor: tf.Tensor, array: Array) -> None:
        self._arrays[_key(tensor)] = array

    def node(self, kind: str, inputs: Sequence[str], named: str | None = None, **attributes: Any) -> str:
        name = named or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def constant(self, array: npt.ArrayLike) -> str:
        name = f"w{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def array(self, tensor: tf.Tensor) -> Array:
        found = self._arrays.get(_key(tensor))
        if found is None:
            raise InternalError(f"{tensor.op.type} {tensor.op.name} should be a constant")
        return found

    def is_array(self, tensor: tf.Tensor) -> bool:
        return _key(tensor) in self._arrays

    def is_first(self, tensor: tf.Tensor) -> bool:
        return not self.is_array(tensor) and self._values[_key(tensor)].first

    def last(self, tensor: tf.Tensor) -> str:
        return self._as(tensor, first=False)

    def first(self, tensor: tf.Tensor) -> str:
        return self._as(tensor, first=True)

    def as_is(self, tensor: tf.Tensor) -> str:
        return self._as(tensor, first=self.is_first(tensor))

    def _as(self, tensor: tf.Tensor, *, first: bool) -> str:
        key = (_key(tensor), first)
        if key not in self._turned:
            self._turned[key] = self._turn(tensor, first)
        return self._turned[key]

    def _turn(self, tensor: tf.Tensor, first: bool) -> str:
        if self.is_array(tensor):
            array = self.array(tensor)
            if first and array.ndim:  # broadcast from the last axis on, where the channels were
                array = array.reshape((1,) * (_IMAGE_RANK - array.ndim) + array.shape).transpose(_FIRST)
            return self.constant(array)
        value = self._values[_key(tensor)]
        if value.first == first:
            return value.name
        return self.node("Transpose", [value.name], perm=_FIRST if first else _LAST)


def _key(tensor: tf.Tensor) -> _Key:
    return tensor.graph, tensor.name


_TYPES = {tf.uint8: TensorProto.UINT8, tf.float16: TensorProto.FLOAT16, tf.float32: TensorProto.FLOAT}
_ALIKE = {
    "Relu": "Relu",
    "Sigmoid": "Sigmoid",
    "Erf": "Erf",
    "Exp": "Exp",
    "Neg": "Neg",
    "Sqrt": "Sqrt",
    "Tanh": "Tanh",
    "Add": "Add",
    "AddV2": "Add",
    "BiasAdd": "Add",
    "Sub": "Sub",
    "Mul": "Mul",
    "RealDiv": "Div",
    "Maximum": "Max",
    "Minimum": "Min",
}
"""Element by element, of one or two tensors, by TensorFlow's name."""


def _write(writer: _Writer, operation: tf.Operation) -> None:
    kind = operation.type
    if kind in ("NoOp", "Placeholder"):
        return
    if kind == "Const":
        writer.keep_array(operation.outputs[0], tf.make_ndarray(operation.get_attr("value")))
    elif all(each.dtype in (tf.int32, tf.int64) for each in operation.outputs):
        return  # it computes with shapes, which are known or, where they depend on the batch, not needed
    elif kind in _ALIKE:
        _elementwise(writer, operation, _ALIKE[kind])
    elif kind in _WRITERS:
        _WRITERS[kind](writer, operation)
    else:
        raise InternalError(f"there is no ONNX for TensorFlow's {kind} ({operation.name})")


def _elementwise(writer: _Writer, operation: tf.Operation, kind: str, **attributes: Any) -> None:
    name, first = _combined(writer, operation, kind, **attributes)
    writer.keep(operation.outputs[0], name, first=first)


def _combined(writer: _Writer, operation: tf.Operation, kind: str, **attributes: Any) -> tuple[str, bool]:
    """A node of an operation's inputs, element by element, and whether the channels of what it gives come first."""
    inputs = list(operation.inputs)
    images = [each for each in inputs if not writer.is_array(each)]
    first = any(writer.is_first(each) for each in images) and all(each.shape.rank == _IMAGE_RANK for each in images)
    named = [writer.first(each) if first else writer.last(each) for each in inputs]
    return writer.node(kind, named, **attributes), first


def _identity(writer: _Writer, operation: tf.Operation) -> None:
    for source, result in zip(operation.inputs, operation.outputs, strict=True):
        _same(writer, source, result)


def _same(writer: _Writer, source: tf.Tensor, result: tf.Tensor) -> None:
    if writer.is_array(source):
        writer.keep_array(result, writer.array(source))
    else:
        writer.keep(result, writer.as_is(source), first=writer.is_first(source))


def _call(writer: _Writer, operation: tf.Operation) -> None:
    """A function of the graph's, written as if it stood there. Keras has one for convolutions in groups."""
    definition = writer.functions[operation.get_attr("f").name]
    body = function_def_to_graph(definition, input_shapes=[each.shape for each in operation.inputs])
    for given, inner in zip(operation.inputs, body.inputs, strict=True):
        _same(writer, given, inner)
    for each in body.get_operations():
        _write(writer, each)
    for inner, result in zip(body.outputs, operation.outputs, strict=True):
        _same(writer, inner, result)


def _cast(writer: _Writer, operation: tf.Operation) -> None:
    _elementwise(writer, operation, "Cast", to=_TYPES[operation.get_attr("DstT")])


def _relu6(writer: _Writer, operation: tf.Operation) -> None:
    source = operation.inputs[0]
    ends = [writer.constant(np.float32(end)) for end in (0, 6)]
    name = writer.node("Clip", [writer.as_is(source), *ends])
    writer.keep(operation.outputs[0], name, first=writer.is_first(source))


def _rsqrt(writer: _Writer, operation: tf.Operation) -> None:
    source = operation.inputs[0]
    root = writer.node("Sqrt", [writer.as_is(source)])
    writer.keep(operation.outputs[0], writer.node("Reciprocal", [root]), first=writer.is_first(source))


def _erfc(writer: _Writer, operation: tf.Operation) -> None:
    source = operation.inputs[0]
    error = writer.node("Erf", [writer.as_is(source)])
    name = writer.node("Sub", [writer.constant(np.float32(1)), error])
    writer.keep(operation.outputs[0], name, first=writer.is_first(source))


def _squared_difference(writer: _Writer, operation: tf.Operation) -> None:
    name, first = _combined(writer, operation, "Sub")
    writer.keep(operation.outputs[0], writer.node("Mul", [name, name]), first=first)


def _window(operation: tf.Operation, size: str | None = None) -> dict[str, Any]:
    """Attributes of a convolution or, with `size`, of pooling."""
    if operation.get_attr("data_format") != b"NHWC":
        raise InternalError(f"{operation.name} does not have its channels last")
    padding = operation.get_attr("padding")
    if padding not in (b"SAME", b"VALID"):
        raise InternalError(f"{operation.name} has padding {padding}")
    window = {"strides": operation.get_attr("strides")[1:3], "auto_pad": {b"SAME": "SAME_UPPER"}.get(padding, "VALID")}
    if size is not None:
        return window | {"kernel_shape": operation.get_attr(size)[1:3]}
    return window | {"dilations": operation.get_attr("dilations")[1:3]}


def _side(tensor: tf.Tensor, axis: int) -> int:
    side = tensor.shape[axis]
    if side is None:
        raise InternalError(f"{tensor.op.name} may have any size")
    return int(side)


def _convolution(writer: _Writer, operation: tf.Operation) -> None:
    images, kernel = operation.inputs
    kernel_OIHW = writer.array(kernel).transpose(3, 2, 0, 1)
    groups = _side(images, -1) // _side(kernel, 2)
    name = writer.node("Conv", [writer.first(images), writer.constant(kernel_OIHW)], group=groups, **_window(operation))
    writer.keep(operation.outputs[0], name, first=True)


def _depthwise_convolution(writer: _Writer, operation: tf.Operation) -> None:
    images, kernel = operation.inputs
    height, width, channels, multiplier = writer.array(kernel).shape
    kernel_OIHW = writer.array(kernel).transpose(2, 3, 0, 1).reshape(channels * multiplier, 1, height, width)
    named = [writer.first(images), writer.constant(kernel_OIHW)]
    name = writer.node("Conv", named, group=channels, **_window(operation))
    writer.keep(operation.outputs[0], name, first=True)


def _normalisation(writer: _Writer, operation: tf.Operation) -> None:
    images, *parameters = operation.inputs
    if operation.get_attr("is_training"):
        raise InternalError(f"{operation.name} is in training")
    named = [writer.first(images), *(writer.constant(writer.array(each)) for each in parameters)]
    name = writer.node("BatchNormalization", named, epsilon=operation.get_attr("epsilon"))
    writer.keep(operation.outputs[0], name, first=True)


def _pooling(kind: str) -> Callable[[_Writer, tf.Operation], None]:
    def write(writer: _Writer, operation: tf.Operation) -> None:
        name = writer.node(kind, [writer.first(operation.inputs[0])], **_window(operation, "ksize"))
        writer.keep(operation.outputs[0], name, first=True)

    return write


def _axes(writer: _Writer, tensor: tf.Tensor, rank: int, *, first: bool) -> list[int]:
    """Axes of TensorFlow's, as constants, in the order that the value has."""
    axes = [int(axis) % rank for axis in writer.array(tensor).reshape(-1)]
    return [_FIRST.index(axis) for axis in axes] if first else axes


def _mean(writer: _Writer, operation: tf.Operation) -> None:
    source, axes = operation.inputs
    keeps, first = bool(operation.get_attr("keep_dims")), writer.is_first(source)
    named = _axes(writer, axes, source.shape.rank, first=first)
    if first and not keeps and sorted(named) != [2, 3]:
        raise InternalError(f"{operation.name} takes a mean over axes that leave more than the channels")
    name = writer.node("ReduceMean", [writer.as_is(source)], axes=sorted(named), keepdims=int(keeps))
    writer.keep(operation.outputs[0], name, first=first and keeps)


def _pad(writer: _Writer, operation: tf.Operation) -> None:
    source, paddings, *value = operation.inputs
    first = writer.is_first(source)
    amounts = writer.array(paddings)
    if first:
        amounts = amounts[list(_FIRST)]
    named = [writer.as_is(source), writer.constant(amounts.T.reshape(-1).astype(np.int64))]
    named += [writer.constant(writer.array(each)) for each in value]
    writer.keep(operation.outputs[0], writer.node("Pad", named), first=first)


def _concatenation(writer: _Writer, operation: tf.Operation) -> None:
    *sources, axis = operation.inputs
    first = any(writer.is_first(each) for each in sources)
    (place,) = _axes(writer, axis, sources[0].shape.rank, first=first)
    named = [writer.first(each) if first else writer.last(each) for each in sources]
    writer.keep(operation.outputs[0], writer.node("Concat", named, axis=place), first=first)


def _reversal(writer: _Writer, operation: tf.Operation) -> None:
    source, axes = operation.inputs
    first = writer.is_first(source)
    (place,) = _axes(writer, axes, source.shape.rank, first=first)
    (axis,) = _axes(writer, axes, source.shape.rank, first=False)
    backwards = writer.constant(np.arange(_side(source, axis))[::-1].astype(np.int64))
    name = writer.node("Gather", [writer.as_is(source), backwards], axis=place)
    writer.keep(operation.outputs[0], name, first=first)


def _reshaping(writer: _Writer, operation: tf.Operation) -> None:
    source, result = operation.inputs[0], operation.outputs[0]
    sides = [-1 if side is None else int(side) for side in result.shape]
    if sides.count(-1) == 1 or -1 not in sides:
        name = writer.node("Reshape", [writer.last(source), writer.constant(np.array(sides, np.int64))])
        writer.keep(result, name)
    elif source.op.type == "MatMul" or all(each.type == "MatMul" for each in result.consumers()):
        # TensorFlow multiplies matrices only, so it makes one of an image and an image of the product. ONNX multiplies
        # along the last axis of anything.
        writer.keep(result, writer.last(source))
    else:
        raise InternalError(f"{operation.name} has more than one side of any size")


def _transposition(writer: _Writer, operation: tf.Operation) -> None:
    source, axes = operation.inputs
    named = [int(axis) for axis in writer.array(axes)]
    if named == sorted(named):
        _same(writer, source, operation.outputs[0])
    else:
        writer.keep(operation.outputs[0], writer.node("Transpose", [writer.last(source)], perm=named))


def _product(writer: _Writer, operation: tf.Operation) -> None:
    left, right = operation.inputs
    if operation.get_attr("transpose_a") or operation.get_attr("transpose_b"):
        raise InternalError(f"{operation.name} transposes")
    writer.keep(operation.outputs[0], writer.node("MatMul", [writer.last(left), writer.last(right)]))


def _softmax(writer: _Writer, operation: tf.Operation) -> None:
    writer.keep(operation.outputs[0], writer.node("Softmax", [writer.last(operation.inputs[0])], axis=-1))


_WRITERS: dict[str, Callable[[_Writer, tf.Operation], None]] = {
    "Identity": _identity,
    "IdentityN": _identity,
    "StopGradient": _identity,
    "StatefulPartitionedCall": _call,
    "PartitionedCall": _call,
    "Cast": _cast,
    "Relu6": _relu6,
    "Rsqrt": _rsqrt,
    "Erfc": _erfc,
    "SquaredDifference": _squared_difference,
    "Conv2D": _convolution,
    "DepthwiseConv2dNative": _depthwise_convolution,
    "FusedBatchNormV3": _normalisation,
    "MaxPool": _pooling("MaxPool"),
    "AvgPool": _pooling("AveragePool"),
    "Mean": _mean,
    "Pad": _pad,
    "PadV2": _pad,
    "ConcatV2": _concatenation,
    "ReverseV2": _reversal,
    "Reshape": _reshaping,
    "Transpose": _transposition,
    "Squeeze": _reshaping,
    "ExpandDims": _reshaping,
    "MatMul": _product,
    "Softmax": _softmax,
}

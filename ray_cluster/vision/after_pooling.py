"""What a network does after its pooling, in NumPy, and its gradient.

Most networks do nothing there, or apply one linear layer; ConvNeXt normalises. Everything is computed in float64 by
reverse-mode differentiation over the few operators that the converter makes of these.

Array axes: C channel of the map (and of the pooled values), K output.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert.schema_py_generated import BuiltinOperator

from ray_cluster.vision.pooled_graphs import Operation, PooledGraph
from services.contracts.errors import InternalError

Array = npt.NDArray[np.float64]
_Pull = Callable[[Array], Sequence[Array]]
"""From an output's gradient to its inputs' gradients, in order; inputs left out at the end get none."""


def output_and_gradient(
    graph: PooledGraph, pooled_C: npt.NDArray[np.floating[Any]], direction_K: npt.NDArray[np.floating[Any]]
) -> tuple[Array, Array]:
    """The graph's output [K] for these pooled values, and the gradient [C] of its product with `direction_K`.

    Raises `InternalError` for an operator that is not known here.
    """
    values = {tensor: value.astype(np.float64) for tensor, value in graph.constants.items()}
    values[graph.pooled_tensor] = pooled_C.astype(np.float64).reshape(graph.shapes[graph.pooled_tensor])
    pulls: list[tuple[Operation, _Pull]] = []
    for operation in graph.operations:
        inputs = [values[tensor] for tensor in operation.inputs if tensor >= 0]
        value, pull = _apply(operation, inputs, graph.shapes[operation.output])
        values[operation.output] = value
        pulls.append((operation, pull))
    output = values[graph.output_tensor]
    gradients = {graph.output_tensor: direction_K.astype(np.float64).reshape(output.shape)}
    for operation, pull in reversed(pulls):
        for tensor, pulled in zip(operation.inputs, pull(gradients.pop(operation.output)), strict=False):
            gradients[tensor] = gradients.get(tensor, 0) + _unbroadcast(pulled, values[tensor].shape)
    return output.ravel(), gradients[graph.pooled_tensor].ravel()


def _apply(operation: Operation, inputs: Sequence[Array], shape: tuple[int, ...]) -> tuple[Array, _Pull]:
    """The operator's value, and how gradients go back through it."""
    a, *more = inputs
    match operation.kind:
        case BuiltinOperator.ADD:
            return a + more[0], lambda g: (g, g)
        case BuiltinOperator.MUL:
            return a * more[0], lambda g: (g * more[0], g * a)
        case BuiltinOperator.SQUARED_DIFFERENCE:
            difference = a - more[0]
            return difference**2, lambda g: (2 * difference * g, -2 * difference * g)
        case BuiltinOperator.NEG:
            return -a, lambda g: (-g,)
        case BuiltinOperator.RSQRT:
            root = a**-0.5
            return root, lambda g: (-0.5 * root**3 * g,)
        case BuiltinOperator.MEAN:
            axes = tuple(int(axis) for axis in more[0].ravel())
            kept = a.mean(axis=axes, keepdims=True)
            share = kept.size / a.size
            return kept.reshape(shape), lambda g: (np.broadcast_to(g.reshape(kept.shape) * share, a.shape),)
        case BuiltinOperator.RESHAPE:
            return a.reshape(shape), lambda g: (g.reshape(a.shape),)
        case BuiltinOperator.FULLY_CONNECTED:
            weights, bias = more[0], more[1] if len(more) > 1 else 0.0
            row = a.reshape(1, -1) @ weights.T + bias
            return row.reshape(shape), lambda g: ((g.reshape(row.shape) @ weights).reshape(a.shape),)
        case kind:
            raise InternalError(f"the network has an operator {kind} after its last mean: it cannot be explained")


def _unbroadcast(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Summed over the axes along which a value of this shape was repeated."""
    extra = gradient.ndim - len(shape)
    repeated = [axis + extra for axis, length in enumerate(shape) if length == 1 != gradient.shape[axis + extra]]
    return gradient.sum(axis=(*range(extra), *repeated)).reshape(shape)

"""The types of machines that the cluster knows, with what Ray must know of them before the first one runs."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """What one machine has."""

    cpus: int
    gpus: int
    accelerator: str
    """As Ray finds it on the machine: the value of its label `ray.io/accelerator-type`."""


SHAPES = {
    "g4dn.xlarge": Shape(4, 1, "T4"),
    "g4dn.2xlarge": Shape(8, 1, "T4"),
    "g4dn.4xlarge": Shape(16, 1, "T4"),
    "g5.xlarge": Shape(4, 1, "A10G"),
    "g5.2xlarge": Shape(8, 1, "A10G"),
    "g5.4xlarge": Shape(16, 1, "A10G"),
    "g6.xlarge": Shape(4, 1, "L4"),
    "g6.2xlarge": Shape(8, 1, "L4"),
    "g6.4xlarge": Shape(16, 1, "L4"),
    "g6e.xlarge": Shape(4, 1, "L40S"),
    "g6e.2xlarge": Shape(8, 1, "L40S"),
}

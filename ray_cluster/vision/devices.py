"""What a machine computes on, by the names that fingerprints have."""

import platform
from functools import cache
from pathlib import Path

_INTERESTING = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "sve")


@cache
def cpu_name() -> str:
    """`cpu:<architecture>:<what its vector units can do>`."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        words = set()
    return f"cpu:{platform.machine()}:{','.join(word for word in _INTERESTING if word in words)}"


def gpu_name() -> str | None:
    """The first GPU's, as TensorFlow calls it; None where it sees none. Loads TensorFlow, which takes seconds."""
    import tensorflow as tf  # noqa: PLC0415 - see above

    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return None
    return str(tf.config.experimental.get_device_details(gpus[0]).get("device_name", "gpu"))

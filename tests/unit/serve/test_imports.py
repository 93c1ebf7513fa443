"""What a replica's process loads."""

import subprocess
import sys


def test_a_replica_loads_neither_tensorflow_nor_what_only_explanations_need() -> None:
    code = (
        "import sys, ray_cluster.serve.application\n"
        "unwanted = {'tensorflow', 'keras', 'torch', 'jax', 'ai_edge_litert.schema_py_generated'}\n"
        "print(sorted(unwanted & set(sys.modules)), 'ai_edge_litert' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert shown.stdout.splitlines()[-1] == "[] True"

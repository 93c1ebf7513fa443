"""What the machine that starts a cluster keeps of it."""

import os
import secrets
from pathlib import Path


class Home:
    """A folder with the cluster's YAML, its token, and the containers' environments.

    There are secrets in it: its owner alone can read it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.cluster_yaml = self.folder / "cluster.yaml"
        self.everywhere = self.folder / "everywhere"
        """Copied to every machine."""
        self.gateway_env = self.folder / "gateway.env"

    def ray_token(self) -> str:
        """The cluster's token, made when it is asked for first."""
        path = self.folder / "ray-token"
        if not path.is_file():
            self.write(path, secrets.token_hex(32))
        return path.read_text()

    def write(self, path: Path, text: str) -> None:
        """The whole file or, when interrupted, the old one."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.new")
        fresh.unlink(missing_ok=True)
        with open(fresh, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(text)
        fresh.replace(path)

"""Packs a folder as a container image file (docker-archive), or as one more layer of another.

Only the file is made here; `images` decides what is in it and who loads it.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any


def layer_of(root: Path, under: str, folder: Path) -> Path:
    """A layer file of what is in `root`, placed in the folder `under` of the image.

    GNU tar, since Python's takes minutes for a system's 10,000 files; same input, same bytes.
    """
    layer = folder / "layer.tar"
    command = [
        "tar",
        "--sort=name",
        "--mtime=@0",
        "--numeric-owner",
        "-C",
        str(root),
        "-cf",
        str(layer),
    ]
    if under:
        command += [f"--transform=flags=rSh;s,^\\.,{under},"]
    subprocess.run([*command, "."], check=True)
    return layer


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def new_config(environment: list[str], command: list[str]) -> dict[str, Any]:
    return {
        "architecture": "amd64" if os.uname().machine == "x86_64" else "arm64",
        "os": "linux",
        "config": {"Env": environment, "Cmd": command},
        "rootfs": {"type": "layers", "diff_ids": []},
    }


def add_bytes(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def write_image(
    *, name: str, out: Path, layer: Path, config: dict[str, Any], base: Path | None
) -> None:
    """Writes the image file: the base's layers (if any), then `layer`."""
    layers: list[str] = []
    with tarfile.open(out, "w") as archive:
        if base is not None:
            with tarfile.open(base) as source:
                for inherited in manifest_of(source)["Layers"]:
                    entry = source.getmember(inherited)
                    archive.addfile(entry, source.extractfile(entry))
                    layers.append(inherited)
        digest = digest_of(layer)
        config["rootfs"]["diff_ids"].append(f"sha256:{digest}")
        archive.add(layer, f"{digest}.tar")
        layers.append(f"{digest}.tar")
        text = json.dumps(config).encode()
        config_name = hashlib.sha256(text).hexdigest() + ".json"
        add_bytes(archive, config_name, text)
        manifest = [{"Config": config_name, "RepoTags": [name], "Layers": layers}]
        add_bytes(archive, "manifest.json", json.dumps(manifest).encode())


def read_json(archive: tarfile.TarFile, name: str) -> Any:
    file = archive.extractfile(name)
    if file is None:
        raise SystemExit(f"`{name}` is no file in the image `{archive.name!r}`")
    return json.loads(file.read())


def manifest_of(archive: tarfile.TarFile) -> dict[str, Any]:
    manifest: dict[str, Any] = read_json(archive, "manifest.json")[0]
    return manifest


def config_of(base: Path) -> dict[str, Any]:
    with tarfile.open(base) as archive:
        config: dict[str, Any] = read_json(archive, manifest_of(archive)["Config"])
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="the image's name with a tag")
    parser.add_argument("--root", required=True, type=Path, help="folder to pack")
    parser.add_argument(
        "--under", default="", help="folder of the image where it goes (default: the root)"
    )
    parser.add_argument("--base", type=Path, help="image file to add a layer to")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument(
        "--command", action="append", default=[], help="a word of the default command"
    )
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    config = config_of(options.base) if options.base else new_config([], options.command)
    config["config"]["Env"] += options.env
    with tempfile.TemporaryDirectory(dir=options.out.parent) as folder:
        layer = layer_of(options.root, options.under, Path(folder))
        write_image(
            name=options.name, out=options.out, layer=layer, config=config, base=options.base
        )


if __name__ == "__main__":
    main()

"""Write the Python stubs and the Rust messages from proto/: `gen_proto.py OUT` (OUT is the root of a checkout). The
Python package gets the service config of proto/ as well.

Runs in .venv-proto, whose protoc is old enough (protobuf 6.30) that what it writes loads on protobuf 6 and 7.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent


def run_protoc(*args: str) -> None:
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    plugin = Path(sys.executable).parent / "protoc-gen-mypy_grpc"
    if protoc.main(["protoc", f"-I{ROOT / 'proto'}", f"-I{well_known}", f"--plugin={plugin}", *args]) != 0:
        sys.exit("gen_proto: protoc refused the protos (see above)")


def main(out: Path) -> None:
    protos = sorted(p.relative_to(ROOT / "proto").as_posix() for p in (ROOT / "proto" / "roost").rglob("*.proto"))
    services = [p for p in protos if p.endswith("_service.proto")]
    python = out / "python"
    rust = out / "rust/core/src/gen"
    python.mkdir(parents=True, exist_ok=True)
    rust.mkdir(parents=True, exist_ok=True)
    for stale in [*python.glob("roost/**/*_pb2*.py*"), *rust.glob("roost.*.rs")]:
        stale.unlink()
    run_protoc(f"--python_out={python}", f"--pyi_out={python}", *protos)
    run_protoc(f"--grpc_python_out={python}", f"--mypy_grpc_out=quiet:{python}", *services)
    shutil.copyfile(ROOT / "proto/roost/v1/service_config.json", python / "roost/v1/service_config.json")
    with tempfile.TemporaryDirectory() as tmp:
        descriptors = Path(tmp) / "roost.binpb"
        run_protoc("--include_imports", "--include_source_info", f"--descriptor_set_out={descriptors}", *protos)
        manifest = ROOT / "rust/protogen/Cargo.toml"
        env = {"CARGO_TARGET_DIR": str(ROOT / "target"), **os.environ}
        command = ["cargo", "run", "--quiet", "--locked", "--manifest-path", manifest, "--", descriptors, rust]
        subprocess.run(command, check=True, env=env)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT)

"""The Dockerfile: what hadolint says of it, that it builds from locked things, and how it starts the server."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib

from deploy_tools import ROOT, run
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

DOCKERFILE = (ROOT / "deploy/docker/Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def locked(name: str) -> dict[str, str]:
    """Package -> version of a lock file, each of which must have a hash."""
    found = {}
    for block in re.split(r"\n(?=[a-z])", (ROOT / "requirements" / name).read_text()):
        pin = re.match(r"([a-z0-9.-]+)==([^ ]+)", block)
        if pin is None:
            continue
        assert "--hash=sha256:" in block, f"{name}: {pin[1]} has no hash"
        found[canonicalize_name(pin[1])] = pin[2]
    assert found
    return found


def instructions(word: str) -> list[str]:
    joined = DOCKERFILE.replace("\\\n", " ")
    return [line.removeprefix(word + " ").strip() for line in joined.splitlines() if line.startswith(word + " ")]


def test_hadolint_has_nothing_to_say() -> None:
    done = run("hadolint", "--failure-threshold", "style", ROOT / "deploy/docker/Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


def test_base_images_are_pinned_by_digest() -> None:
    arguments = dict(a.split("=", 1) for a in instructions("ARG"))
    bases = {line.split()[0] for line in instructions("FROM")}
    assert bases == {"${RUST_IMAGE}", "${PYTHON_IMAGE}"}
    for base in bases:
        assert re.fullmatch(r"[a-z0-9./-]+:[0-9][\w.-]+@sha256:[0-9a-f]{64}", arguments[base[2:-1]])


def test_the_server_gets_the_signals_and_is_not_root() -> None:
    """Shell form would make a shell process 1, which hands no SIGTERM on; of a name no kubelet knows whether it is
    root."""
    (entry,) = instructions("ENTRYPOINT")
    (command,) = instructions("CMD")
    assert json.loads(entry) == ["roost"]
    assert json.loads(command)[0] == "serve"
    (user,) = instructions("USER")
    assert re.fullmatch(r"[1-9]\d{4,}:[1-9]\d{4,}", user)
    assert instructions("HEALTHCHECK") == ["NONE"]
    # The environment wins over the configuration file: a setting here could not be changed in it.
    assert not re.search(r"ROOST_", " ".join(instructions("ENV")))


def test_what_is_copied_is_let_through_and_tracked() -> None:
    let_through = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"
    for name in let_through:
        done = subprocess.run(["git", "ls-files", "--", name], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout, f"{name} of .dockerignore is not tracked"
    for line in instructions("COPY"):
        if line.startswith("--from="):
            continue
        *sources, _ = line.split()
        for source in sources:
            assert source == "." or source in let_through, f"COPY {source}: .dockerignore keeps it out"


def test_the_image_has_the_versions_that_are_tested() -> None:
    tested, image = locked("dev.lock"), locked("server.lock")
    assert {name: version for name, version in image.items() if tested.get(name) != version} == {}
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["server"]]
    wanted += PROJECT["optional-dependencies"]["cli"]
    for requirement in map(Requirement, wanted):
        version = image[canonicalize_name(requirement.name)]  # a KeyError names what `make lock` has not been run for
        assert requirement.specifier.contains(version), f"{requirement} is locked at {version}"
    assert locked("build.lock") == {"maturin": tested["maturin"]}
    assert "pytest" in tested
    assert "pytest" not in image


def test_the_toolchain_of_the_image_is_new_enough() -> None:
    rust = re.search(r"rust:([\d.]+)-", DOCKERFILE)
    oldest = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["rust-version"]
    assert rust is not None
    assert tuple(map(int, rust[1].split("."))) >= tuple(map(int, oldest.split(".")))

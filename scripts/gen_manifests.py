"""Write deploy/manifests/roost.yaml: the chart with its default values, for those without Helm.

Helm's own labels go: nothing that it manages is there. `--check` fails where the file differs.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "deploy/manifests/roost.yaml"
HEADER = """\
# Roost with the default values of its Helm chart, written by `make manifests`: change the chart, or patch this.
#   roost keys new-admin-key admin.key
#   kubectl create secret generic roost-admin-key --from-file=admin.key
#   kubectl apply -f roost.yaml
# The image is one that you built and pushed (deploy/docker/Dockerfile): write its name below.
"""


def rendered(helm: str) -> str:
    """What the file must be."""
    command = [helm, "template", "roost", str(ROOT / "deploy/helm/roost"), "--skip-tests"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    helms = ("app.kubernetes.io/managed-by:", "helm.sh/chart:")
    lines = [line.rstrip() for line in text.splitlines() if not line.strip().startswith(helms)]
    return HEADER + "\n".join(lines).rstrip("\n") + "\n"


def main() -> int:
    wanted = rendered(str(ROOT / ".tools/bin/helm"))
    if FILE.exists() and FILE.read_text() == wanted:
        return 0
    if "--check" in sys.argv[1:]:
        print("gen_manifests: deploy/manifests is not what the chart gives; run: make manifests", file=sys.stderr)
        return 1
    FILE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())

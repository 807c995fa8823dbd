"""The reader of kustomizations against the real one, where kubectl is there."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.cluster.kustomize import build
from tests.cluster.test_manifests import CLUSTER, each_overlay

kubectl = shutil.which("kubectl")


@pytest.mark.skipif(kubectl is None, reason="kubectl is not installed")
@each_overlay
def test_kubectl_kustomize_builds_what_the_reader_builds(overlay: Path) -> None:
    assert kubectl is not None
    done = subprocess.run(
        [kubectl, "kustomize", str(overlay)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    built = {(d["kind"], d["metadata"]["name"]): d for d in yaml.safe_load_all(done.stdout)}
    assert built == {(r.kind, r.name): r.data for r in build(overlay, CLUSTER)}

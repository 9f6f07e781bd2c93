"""The file for machines of one's own brought up on machines that have only Python, as the README says."""

import os
import shutil
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.benches import write_images
from tests.cluster.aws import PIP_CONFIG, make_environment
from tests.cluster.cluster import Cluster, summary_in
from tests.cluster.testbed import REPOSITORY, test_bed, why_not
from tests.readme import own_machines

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(
        "TUNE_INAT_LOSSES" not in os.environ, reason="TUNE_INAT_LOSSES=1 takes a minute or two"
    ),
    pytest.mark.skipif(find_spec("aiohttp_cors") is None, reason="it needs pip install -e '.[cluster]'"),
    pytest.mark.skipif(why_not() is not None, reason=f"no test bed: {why_not()}"),
]

SPACE = """
method: grid
parameters:
  model: {value: resnet18}
  weights: {value: none}
  image_size: {value: 32}
  epochs: {values: [1, 2]}
  lr: {values: [1.0e-2, 1.0e-3]}
"""


def test_ray_up_a_search_and_ray_down(tmp_path: Path) -> None:
    with test_bed(tmp_path / "bed", workers=2, user="me") as bed:
        laptop, shared = bed.nodes["laptop"], bed.shared
        text = own_machines()
        for number, name in enumerate(("head", "worker1", "worker2"), start=1):
            text = text.replace(f"192.0.2.{number}", bed.nodes[name].address)
        home = laptop.folder / "root"
        (home / "own_machines.yaml").write_text(text)
        shutil.copy(home / ".ssh" / "ray_key", home / ".ssh" / "id_ed25519")
        make_environment(laptop, bed.folder)
        for name in ("head", "worker1", "worker2"):
            machine = bed.nodes[name].folder / "root"
            (machine / ".config" / "pip").mkdir(parents=True)
            (machine / ".config" / "pip" / "pip.conf").write_text(PIP_CONFIG)
            shutil.copytree(bed.folder / "venv", machine / "venv", symlinks=True)
        (shared / "small.yaml").write_text(SPACE)
        write_images(shared / "photos")

        def run(command: str) -> str:
            words = ("bash", "-c", f"cd {REPOSITORY}; {command}")
            done = laptop.run(*words, RAY_USAGE_STATS_ENABLED="0", RAY_UP_enable_autoscaler_v2="0")
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout + done.stderr

        run("ray get-auth-token --generate")
        run("ray up -y --no-config-cache ~/own_machines.yaml")
        arguments = (
            f"--space {shared}/small.yaml --data {shared}/photos --storage {shared}/runs --wandb disabled"
        )
        said = run(f"ray submit ~/own_machines.yaml tune_inat/search.py -- --address auto {arguments}")
        assert "Waiting for the cluster's machines" in said  # the workers still install when `ray up` is done
        assert "machines are up" not in said  # all of them have come
        summary = summary_in(shared / "runs" / "small-photos")
        assert [trial["status"] for trial in summary["trials"]] == ["TERMINATED"] * 4
        assert summary["reuse"]["epochs_trained"] == 4
        run("ray down -y ~/own_machines.yaml")
        deadline = time.monotonic() + 120
        while Cluster(bed).processes("head", "raylet/raylet"):
            assert time.monotonic() < deadline, "Ray lives on"
            time.sleep(1)

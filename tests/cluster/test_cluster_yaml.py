"""`cluster.yaml` is what `ray up` takes, by Ray's own checks and up to machines in a simulated AWS."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from jsonschema import ValidationError  # type: ignore[import-untyped]  # Ray checks by it

from tests.readme import README, own_machines

moto = pytest.importorskip("moto", reason="moto is not installed")
from ray.autoscaler._private.aws import config as aws_config  # noqa: E402 (needs boto3, as moto does)
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider  # noqa: E402
from ray.autoscaler._private.util import prepare_config, validate_config  # noqa: E402
from ray.autoscaler.tags import (  # noqa: E402
    NODE_KIND_HEAD,
    NODE_KIND_WORKER,
    TAG_RAY_LAUNCH_CONFIG,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

FILE = README.parent / "cluster.yaml"
REGION = "us-west-2"
WORKER_PROFILE = "tune-inat-worker"


@pytest.fixture
def settings() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return read


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """An empty AWS account in this process; Ray makes keys in a home of its own."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": REGION,
        "MOTO_EC2_LOAD_DEFAULT_AMIS": "true",
        "MOTO_IAM_LOAD_MANAGED_POLICIES": "true",
        "HOME": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # Ray waits 15 s for IAM, twice
    aws_config._get_subnets_or_die.cache_clear()  # of another test's account
    with moto.mock_aws():
        import boto3

        yield boto3


def launch(settings: dict[str, Any], boto3: Any) -> dict[str, dict[str, Any]]:
    """One machine of each type, as `ray up` and the autoscaler ask for it, and as EC2 then describes it."""
    config = prepare_config(copy.deepcopy(settings))
    config = AWSNodeProvider.fillout_available_node_types_resources(config)
    validate_config(config)
    config = AWSNodeProvider.bootstrap_config(config)
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for name, node_type in config["available_node_types"].items():
        is_head = name == config["head_node_type"]
        tags = {
            TAG_RAY_NODE_KIND: NODE_KIND_HEAD if is_head else NODE_KIND_WORKER,
            TAG_RAY_USER_NODE_TYPE: name,
            TAG_RAY_NODE_NAME: name,
            TAG_RAY_NODE_STATUS: "uninitialized",
            TAG_RAY_LAUNCH_CONFIG: "of-the-test",
        }
        node_config = node_type["node_config"] | (config["head_node"] if is_head else {})
        provider.create_node(copy.deepcopy(node_config), tags, 1)
    reservations = boto3.client("ec2", REGION).describe_instances()["Reservations"]
    found = [instance for reservation in reservations for instance in reservation["Instances"]]
    return {tag["Value"]: it for it in found for tag in it["Tags"] if tag["Key"] == TAG_RAY_USER_NODE_TYPE}


def disk_gigabytes(instance: dict[str, Any], boto3: Any) -> list[int]:
    volumes = [mapping["Ebs"]["VolumeId"] for mapping in instance["BlockDeviceMappings"]]
    described = boto3.client("ec2", REGION).describe_volumes(VolumeIds=volumes)["Volumes"]
    return [volume["Size"] for volume in described]


def test_ray_takes_the_files_and_would_not_take_a_misspelt_key(settings: dict[str, Any]) -> None:
    for config in (settings, yaml.safe_load(own_machines())):
        validate_config(prepare_config(config))
        with pytest.raises(ValidationError, match="idle_minutes"):
            validate_config(prepare_config({**config, "idle_minutes": 5}))


def test_machines_of_ones_own_are_set_up_as_those_of_aws(settings: dict[str, Any]) -> None:
    own = yaml.safe_load(own_machines())
    assert own["file_mounts"] == settings["file_mounts"]
    assert own["setup_commands"][0] == settings["setup_commands"][0]
    assert own["setup_commands"][2:] == settings["setup_commands"][2:]
    assert "--dashboard-host=127.0.0.1" in "\n".join(own["head_start_ray_commands"])


def test_machines_come_up_on_demand_and_spot_with_room_for_the_cache(
    settings: dict[str, Any], aws: Any
) -> None:
    aws.client("iam").create_instance_profile(InstanceProfileName=WORKER_PROFILE)
    instances = launch(settings, aws)
    head, worker = instances["head"], instances["gpu"]
    assert "InstanceLifecycle" not in head
    assert worker["InstanceLifecycle"] == "spot"
    assert worker["IamInstanceProfile"]["Arn"].endswith(f"/{WORKER_PROFILE}")
    for instance in (head, worker):
        assert instance["State"]["Name"] in ("pending", "running")
        assert max(disk_gigabytes(instance, aws)) == 200


def test_check_sees_a_profile_that_nobody_made(settings: dict[str, Any], aws: Any) -> None:
    """What a user who left out a step would see; and a sign that the simulated AWS looks."""
    with pytest.raises(Exception, match=WORKER_PROFILE):
        launch(settings, aws)


def test_resources_are_those_of_the_machines(settings: dict[str, Any], aws: Any) -> None:
    """They are written out so that Ray need not ask EC2. The head's are hidden."""
    stripped = copy.deepcopy(settings)
    for node_type in stripped["available_node_types"].values():
        del node_type["resources"]
    asked = AWSNodeProvider.fillout_available_node_types_resources(prepare_config(stripped))
    real = asked["available_node_types"]["gpu"]["resources"]
    written = settings["available_node_types"]["gpu"]["resources"]
    assert written == {name: real[name] for name in written}
    assert settings["available_node_types"]["head"]["resources"] == {"CPU": 0}


def test_no_trial_runs_on_the_head_and_no_worker_waits_for_one(settings: dict[str, Any]) -> None:
    types = settings["available_node_types"]
    assert settings["head_node_type"] == "head"
    assert types["head"]["max_workers"] == 0
    assert types["gpu"]["min_workers"] == 0
    assert types["gpu"]["max_workers"] == settings["max_workers"]


def test_what_is_mounted_is_there_and_small(settings: dict[str, Any]) -> None:
    """Ray reads all of it at each `ray up`. The token is the user's own."""
    for target, source in settings["file_mounts"].items():
        if target != "~/.ray/auth_token":
            path = FILE.parent / source
            assert path.exists(), source
            files = (
                [path] if path.is_file() else [it for it in path.rglob("*") if "__pycache__" not in it.parts]
            )
            assert sum(it.stat().st_size for it in files if it.is_file()) < 5_000_000


def test_ray_is_pinned_to_a_version_that_the_project_takes(settings: dict[str, Any]) -> None:
    commands = "\n".join(settings["setup_commands"])
    assert f"ray[default,tune]=={ray.__version__}" in commands


def test_ray_asks_everybody_for_the_token(settings: dict[str, Any]) -> None:
    assert any("RAY_AUTH_MODE=token" in command for command in settings["setup_commands"])
    assert "--dashboard-host=127.0.0.1" in "\n".join(settings["head_start_ray_commands"])

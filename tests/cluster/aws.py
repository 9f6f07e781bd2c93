"""AWS, simulated: moto answers for EC2, IAM and S3, and the machines that it starts are namespaces here."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.testbed import REPOSITORY, Node, TestBed, test_bed

REGION, SUBNET = "us-west-2", "172.31.0"  # moto's default subnet in us-west-2a
ENDPOINT = f"http://{SUBNET}.250:5000"
LOOK_SECONDS = 0.5
CREDENTIALS = "[default]\naws_access_key_id = testing\naws_secret_access_key = testing\n"
CONFIG = f"[default]\nregion = {REGION}\nendpoint_url = {ENDPOINT}\n"
# A machine has no index of packages: what it installs is there. (To pip, `false` is what says no here.)
PIP_CONFIG = "[global]\nno-index = true\nno-build-isolation = false\ndisable-pip-version-check = true\n"
RAY = "#!/root/venv/bin/python\nfrom ray.scripts.scripts import main\nmain()\n"
KEY = "root/.ssh/ray-autoscaler_us-west-2.pem"  # where Ray keeps the one that it has made


@dataclass
class Instance:
    """A machine of EC2, and what stands for it."""

    state: str
    facts: dict[str, Any]
    node: Node | None = None
    seen: float = field(default_factory=time.monotonic)


class SimulatedAws:
    """EC2's side of it: machines come up and go as moto says, each with the user's key and the test's Python.

    Attributes:
        instances: all that there were, by EC2's ids.
    """

    def __init__(self, bed: TestBed) -> None:
        self.bed = bed
        self.instances: dict[str, Instance] = {}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ec2", daemon=True)
        self._failure: BaseException | None = None

    @property
    def laptop(self) -> Node:
        """Whose user brings the cluster up."""
        return self.bed.nodes["laptop"]

    def python(self, code: str) -> str:
        """What Python on the laptop prints, with clients of EC2, IAM and S3 at hand."""
        clients = "; ".join(f"{name} = boto3.client({name!r})" for name in ("ec2", "iam", "s3"))
        done = self.laptop.run("python", "-c", f"import boto3, json; {clients}\n{code}")
        assert done.returncode == 0, done.stderr
        return done.stdout

    def of_type(self, kind: str, *states: str) -> dict[str, Instance]:
        """The instances of a type of `cluster.yaml`, of all states or of these."""
        assert self._failure is None, self._failure
        return {
            name: it
            for name, it in dict(self.instances).items()
            if it.facts["kind"] == kind and (not states or it.state in states)
        }

    def machine(self, instance: Instance) -> Node:
        """What stands for an instance that runs."""
        assert instance.node is not None
        return instance.node

    def start(self) -> None:
        """Switch AWS on: an account where nothing is yet."""
        place = self.laptop.folder / "root"
        (place / ".aws").mkdir()
        (place / ".aws" / "credentials").write_text(CREDENTIALS)
        (place / ".aws" / "config").write_text(CONFIG)
        log = (self.bed.folder / "moto.log").open("wb")
        host, _, port = ENDPOINT.rpartition("/")[2].partition(":")
        environment = {"MOTO_IAM_LOAD_MANAGED_POLICIES": "true", "MOTO_EC2_LOAD_DEFAULT_AMIS": "true"}
        server = self.laptop.command("moto_server", "-H", host, "-p", port, **environment)
        subprocess.Popen(server, stdout=log, stderr=log)  # ends with the laptop
        self.python(
            "import time\nfor _ in range(100):\n"
            "  try: ec2.describe_vpcs(); break\n  except Exception: time.sleep(0.3)"
        )
        self._thread.start()

    def stop(self) -> None:
        """Switch it off; the machines go with the test bed."""
        self._is_over.set()
        if self._thread.is_alive():
            self._thread.join()

    def terminate(self, name: str) -> None:
        """Take a machine away, as AWS does with spot instances."""
        self.python(f"ec2.terminate_instances(InstanceIds=[{name!r}])")

    def _run(self) -> None:
        # A process of its own that goes on asking: each start of Python takes seconds.
        code = (
            "import boto3, json, time\nec2 = boto3.client('ec2')\nwhile True:\n"
            " print(json.dumps([i for r in ec2.describe_instances()['Reservations'] for i in r['Instances']],"
            f" default=str), flush=True)\n time.sleep({LOOK_SECONDS})"
        )
        process = subprocess.Popen(
            self.laptop.command("python", "-c", code), stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        try:
            while not self._is_over.is_set() and (line := process.stdout.readline()):
                for found in json.loads(line):
                    self._follow(found)
        except BaseException as error:  # noqa: BLE001  # carried to the test
            self._failure = error
        finally:
            process.kill()
            process.wait()

    def _follow(self, found: dict[str, Any]) -> None:
        """Have a machine be what EC2 says of it."""
        state = found["State"]["Name"]
        tags = {tag["Key"]: tag["Value"] for tag in found.get("Tags", [])}
        facts = {
            "kind": tags.get("ray-user-node-type", ""),
            "is_spot": found.get("InstanceLifecycle") == "spot",
            "address": found["PrivateIpAddress"] if state == "running" else "",
            "type": found["InstanceType"],
        }
        known = self.instances.setdefault(found["InstanceId"], Instance("pending", facts))
        if state == "running" and known.node is None and (self.laptop.folder / KEY).exists():
            known.node = self._boot(
                f"i{len(self.instances)}", found["PrivateIpAddress"], found["PublicIpAddress"]
            )
        if state in ("terminated", "shutting-down") and known.node is not None and known.state == "running":
            known.node.power_off()
        known.state = state
        known.facts = facts | {"address": facts["address"] or known.facts["address"]}

    def _boot(self, name: str, address: str, public: str) -> Node:
        """Switch a machine on that lets the user in, as the image's first start does."""
        key = self.laptop.folder / KEY
        made = subprocess.run(["ssh-keygen", "-y", "-f", key], capture_output=True, text=True, check=True)
        last = int(address.rpartition(".")[2])
        assert address == f"{SUBNET}.{last}"
        root = self.bed.folder / name / "root"
        for place in (".aws", ".config/pip", ".ssh"):
            (root / place).mkdir(parents=True)
        (root / ".aws" / "credentials").write_text(CREDENTIALS)
        (root / ".aws" / "config").write_text(CONFIG)
        (root / ".config" / "pip" / "pip.conf").write_text(PIP_CONFIG)
        (root / ".bashrc").write_text(f"export AWS_ENDPOINT_URL={ENDPOINT}\n")
        shutil.copytree(self.bed.folder / "venv", root / "venv", symlinks=True)
        return self.bed.add(name, last, key=made.stdout, also=public)


@contextmanager
def simulated_aws(folder: Path) -> Iterator[SimulatedAws]:
    """A laptop with an account in an AWS that lasts as long as this."""
    with test_bed(folder, workers=0, subnet=SUBNET, user="ubuntu") as bed:
        aws = SimulatedAws(bed)
        make_environment(aws.laptop, folder)
        aws.start()
        try:
            yield aws
        finally:
            aws.stop()


def make_environment(laptop: Node, folder: Path) -> None:
    """A virtual environment for ~/venv that finds the packages of this one, and holds none of its own."""
    done = laptop.run("python", "-m", "venv", "/root/venv")
    assert done.returncode == 0, done.stderr
    venv = folder / "venv"
    shutil.move(laptop.folder / "root" / "venv", venv)
    (packages,) = venv.glob("lib/python*/site-packages")
    (packages / "zz_of_the_test.pth").write_text(
        "\n".join(path for path in sys.path if path.endswith("site-packages"))
    )
    for old in (*packages.glob("setuptools*"), packages / "_distutils_hack"):  # it would hide the newer one
        shutil.rmtree(old, ignore_errors=True)
    (packages / "distutils-precedence.pth").unlink(missing_ok=True)
    (venv / "bin" / "ray").write_text(RAY)
    (venv / "bin" / "ray").chmod(0o755)


def filled_in() -> str:
    """`cluster.yaml` with what a user fills in, W&B's key mounted, and a shorter wait for idle workers."""
    text = (REPOSITORY / "cluster.yaml").read_text()
    for before, after in {
        "ami-00000000000000000": "ami-03cf127a",  # any of those that moto has
        "idle_timeout_minutes: 5 ": "idle_timeout_minutes: 0.5 ",
        "# ~/.netrc: ~/.netrc ": "~/.netrc: ~/.netrc ",
    }.items():
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    return text

"""What comes from outside runs no code and stays in its folder; secrets stay secret; nobody else gets in."""

import ast
import http.server
import os
import pickle
import re
import shutil
import ssl
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import tune_inat
from benchmarks.processes import descendants
from tests.benches import write_images
from tests.image_files import encode, noise
from tests.wandb_server import API_KEY, WandbServer
from tune_inat import archive as archive_module
from tune_inat import predict as predict_command
from tune_inat.archive import unpack
from tune_inat.backbone import load_backbone
from tune_inat.download import download
from tune_inat.errors import BackboneError, DataError, ResourceError, SpaceError, run_command
from tune_inat.export import ModelConfig, save_classifier
from tune_inat.meter import SilentMeter
from tune_inat.space import load_space
from tune_inat.store import CACHE_VARIABLE, claim_root

INHERITED = re.compile("PROXY|^WANDB")  # variables that a search of these tests does not get
UNPICKLING = re.compile(r"(pickle|cloudpickle|joblib|torch|marshal|shelve)\.(load|loads|open|Unpickler)")
HOSTILE_TEXTS = ("=1+1", "+1", "-1", "@x", "\tx", "\rx")

# A search from outside: its processes, its ports, its files

SPACE = """
method: grid
parameters:
  model: {value: resnet18}
  weights: {value: none}
  image_size: {value: 32}
  epochs: {value: 1}
"""
SECRETS = ("SECRET-OF-THE-URI", "SECRET-OF-THE-PROXY", "SECRET-OF-AWS", API_KEY)
LISTENING = "0A"  # in /proc/net/tcp
LOOPBACK = {
    "0100007F",
    "00000000000000000000000001000000",
    "0000000000000000FFFF00000100007F",
}  # there, in hex


class Search:
    """A search that was watched while it ran: what its processes were called, where they listened."""

    def __init__(self, folder: Path, images: Path, proxy: WandbServer) -> None:
        self.folder = folder
        self.commands: set[str] = set()
        self.addresses: set[str] = set()
        scratch, ray = (
            folder / "scratch",
            Path("/tmp", f"tune_inat-{os.getpid()}"),
        )  # Ray's sockets: a short path
        scratch.mkdir()
        ray.mkdir(mode=0o700)
        (folder / "one.yaml").write_text(SPACE)
        environment = {
            **{name: value for name, value in os.environ.items() if not INHERITED.search(name.upper())},
            **{"TUNE_INAT_CACHE": str(folder / "cache"), "TMPDIR": str(scratch), "RAY_TMPDIR": str(ray)},
            **{"WANDB_API_KEY": API_KEY, "WANDB_BASE_URL": "http://wandb.invalid"},
            "HTTP_PROXY": proxy.url.replace("//", "//user:SECRET-OF-THE-PROXY@"),
            "AWS_SECRET_ACCESS_KEY": "SECRET-OF-AWS",
        }
        command = [sys.executable, "-m", "tune_inat.search", "--space", "one.yaml", "--wandb", "online"]
        process = subprocess.Popen(
            [*command, "--data", f"file://{images}?token=SECRET-OF-THE-URI"],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            while process.poll() is None:
                self._look(process.pid)
                time.sleep(0.1)
            self.output = process.communicate()[0]
            self.code = process.returncode
            kept = [path for path in (folder, ray) for path in path.rglob("*") if path.is_file()]
            self.files = {path: path.read_bytes() for path in kept if path.name != "one.yaml"}
        finally:
            process.kill()
            shutil.rmtree(ray, ignore_errors=True)

    def _look(self, pid: int) -> None:
        own = descendants(pid)
        for each in own:
            with suppress(OSError):
                self.commands.add(Path(f"/proc/{each}/cmdline").read_bytes().replace(b"\0", b" ").decode())
        sockets = set()
        for each in (pid, *own):
            with suppress(OSError):
                sockets |= {str(entry.readlink()) for entry in Path(f"/proc/{each}/fd").iterdir()}
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                _, local, _, state, *rest = line.split()
                if state == LISTENING and f"socket:[{rest[5]}]" in sockets:
                    self.addresses.add(local.partition(":")[0])


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Search]:
    images = write_images(tmp_path_factory.mktemp("images") / "photos")
    with WandbServer(refusal=407) as proxy:
        yield Search(tmp_path_factory.mktemp("search"), images, proxy)


@pytest.mark.end_to_end
def test_no_process_of_a_search_listens_to_other_machines(search: Search) -> None:
    assert search.code == 0, search.output
    assert search.addresses
    assert search.addresses <= LOOPBACK
    assert any("raylet" in command for command in search.commands)


@pytest.mark.end_to_end
def test_no_secret_is_printed_kept_or_in_the_process_list(search: Search) -> None:
    assert "W&B cannot be reached" in search.output
    assert any(path.suffix == ".wandb" for path in search.files)
    assert any(path.name.startswith("raylet") for path in search.files)  # Ray's logs were read, too
    for secret in SECRETS:
        assert secret not in search.output
        # What the user has typed stands in their own process, and for a moment in what that process forks.
        assert not [it for it in search.commands if secret in it and "-m tune_inat.search" not in it]
        assert not [path for path, content in search.files.items() if secret.encode() in content]
    assert not [path for path in search.files if (search.folder / "scratch") in path.parents]  # nothing stays


# The cache folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    (tmp_path / "cache" / "locks").mkdir(parents=True)
    return tmp_path / "cache"


def mode_of(folder: Path) -> int:
    return folder.stat().st_mode & 0o777


@pytest.mark.parametrize("mode", [0o755, 0o775, 0o777])
def test_cache_that_is_open_to_others_is_closed(cache: Path, mode: int) -> None:
    cache.chmod(mode)
    claim_root(cache)
    assert mode_of(cache) == 0o700


def test_new_cache_is_the_users_alone_behind_a_link_as_well(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir(mode=0o755)
    (tmp_path / "cache").symlink_to(tmp_path / "disk")
    claim_root(tmp_path / "cache")
    claim_root(tmp_path / "a" / "b")
    assert (mode_of(tmp_path / "disk"), mode_of(tmp_path / "a" / "b")) == (0o700, 0o700)


def test_folder_with_other_things_in_it_is_left_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "photos").mkdir()
    with pytest.raises(ResourceError, match=rf"open to other users and has other things.*{CACHE_VARIABLE}"):
        claim_root(tmp_path)
    assert mode_of(tmp_path) == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_cache_of_another_user_is_refused(cache: Path, tmp_path: Path) -> None:
    os.chown(cache, 12345, -1)
    with pytest.raises(ResourceError, match=rf"belongs to the user 12345. Set {CACHE_VARIABLE}"):
        claim_root(cache)
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    os.chown(tmp_path / "link", 12345, -1, follow_symlinks=False)
    with pytest.raises(ResourceError, match="belongs to the user 12345"):
        claim_root(tmp_path / "link")


# No code from outside


def test_pickles_are_read_as_weights_only_and_in_no_other_place() -> None:
    unpickling = []
    for path in sorted(Path(tune_inat.__file__).parent.glob("*.py")):
        assert "allow_pickle" not in path.read_text()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and UNPICKLING.fullmatch(ast.unparse(node.func)):
                words = {word.arg: ast.unparse(word.value) for word in node.keywords}
                unpickling.append((ast.unparse(node.func), words.get("weights_only")))
    # Tune's record of a trial's error is in a folder that nobody but this search can write to.
    assert sorted(unpickling) == [("cloudpickle.loads", None), ("torch.load", "True")]


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_pickle_in_place_of_downloaded_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    file = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.write_bytes(pickle.dumps(Payload(tmp_path / "was here"), protocol=2))
    with pytest.raises(BackboneError, match=r"holds Python objects besides tensors\. Remove it"):
        load_backbone("resnet18", weights="default", n_classes=2, seed=0)
    assert not (tmp_path / "was here").exists()


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, "more than 20,000 keys and values"),
        ("".join(f"a{n}: &a{n} 1\nb{n}: *a{n}\n" for n in range(200)), "more than 100 aliases"),
        ("a: &a {b: *a}", "stands within what it stands for"),
        ("[" * 10_000, "nested more than 20 deep"),
        ("# " + "x" * 2_000_000, "at most 1,000,000 are read"),
        (f"method: {'1:' * 400_000}1", "cannot be read as int"),
        ("method: !!python/object/apply:os.system [id]", "has no place here"),
    ],
)
def test_sweep_that_would_fill_the_machine_or_run_code_is_refused(
    tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(SpaceError, match=said):
        load_space(str(tmp_path / "sweep.yaml"))


# Archives and downloads


def test_archive_that_would_fill_the_disk_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(10**7))
    with pytest.raises(DataError, match=r"refused, since it would grow [\d,]+-fold, to 10,000,000 bytes"):
        unpack(tmp_path / "a.zip", tmp_path / "out", meter=SilentMeter())
    assert not (tmp_path / "out").exists()


def test_archive_of_very_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "MAX_ENTRIES", 10)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(11):
            archive.writestr(str(number), "x")
    with pytest.raises(DataError, match="has 11 entries; at most 10 are unpacked"):
        unpack(tmp_path / "a.zip", tmp_path / "out", meter=SilentMeter())


@contextmanager
def web_server(
    redirect: str | None = None, *, certificate: Path | None = None
) -> Iterator[tuple[str, list[Any]]]:
    """A server that leads elsewhere, or has a file; its address, and the headers that it got."""
    seen: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers)
            self.send_response(302 if redirect else 200)
            self.send_header("Location" if redirect else "ETag", redirect or '"one"')
            self.send_header("Content-Length", "0" if redirect else "7")
            self.end_headers()
            self.wfile.write(b"" if redirect else b"content")

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}/file", seen
        server.shutdown()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that nobody trusts yet, with its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not there to make a certificate")
    file = tmp_path / "server.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=test"]
    made = [
        *make,
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        str(file),
        "-out",
        str(tmp_path / "cert"),
    ]
    subprocess.run(made, check=True, capture_output=True)
    file.write_text(file.read_text() + (tmp_path / "cert").read_text())
    return file


def fetch(url: str, target: Path) -> None:
    download(url, target, meter=SilentMeter(), pause=lambda _: None, timeout_seconds=5)


def test_certificate_that_nobody_vouches_for_is_refused_in_words(certificate: Path, tmp_path: Path) -> None:
    with (
        web_server(certificate=certificate) as (url, seen),
        pytest.raises(DataError, match=r"certificate is not trusted.*self.signed"),
    ):
        fetch(url, tmp_path / "file")
    assert seen == []


def test_redirect_out_of_encryption_is_refused(
    certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with (
        web_server() as (plain, seen),
        web_server(plain, certificate=certificate) as (url, asked),
        pytest.raises(DataError, match=r"refused, since it leads to http://127\.0\.0\.1, without encryption"),
    ):
        fetch(url, tmp_path / "file")
    assert (len(asked), seen) == (1, [])
    with web_server(certificate=certificate) as (url, _), web_server(url) as (lead, _):
        fetch(lead, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"content"


def test_password_of_a_proxy_does_not_follow_a_redirect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with web_server() as (url, seen), web_server(url) as (proxy, asked):
        monkeypatch.setenv("http_proxy", proxy.replace("//", "//user:password@"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        fetch("http://data.invalid/file", tmp_path / "file")
    assert asked[0]["Proxy-Authorization"] is not None
    assert [headers["Proxy-Authorization"] for headers in seen] == [None]


# Foreign text


@pytest.fixture(scope="module")
def hostile_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose classes are called like formulas and worse."""
    folder = tmp_path_factory.mktemp("model")
    classes = (*HOSTILE_TEXTS, "\x1b[31mred", "\u202eder")
    backbone = load_backbone("squeezenet1_1", weights="none", n_classes=len(classes), seed=0, image_size=32)
    config = ModelConfig("squeezenet1_1", classes, 32, (0, 0, 0), (1, 1, 1), "id", 1, {})
    save_classifier(folder, backbone, config, {}, card="")
    return folder


@pytest.mark.parametrize("is_terminal", [False, True])
def test_predictions_hold_no_formula_and_drive_no_terminal(
    hostile_model: Path,
    tmp_path: Path,
    is_terminal: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("=x.png", "\x1b[2J.png", "-x.png"):
        Path(name).write_bytes(encode(noise(0), "PNG"))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    monkeypatch.setattr(
        sys, "argv", ["predict", "--top", "8", str(hostile_model), "--", "=x.png", "\x1b[2J.png", "-x.png"]
    )
    with pytest.raises(SystemExit) as ending:
        run_command(predict_command.app)
    out = capsys.readouterr().out
    assert ending.value.code == 0
    cells = [cell.strip('"') for line in out.replace("\r", "\t").splitlines() for cell in line.split(",")]
    assert "'=x.png" in cells
    assert not [cell for cell in cells if cell.startswith(HOSTILE_TEXTS[:4]) or cell.startswith("\t")]
    if is_terminal:
        assert all(character.isprintable() or character == "\n" for character in out)

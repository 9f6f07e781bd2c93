"""Whatever a file or a name holds, a command ends well or says what is wrong; it never shows a traceback.

`TUNE_INAT_FUZZ=5000 pytest tests/faults/test_fuzz.py` tries so many inputs of each kind, others each time.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.image_files import encode, noise
from tests.test_archive import write_zip
from tune_inat import space as space_command
from tune_inat.archive import unpack
from tune_inat.backbone import load_backbone
from tune_inat.config import PARAMETER_NAMES
from tune_inat.data import find_images, split_images
from tune_inat.errors import EXIT_DONE, EXIT_USAGE, UserError, describe, run_command
from tune_inat.export import CONFIG_FILE, ModelConfig, load_classifier, save_classifier
from tune_inat.meter import SilentMeter
from tune_inat.objective import METRICS
from tune_inat.plan import check_early_stopping, longest_trial, make_plan
from tune_inat.space import load_space, parse_settings, shipped_spaces
from tune_inat.sweep_schema import KINDS, PARAMETER_KEYS, SweepSection

ASKED = os.environ.get("TUNE_INAT_FUZZ")


def fuzz(n: int) -> Callable[[Any], Any]:
    """So many inputs, the same each time; as many as were asked for, others each time."""
    return settings(
        max_examples=int(ASKED) if ASKED else n,
        derandomize=ASKED is None,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder for what each example writes anew."""
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def said_by(error: UserError) -> str:
    """What a user sees: whole sentences that cannot drive the terminal."""
    text = describe(error)
    assert text.strip()
    assert all(character.isprintable() or character == "\n" for character in text)
    return text


def check_command(app: typer.Typer, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Run a command in this process; an exception that it does not expect comes through."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command", *arguments])
        with pytest.raises(SystemExit) as ending:
            run_command(app)
    printed = capsys.readouterr()
    assert all(character.isprintable() or character == "\n" for character in printed.out + printed.err)
    assert ending.value.code in (EXIT_DONE, EXIT_USAGE)
    assert ending.value.code == EXIT_DONE or printed.err.strip()


# Sweep files

NUMBERS = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([0, 1, 10**9, 10**20, 10**400, -(10**400), 2**63, 1e-3, 1e308, -1e308, 5e-324, 0.1]),
    st.floats(),
)
WORDS = st.sampled_from(
    [
        *(*PARAMETER_NAMES, *PARAMETER_KEYS, *KINDS, *METRICS, *SweepSection.model_fields),
        *(
            "",
            "=1",
            "1e-3",
            "adam",
            "layer4",
            "maximize",
            "hyperband",
            "\x1b[31m",
            "\u202e",
            "a\nb",
            "null",
            "~",
        ),
    ]
)
VALUES = st.recursive(
    st.one_of(NUMBERS, WORDS, st.booleans(), st.none(), st.text(max_size=8), st.dates()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=8,
)
PARAMETERS = st.one_of(
    st.fixed_dictionaries(
        {},
        optional={
            "distribution": st.sampled_from(list(KINDS)) | VALUES,
            "value": VALUES,
            "values": st.lists(VALUES, max_size=4) | VALUES,
            "probabilities": st.lists(NUMBERS, max_size=4),
            **dict.fromkeys(("min", "max", "mu", "sigma", "q", "a", "b"), NUMBERS | VALUES),
        },
    ),
    st.builds(
        lambda kind, numbers: {
            "distribution": kind,
            **dict(zip(KINDS[kind].section.model_fields, numbers, strict=False)),
        },
        st.sampled_from(list(KINDS)),
        st.lists(NUMBERS, min_size=4, max_size=4),
    ),
    VALUES,
)
SWEEPS = st.fixed_dictionaries(
    {
        "method": st.sampled_from(["grid", "random", "bayes"]) | VALUES,
        "parameters": st.dictionaries(
            st.sampled_from(PARAMETER_NAMES) | WORDS | st.text(max_size=8), PARAMETERS, max_size=4
        )
        | VALUES,
    },
    optional={
        "metric": st.fixed_dictionaries(
            {"name": st.sampled_from(METRICS) | VALUES}, optional={"goal": WORDS, "target": VALUES}
        )
        | VALUES,
        "early_terminate": st.fixed_dictionaries(
            {"type": st.just("hyperband") | VALUES},
            optional=dict.fromkeys(("min_iter", "max_iter", "s", "eta", "strict"), NUMBERS | VALUES),
        )
        | VALUES,
        "run_cap": NUMBERS | VALUES,
        "name": VALUES,
        "command": VALUES,
    },
)


def use_as_space(path: Path) -> None:
    """All that a search does with a sweep file before it looks for images."""
    try:
        space = load_space(str(path))
        check_early_stopping(space, longest_trial(space, {}))
        plan = make_plan(space, {}, n_trials=None, seed=0)
        json.dumps(space.identity())
        assert plan.n_trials >= 1
    except UserError as error:
        said_by(error)


def check_sweep(content: bytes, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "sweep.yaml"
    path.write_bytes(content)
    check_command(space_command.app, [str(path)], capsys)
    check_command(space_command.app, [str(path), "--json"], capsys)
    use_as_space(path)


@fuzz(60)
@given(sweep=SWEEPS)
def test_any_sweep_is_read_or_refused(sweep: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_sweep(yaml.safe_dump(sweep, allow_unicode=True).encode(errors="replace"), folder, capsys)


SHIPPED = [path.read_bytes() for path in shipped_spaces().values()]
SNIPPETS = st.sampled_from(  # what YAML, JSON and zip archives care for
    [
        *(
            b"*a",
            b"&a ",
            b"<<: ",
            b"? ",
            b"- ",
            b": ",
            b"\t",
            b"\n",
            b"|",
            b">",
            b"'",
            b'"',
            b"---\n",
            b"{",
            b"[",
        ),
        *(
            b"!!python/object/apply:os.system [id]",
            b"!!binary ",
            b"!!int ",
            b"!!timestamp ",
            b"!!set ",
            b"]",
            b"}",
        ),
        *(b"%YAML 9.9\n", b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xc2\x85", b"\\ud800", b"9" * 5_000, b"NaN"),
        *(b"0o7", b"0x_", b"0x" + b"f" * 5_000, b"1:60", b".inf", b".nan", b"1e99999", b"2001-99-99"),
    ]
)


@st.composite
def mutated(draw: st.DrawFn, contents: list[bytes]) -> bytes:
    """A file with a few places cut out, doubled, or replaced."""
    content = bytearray(draw(st.sampled_from(contents)))
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 20)))
        content[start:end] = draw(SNIPPETS | st.binary(max_size=6) | st.just(bytes(content[start:end]) * 2))
    return bytes(content)


@fuzz(60)
@given(content=mutated(SHIPPED) | st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_a_sweep_or_refused(
    content: bytes, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_sweep(content, folder, capsys)


@fuzz(100)
@given(
    name=st.sampled_from(PARAMETER_NAMES) | WORDS | st.text(max_size=8),
    value=VALUES.map(lambda value: yaml.safe_dump(value)[:200]) | st.text(max_size=30),
)
def test_any_setting_is_read_or_refused(name: str, value: str) -> None:
    try:
        json.dumps(parse_settings([f"{name}={value}"]))
    except UserError as error:
        said_by(error)


# Folders of images

PICTURES = [encode(noise(seed, 4, 4), "PNG") for seed in range(12)]
NAME_BYTES = st.one_of(
    st.binary(min_size=1, max_size=12),
    st.text(min_size=1, max_size=6).map(lambda text: text.encode(errors="surrogatepass")),
    st.sampled_from([b"train", b"val", b"test", b"Train", b".hidden", b"a", b"A", b"\xc3\xa4", b"a\xcc\x88"]),
    st.sampled_from(
        [b"=1+1", b"-x", b"\x1b[2J", b"\xe2\x80\xae", b"a\nb", b" ", b"'", b'"', b"\xff", b"x" * 255]
    ),
)
FILE_NAMES = st.one_of(NAME_BYTES, NAME_BYTES.map(lambda name: name[:240] + b".png"), st.just(b"1.jpg"))
CONTENTS = st.sampled_from([*PICTURES, b"", b"no image"]) | st.just("a folder") | st.just("a link to itself")
TREES = st.lists(st.tuples(st.lists(NAME_BYTES, min_size=0, max_size=3), FILE_NAMES, CONTENTS), max_size=14)


def plant(root: Path, tree: list[tuple[list[bytes], bytes, bytes | str]]) -> None:
    """Make what the file system takes of a tree."""
    for number, (folders, name, content) in enumerate(tree):
        parts = [part.replace(b"/", b"_").replace(b"\0", b"_") for part in (*folders, name)]
        path = root.joinpath(*(os.fsdecode(part) for part in parts if part not in (b".", b"..")))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if content == "a folder":
                path.mkdir()
            elif content == "a link to itself":
                path.symlink_to(path.parent)
            else:
                assert isinstance(content, bytes)
                path.write_bytes(content)
        except OSError:
            continue
        assert number < 100


@fuzz(60)
@given(tree=TREES)
def test_any_names_in_a_folder_are_read_or_refused(tree: Any, folder: Path) -> None:
    root, cache = folder / "images", folder / "cache"
    for path in (root, cache):
        shutil.rmtree(path, ignore_errors=True)
    root.mkdir()
    plant(root, tree)
    try:
        found = find_images(str(root), cache=cache, meter=SilentMeter())
        contents = sorted({file.content for file in found.files})
        row_of = {name: row for row, name in enumerate(contents)}
        split = split_images(found, row_of=row_of, unreadable={}, seed=0, skip_bad_images=True)
        assert len(split.classes) >= 2
        json.dumps(split.classes).encode()
    except UserError as error:
        said_by(error)


@fuzz(100)
@given(path=st.text(max_size=20) | NAME_BYTES.map(os.fsdecode))
def test_any_path_of_images_is_found_or_refused(path: str, folder: Path) -> None:
    for source in (f"{folder}/none/{path}", f"file://{path}", f"s3:///{path}", f"{path}://"):
        refuse_images(source, folder)


@pytest.mark.parametrize(
    "source", ["", "file://", "s3://", "~no-such-user/x", "x" * 5000, "a\0b", "file://["]
)
def test_path_that_is_none_is_refused(source: str, tmp_path: Path) -> None:
    refuse_images(source, tmp_path)


def refuse_images(source: str, folder: Path) -> None:
    with pytest.raises(UserError) as raised:
        find_images(source, cache=folder / "cache", meter=SilentMeter())
    said_by(raised.value)


# best_model/config.json


@pytest.fixture(scope="module")
def model() -> Iterator[Path]:
    """The folder of a small model."""
    backbone = load_backbone("squeezenet1_1", weights="none", n_classes=3, seed=0, image_size=32)
    config = ModelConfig(
        "squeezenet1_1", ("a", "b", "c"), 32, (0, 0, 0), (1, 1, 1), "id", 1, {"lr": 1e-3}, 1.5
    )
    with tempfile.TemporaryDirectory() as made:
        save_classifier(Path(made), backbone, config, {}, card="")
        yield Path(made)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=6) | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
MODEL_NAMES = st.sampled_from(
    ["squeezenet1_1", "timm/", "timm/none", "timm/hf-hub:x/y", "resnet", "", "../x"]
)


@st.composite
def changed_configs(draw: st.DrawFn, path: Path) -> bytes:
    values = json.loads(path.read_bytes())
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from([*values, "more"]))
        if draw(st.booleans()):
            values.pop(key, None)
        else:
            values[key] = draw(MODEL_NAMES if key == "model" else JSON_VALUES)
    return json.dumps(values).encode()


@fuzz(60)
@given(drawn=st.data())
def test_any_model_config_is_read_or_refused(drawn: st.DataObject, model: Path) -> None:
    path = model / CONFIG_FILE
    whole = path.read_bytes()
    try:
        path.write_bytes(drawn.draw(changed_configs(path) | mutated([whole]) | st.binary(max_size=20)))
        try:
            classifier = load_classifier(model)
            assert len(classifier.config.classes) == 3
        except UserError as error:
            said_by(error)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 100_000, b"9" * 10_000, b" " * 10**7 + b"{}"])
def test_monstrous_model_config_is_refused(content: bytes, model: Path) -> None:
    path = model / CONFIG_FILE
    whole = path.read_bytes()
    try:
        path.write_bytes(content)
        with pytest.raises(UserError, match=CONFIG_FILE):
            load_classifier(model)
    finally:
        path.write_bytes(whole)


# Archives


@fuzz(60)
@given(drawn=st.data())
def test_any_archive_is_unpacked_or_refused(drawn: st.DataObject, folder: Path) -> None:
    whole = write_zip(folder / "whole.zip", {"a/1.png": PICTURES[0], "b/2.png": PICTURES[1] * 9}).read_bytes()
    archive, target = folder / "a.zip", folder / "unpacked" / "here"
    archive.write_bytes(drawn.draw(mutated([whole])))
    try:
        unpack(archive, target, meter=SilentMeter())
    except UserError as error:
        said_by(error)
    assert {path.name for path in (folder / "unpacked").glob("*")} <= {"here"}

"""`predict` takes images from anywhere, does all that it can, and says how right it was if it can know."""

import csv
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.benches import COLOURS, write_images
from tests.end_to_end.command import Ran, run
from tests.image_files import encode, noise
from tune_inat.backbone import load_backbone
from tune_inat.errors import UserError
from tune_inat.export import Classifier, ModelConfig, load_classifier, save_classifier
from tune_inat.images import decode
from tune_inat.labelled import confusion_of, labels_of
from tune_inat.metrics import wilson_interval
from tune_inat.predict import find_files, main, predict_files, read_list

CLASSES = tuple(COLOURS)
TEMPERATURE = 2.0


class Recorder:
    """A meter that adds up."""

    def __init__(self) -> None:
        self.total: int | None = None
        self.done: list[int] = []

    @contextmanager
    def task(self, title: str, total: int | None, unit: str) -> Iterator["Recorder"]:
        self.total = total
        yield self

    def __call__(self, amount: int) -> None:
        self.done.append(amount)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp('it\'s a "Wald" mit Bäumen') / "photos", n_of_each=3)


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search, with a model."""
    backbone = load_backbone("resnet18", weights="none", n_classes=3, seed=5)
    mean, std = backbone.mean, backbone.std
    config = ModelConfig("resnet18", CLASSES, 32, mean, std, "abc", 2, {}, TEMPERATURE)
    folder = tmp_path_factory.mktemp("search")
    save_classifier(folder / "best_model", backbone, config, {}, card="")
    return folder


@pytest.fixture(scope="module")
def classifier(search: Path) -> Classifier:
    return load_classifier(search / "best_model")


def command(search: Path, *arguments: str | Path, stdin: bytes = b"", cwd: Path | None = None) -> Ran:
    """The real command, with something on its stdin."""
    ran = subprocess.run(
        [sys.executable, "-m", "tune_inat.predict", str(search), *map(str, arguments)],
        input=stdin,
        cwd=cwd or search,
        capture_output=True,
        timeout=300,
        check=False,
    )
    return Ran(ran.returncode, ran.stdout.decode(), ran.stderr.decode())


def test_probabilities_are_those_of_the_network_at_its_temperature(
    classifier: Classifier, photos: Path
) -> None:
    files = find_files([photos])
    for prediction in predict_files(classifier, files, top=3):
        pixels = torch.from_numpy(decode(prediction.path, 32).copy()).permute(2, 0, 1)[None]
        with torch.no_grad():
            logits = classifier.network(pixels)[0]
        expected = (logits / TEMPERATURE).softmax(dim=0)
        assert prediction.ranked[0][0] == CLASSES[int(logits.argmax())]
        assert dict(prediction.ranked) == pytest.approx(
            dict(zip(CLASSES, expected.tolist(), strict=True)), 1e-4
        )
        assert sum(p for _, p in prediction.ranked) == pytest.approx(1.0)


def test_images_without_a_model_before_them_are_refused_with_what_is_missing(photos: Path) -> None:
    image = find_files([photos])[0]
    for folder, images in ((image, None), (image, [image]), (photos, None)):
        with pytest.raises(UserError, match=r"first argument is a search's folder \(runs/NAME\)"):
            main(str(folder), images)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batch_size_changes_no_order_and_no_prediction(
    classifier: Classifier, photos: Path, hostile_path: Path, batch_size: int
) -> None:
    broken = hostile_path / "broken.png"
    broken.write_bytes(b"no image")
    files = [*find_files([photos])[:5], broken, *find_files([photos])[5:]]
    meter = Recorder()
    found = list(predict_files(classifier, files, batch_size=batch_size, meter=meter))
    assert [prediction.path for prediction in found] == files
    assert [prediction.problem is not None for prediction in found].index(True) == 5
    expected = [p.ranked[0][0] for p in predict_files(classifier, find_files([photos]), batch_size=3)]
    assert [p.ranked[0][0] for p in found if p.problem is None] == expected
    assert (meter.total, sum(meter.done)) == (10, 10)


def test_top_names_at_most_all_classes(classifier: Classifier, photos: Path) -> None:
    (prediction,) = predict_files(classifier, find_files([photos])[:1], top=10)
    assert sorted(name for name, _ in prediction.ranked) == sorted(CLASSES)


def test_folders_are_searched_to_any_depth_without_what_is_hidden(hostile_path: Path) -> None:
    for name in ("b/deep/er/2.PNG", "a/1.png", ".hidden/3.png", "b/.4.png", "b/notes.txt"):
        path = hostile_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(noise(0), "PNG"))
    assert find_files([hostile_path]) == [hostile_path / "a/1.png", hostile_path / "b/deep/er/2.PNG"]


def test_patterns_that_the_shell_left_are_expanded(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    assert find_files([Path("red/[01].png")]) == [Path("red/0.png"), Path("red/1.png")]
    assert len(find_files([Path("**/*.png")])) == 9
    assert find_files([Path("r?d")]) == find_files([Path("red")])  # a folder


def test_file_whose_name_looks_like_a_pattern_is_that_file(hostile_path: Path) -> None:
    for name in ("[a].png", "a.png"):
        (hostile_path / name).write_bytes(encode(noise(0), "PNG"))
    assert find_files([hostile_path / "[a].png"]) == [hostile_path / "[a].png"]


def test_all_mistakes_in_paths_are_said_at_once(hostile_path: Path) -> None:
    (hostile_path / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        find_files([hostile_path / "empty", hostile_path / "gone.png", hostile_path / "*.jpg"])
    empty, gone, pattern = caught.value.problems
    assert "no image in this folder" in empty
    assert "gone.png: there is no such file" in gone
    assert "*.jpg: there is no such file" in pattern


def test_list_may_hold_folders_and_what_is_not_there(photos: Path) -> None:
    listed = read_list(os.fsencode(f"{photos}/red\n\n{photos}/gone.png\r\n{photos}/blue/0.png"))
    found = find_files([Path("-")], listed=listed)
    assert found == [*find_files([photos / "red"]), photos / "gone.png", photos / "blue/0.png"]


def test_empty_list_is_said() -> None:
    with pytest.raises(UserError, match="the list on stdin is empty"):
        find_files([Path("-")], listed=read_list(b"\n\n"))


def test_nearest_folder_named_by_a_class_is_the_truth() -> None:
    files = [Path("x/red/blue/1.png"), Path("red/old/1.png"), Path("else/1.png"), Path("red.png")]
    assert labels_of(files, ["blue", "red"]) == [0, 1, None, None]


def test_no_folder_named_by_a_class_is_refused() -> None:
    with pytest.raises(UserError, match=r"in a folder named by a class\. .*are a, b"):
        labels_of([Path("x/1.png")], ["a", "b"])


def test_confusion_counts_truth_in_rows_and_predictions_in_columns() -> None:
    confusion = confusion_of([("a", "b"), ("a", "a"), ("c", "c"), ("a", "b")], ["a", "b", "c"])
    assert confusion.counts.tolist() == [[1, 2, 0], [0, 0, 0], [0, 0, 1]]
    content = confusion.to_json()
    assert (content["n"], content["n_correct"], content["accuracy"]) == (4, 2, 0.5)
    assert content["interval"] == list(wilson_interval(2, 4))
    title, head, *rows = confusion.lines()
    assert title.startswith("Accuracy 0.5000 (2 of 4 images, 95 % interval 0.15")
    assert head.split() == ["true", "class", "[1]", "[2]", "[3]", "predicted"]
    assert [row.split()[1:] for row in rows] == [
        ["a", "1", "2", "0"],
        ["b", "0", "0", "0"],
        ["c", "0", "0", "1"],
    ]


def test_many_classes_list_their_largest_confusions() -> None:
    names = [f"class {number}" for number in range(30)]
    pairs = [(name, name) for name in names] + 3 * [("class 4", "class 7\n")] + [("class 1", "class 2")]
    confusion = confusion_of(pairs, [*names, "class 7\n"])
    assert [line.strip() for line in confusion.lines()[1:]] == [
        "3 x class 4 taken for class 7\\n",
        "1 x class 1 taken for class 2",
    ]


def test_command_does_the_rest_and_names_the_unreadable_at_the_end(
    search: Path, photos: Path, hostile_path: Path
) -> None:
    broken = hostile_path / "bro\nken.png"
    broken.write_bytes(b"")
    image = photos / "red" / "0.png"
    ran = command(search, broken, image, "--top", "2")
    assert ran.code == 1
    (row,) = csv.DictReader(ran.out.splitlines())
    assert list(row) == ["file", "class_1", "probability_1", "class_2", "probability_2"]
    assert row["file"] == str(image)
    assert "\\nken.png: is empty\n1 of 2 files could not be read.\n" in ran.err


def test_command_reads_a_list_from_stdin_and_expands_patterns(search: Path, photos: Path) -> None:
    listed = f"{photos / 'blue' / '0.png'}\n{photos / 'gone.png'}\n".encode()
    ran = command(search, "-", "red/*.png", "--json", stdin=listed, cwd=photos)
    assert ran.code == 1
    assert "gone.png" in ran.err
    expected = [str(photos / "blue" / "0.png"), "red/0.png", "red/1.png", "red/2.png"]
    assert [prediction["file"] for prediction in ran.json()] == expected


def test_command_evaluates_what_stands_in_folders_named_by_class(search: Path, photos: Path) -> None:
    ran = command(search, photos, "--json", "--evaluate")
    assert (ran.code, ran.err) == (0, "")
    content = ran.json()
    right = [p["predictions"][0]["class"] == p["true_class"] for p in content["predictions"]]
    evaluation = content["evaluation"]
    assert evaluation["accuracy"] == sum(right) / 9
    assert evaluation["interval"] == list(wilson_interval(sum(right), 9))
    assert np.sum(evaluation["confusion"], axis=1).tolist() == [3, 3, 3]
    assert int(np.trace(evaluation["confusion"])) == sum(right)
    assert evaluation["n_unlabelled"] == 0


def test_command_evaluates_for_people_on_stderr(search: Path, photos: Path, hostile_path: Path) -> None:
    (hostile_path / "other.png").write_bytes(encode(noise(0), "PNG"))
    ran = command(search, photos, hostile_path / "other.png", "--evaluate")
    rows = list(csv.DictReader(ran.out.splitlines()))
    assert [row["true_class"] for row in rows] == [name for name in CLASSES for _ in range(3)] + [""]
    assert "Accuracy 0." in ran.err
    assert "of 9 images, 95 % interval" in ran.err
    assert "1 images in no folder named by a class" in ran.err


def test_command_refuses_to_evaluate_what_has_no_truth(search: Path, hostile_path: Path) -> None:
    (hostile_path / "other.png").write_bytes(encode(noise(0), "PNG"))
    ran = run("predict", search, hostile_path / "other.png", "--evaluate", cwd=search, cache=search)
    assert ran.code == 2
    assert ran.out == ""
    assert "no image is in a folder named by a class" in ran.err


def test_terminal_shows_a_bar_on_stderr_and_json_alone_on_stdout(search: Path, photos: Path) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "tune_inat.predict", str(search), str(photos), "--json"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    ) as process:
        os.close(theirs)
        assert process.stdout is not None
        out = process.stdout.read()
        shown = b""
        while chunk := _read(ours):
            shown += chunk
    os.close(ours)
    assert process.returncode == 0
    assert len(json.loads(out)) == 9
    assert b"Predicting" in shown
    assert b"9 images" in shown


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux says so when the other end has been closed
        return b""

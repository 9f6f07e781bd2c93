"""A key in the data's URI stays in the command line: nothing that a search prints or leaves has it."""

from pathlib import Path

import pytest

from tests.benches import write_images
from tests.end_to_end.command import run

pytestmark = pytest.mark.end_to_end

SPACE = """
method: grid
parameters:
  model: {value: resnet18}
  weights: {value: none}
  image_size: {value: 32}
  epochs: {value: 1}
"""


def test_secrets_of_the_data_are_neither_printed_nor_kept(tmp_path: Path, own_cache: Path) -> None:
    images = write_images(tmp_path / "photos")
    (tmp_path / "one.yaml").write_text(SPACE)
    ran = run(
        "search",
        *("--space", "one.yaml", "--data", f"file://{images}?token=SECRET", "--wandb", "offline"),
        cwd=tmp_path,
        cache=own_cache,
    )
    assert ran.code == 0, ran.err
    assert "SECRET" not in ran.out + ran.err
    written = [path for folder in (tmp_path / "runs", own_cache) for path in folder.rglob("*")]
    assert any(path.suffix == ".wandb" for path in written)
    assert [path for path in written if path.is_file() and b"SECRET" in path.read_bytes()] == []

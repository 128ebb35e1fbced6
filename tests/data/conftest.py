"""What the tests of reading data share."""

import pytest
from records_on_disk import png_bytes


@pytest.fixture
def root(tmp_path):
    """Return a folder with images a.png and b.png; a third image is outside of it."""
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "a.png").write_bytes(png_bytes())
    (folder / "b.png").write_bytes(png_bytes((0, 0, 255)))
    (tmp_path / "outside.png").write_bytes(png_bytes())
    return folder

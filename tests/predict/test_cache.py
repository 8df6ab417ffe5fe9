from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.errors import DataError
from pneumoscope.image.lungs import WHOLE, LungField
from pneumoscope.image.standardise import Standardised
from pneumoscope.predict.cache import CACHE_VARIABLE, CachedImage, ImageCache, default_cache_folder

FACTS = {"status": "ok", "reasons": ["inverted"], "message": "", "age": 3.5, "view": "AP"}


def entry(seed: int = 0, size: int = 32) -> CachedImage:
    rng = np.random.default_rng(seed)
    view = rng.integers(0, 256, (16, 16)).astype(np.float32) / np.float32(255)
    lungs = LungField(rng.random((16, 16)) < 0.5, (0.1, 0.2, 0.8, 0.9), True, 0.93, view)
    pixels = rng.integers(0, 256, (1, size, size)).astype(np.float32) / np.float32(255)
    return CachedImage(FACTS, Standardised(pixels, (0.1, 0.1, 0.9, 0.9), WHOLE, lungs, 3))


def test_what_is_put_is_what_is_got(tmp_path):
    cache = ImageCache(tmp_path)
    key = cache.key(b"content", "pipeline")
    assert cache.get(key) is None
    stored = entry()
    for found in (cache.put(key, stored), cache.get(key), ImageCache(tmp_path).get(key)):
        assert found.facts == FACTS
        np.testing.assert_array_equal(found.input.pixels, stored.input.pixels)
        np.testing.assert_array_equal(found.input.lungs.mask, stored.input.lungs.mask)
        np.testing.assert_array_equal(found.input.lungs.view, stored.input.lungs.view)
        assert found.input.quarter_turns == 3
        assert (found.input.region, found.input.content) == (stored.input.region, stored.input.content)
        assert (found.input.lungs.box, found.input.lungs.certainty) == ((0.1, 0.2, 0.8, 0.9), 0.93)


def test_a_rejected_image_and_one_without_lungs_are_kept_too(tmp_path):
    cache = ImageCache(tmp_path)
    cache.put("a" * 64, CachedImage({**FACTS, "status": "rejected"}, None))
    assert cache.get("a" * 64).input is None
    cache.put("b" * 64, CachedImage(FACTS, Standardised(np.zeros((1, 8, 8), np.float32), WHOLE, WHOLE, None)))
    assert cache.get("b" * 64).input.lungs is None


def test_keys_depend_on_content_and_pipeline(tmp_path):
    cache = ImageCache(tmp_path)
    assert len({cache.key(*pair) for pair in ((b"a", "x"), (b"b", "x"), (b"a", "y"))}) == 3


def test_the_least_recently_used_entries_go_when_the_folder_is_full(tmp_path):
    size = len_of_one(tmp_path / "one")
    cache = ImageCache(tmp_path / "many", max_bytes=10 * size)
    for number in range(8):
        cache.put(f"{number}" * 64, entry(number))
    old = time.time() - 100
    for path in cache.folder.glob("*/*.zip"):
        os.utime(path, (old, old))
    assert cache.get("0" * 64) is not None  # used just now
    for number in range(8, 16):
        cache.put(f"{number:x}" * 64, entry(number))
    kept = sum(path.stat().st_size for path in cache.folder.glob("*/*.zip"))
    assert kept <= 10 * size
    assert cache.get("0" * 64) is not None
    assert cache.get("1" * 64) is None
    assert cache.get("f" * 64) is not None


def len_of_one(folder: Path) -> int:
    cache = ImageCache(folder)
    cache.put("a" * 64, entry())
    (path,) = cache.folder.glob("*/*.zip")
    return path.stat().st_size


@given(content=st.binary(max_size=400), cut=st.integers(0, 2000))
def test_damaged_entries_are_no_entries(tmp_path_factory, content, cut):
    cache = ImageCache(tmp_path_factory.getbasetemp() / "damaged")
    key = "c" * 64
    cache.put(key, entry())
    (path,) = cache.folder.glob("cc/*.zip")
    whole = path.read_bytes()
    path.write_bytes(content)
    assert cache.get(key) is None
    path.write_bytes(whole[: min(cut, len(whole) - 1)])
    assert cache.get(key) is None


@pytest.mark.parametrize(("place", "value"), [(8, 1), (10, 8), (10, 99)])
def test_a_changed_flag_or_compression_is_no_entry(tmp_path, place, value):
    cache = ImageCache(tmp_path)
    cache.put("a" * 64, entry())
    (path,) = cache.folder.glob("*/*.zip")
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + place] = value  # in the directory at the end of the archive
    path.write_bytes(data)
    assert cache.get("a" * 64) is None


def test_reading_an_entry_parses_no_python(monkeypatch, tmp_path):
    # Several threads read at once, and Python before 3.13 cannot parse Python in several threads.
    cache = ImageCache(tmp_path)
    cache.put("d" * 64, entry())
    monkeypatch.setattr("ast.literal_eval", lambda text: pytest.fail(f"parsed: {text}"))
    assert cache.get("d" * 64) is not None


def test_the_folder_is_that_of_the_variable_or_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "named"))
    assert ImageCache().folder == tmp_path / "named" / "images"
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "pneumoscope"


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cache folder cannot be made"):
        ImageCache(tmp_path / "file")


def test_an_entry_that_may_be_read_only_is_used(tmp_path, monkeypatch):
    cache = ImageCache(tmp_path)
    cache.put("e" * 64, entry())

    def closed(path):
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(os, "utime", closed)
    assert cache.get("e" * 64) is not None


def test_the_file_of_a_file_manager_in_the_folder_stops_nothing(tmp_path):
    cache = ImageCache(tmp_path)
    (cache.folder / ".DS_Store").write_bytes(b"x")
    cache.put("f" * 64, entry())
    assert cache.get("f" * 64) is not None

"""The walk of a folder: which files are images, which cannot be read, and what is left out with a line."""

from __future__ import annotations

import os
import socket
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import ImplicitVRLittleEndian

from bundles import make_bundle
from dicom_files import dicom, ramp
from images import write_image
from pneumoscope.data import walk as module
from pneumoscope.data.walk import is_own_output, special_file, walk
from pneumoscope.errors import Reason, UnreadableImageError
from pneumoscope.parallel import Progress
from pneumoscope.report.overlay import write_png
from pneumoscope.serve.dicom.contracts import ResultOptions
from pneumoscope.serve.dicom.header import encode
from pneumoscope.serve.dicom.results import build_results
from results_of_studies import header, predicted, source, study


class Lines(Progress):
    """Collects messages."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, line: str) -> None:
        self.lines.append(line)


def walked(folder: Path) -> tuple[list[str], list[UnreadableImageError], list[str]]:
    progress = Lines()
    found = list(walk(folder, progress=progress))
    paths = [one.relative_to(folder).as_posix() for one in found if isinstance(one, Path)]
    return paths, [one for one in found if isinstance(one, UnreadableImageError)], progress.lines


def heat_map(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(np.zeros((8, 8, 3), np.uint8), path)


def test_files_come_before_folders_and_shadow_files_are_no_images(tmp_path):
    shadows = (".DS_Store", "._a.png", "Thumbs.db", "__MACOSX/a.png", ".git/b.png", "@eaDir/c.png")
    for name in ("b.png", "a/z.png", "c.png", *(name for name in shadows if name.endswith("png"))):
        write_image(tmp_path / name)
    for name in (".DS_Store", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"\0\0\0\1Bud1")
    (tmp_path / "notes.txt").write_text("no image")
    assert walked(tmp_path) == (["b.png", "c.png", "a/z.png"], [], [])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.webp", b"RIFF\0\0\0\0WEBPVP8 "),
        ("a.jp2", b"\0\0\0\x0cjP  \r\n\x87\n"),
        ("a.HEIC", b""),
        ("a.avif", b""),
        ("a.nii.gz", b"\x1f\x8b"),
        ("a.dcm.gz", b"\x1f\x8b"),
        ("photo", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
        ("photo.part", b"\xff\x0a" + bytes(20)),
        ("noext", b"\x89PNG\r\n\x1a\n"),
    ],
)
def test_what_is_an_image_by_name_or_content_is_listed_even_if_it_is_not_decoded(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert walked(tmp_path) == ([name], [], [])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("r.pdf", b"%PDF-1.4"),
        ("a.zip", b"PK\x03\x04"),
        ("a.npy", b"\x93NUMPY"),
        ("s.wav", b"RIFF\0\0\0\0WAVE"),
    ],
)
def test_documents_archives_and_sounds_are_no_images(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert walked(tmp_path) == ([], [], [])


def test_linked_folders_are_followed_and_loops_end(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    write_image(root / "normal" / "a.png")
    write_image(outside / "b.png")
    (outside / "back").symlink_to(root)
    (root / "pneumonia").symlink_to(outside)
    (root / "again").symlink_to(root / "normal")
    (root / "up").symlink_to(tmp_path)
    (root / "self").symlink_to(root / "self")
    (root / "second").symlink_to(outside)
    paths, problems, lines = walked(root)
    # The link inside of the root gives nothing new, the second link to the same folder nothing either.
    assert (paths, problems) == (["normal/a.png", "pneumonia/b.png"], [])
    assert [line.split(":")[0] for line in lines] == [
        str(root / "up"),
        str(root / "pneumonia" / "back"),
        str(root / "second"),
    ]


def test_a_link_into_a_hidden_folder_is_followed(tmp_path):
    write_image(tmp_path / ".store" / "x" / "a.png")
    (tmp_path / "normal").symlink_to(tmp_path / ".store" / "x")
    assert walked(tmp_path)[0] == ["normal/a.png"]


def test_a_broken_link_named_like_an_image_is_listed(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone.txt")
    assert walked(tmp_path)[0] == ["a.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_and_sockets_are_reasons_and_are_not_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "a.png")
    os.mkfifo(tmp_path / "control")
    monkeypatch.chdir(tmp_path)  # the name of a socket may have 108 characters at most
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("s.png")
        write_image(tmp_path / "z.png")
        paths, problems, _ = walked(tmp_path)
    assert paths == ["z.png"]
    assert [(Path(one.path).name, one.reason) for one in problems] == [
        ("a.png", Reason.NOT_AN_IMAGE),
        ("s.png", Reason.NOT_AN_IMAGE),
    ]
    assert "a named pipe" in problems[0].detail
    assert special_file(tmp_path / "z.png") is None
    assert special_file(tmp_path / "gone") is None


def test_a_closed_folder_is_a_reason_and_the_others_are_listed(tmp_path, monkeypatch):
    for name in ("a/a.png", "b/b.png", "c/c.png"):
        write_image(tmp_path / name)
    scandir = os.scandir

    def guarded(path):
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(module.os, "scandir", guarded)
    paths, (problem,), _ = walked(tmp_path)
    assert paths == ["a/a.png", "c/c.png"]
    assert (problem.path, problem.reason) == (str(tmp_path / "b"), Reason.NO_PERMISSION)


def test_the_index_of_a_dicom_folder_is_a_reason(tmp_path):
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    paths, (problem,), _ = walked(tmp_path)
    assert paths == []
    assert problem.reason is Reason.NO_PIXELS


def test_own_output_is_left_out_with_one_line(tmp_path):
    write_image(tmp_path / "a.png")
    for name in ("a.heatmap.png", "renamed.png", "sub/b.heatmap.png"):
        heat_map(tmp_path / name)
    paths, problems, (line,) = walked(tmp_path)
    assert (paths, problems) == (["a.png"], [])
    assert "3 images drawn by Pneumoscope left out" in line
    assert is_own_output((tmp_path / "renamed.png").read_bytes())
    assert not is_own_output((tmp_path / "a.png").read_bytes())
    assert not is_own_output(tmp_path / "gone.png")


def test_masks_beside_images_are_left_out_with_one_line(tmp_path):
    for name in ("NORMAL/images/1.png", "NORMAL/masks/1.png", "NORMAL/masks/2.png", "COVID/images/1.png"):
        write_image(tmp_path / name)
    write_image(tmp_path / "COVID" / "lung_masks" / "left" / "1.png")
    paths, problems, (line,) = walked(tmp_path)
    assert (paths, problems) == (["COVID/images/1.png", "NORMAL/images/1.png"], [])
    assert "3 masks left out" in line
    assert "NORMAL/masks" in line
    # Asked for by name, or with nothing beside it, a folder is listed whatever it is called.
    assert walked(tmp_path / "NORMAL" / "masks")[0] == ["1.png", "2.png"]


@pytest.mark.parametrize(
    "name",
    [
        "infection masks",
        "lung masks",
        "GT_mask",
        "mask_png",
        "masks_png",
        "leftMask",
        "lungmasks",
        "Segmentations",
        "lung-segmentation",
        "masks 2",
    ],
)
def test_a_folder_whose_first_or_last_word_is_masks_holds_masks(tmp_path, name):
    for path in ("images/1.png", f"{name}/1.png"):
        write_image(tmp_path / path)
    paths, _, lines = walked(tmp_path)
    assert paths == ["images/1.png"]
    assert lines == [f"{tmp_path}: 1 mask left out, not radiographs (in {name})"]


@pytest.mark.parametrize(
    "name",
    [
        "masked",
        "unmasked",
        "rsna-masked",
        "masking study",
        "no_mask",
        "images_without_masks",
        "images_and_masks",
        "Lung Segmentation Data",
    ],
)
def test_a_folder_of_another_name_holds_images(tmp_path, name):
    for path in ("images/1.png", f"{name}/1.png"):
        write_image(tmp_path / path)
    paths, _, lines = walked(tmp_path)
    assert (sorted(paths), lines) == (sorted(["images/1.png", f"{name}/1.png"]), [])


def test_every_kind_of_masks_of_a_class_is_left_out(tmp_path):
    """The folders are those of COVID-QU-Ex."""
    kinds = ("images", "lung masks", "infection masks")
    for path in (f"Train/{name}/{kind}/1.png" for name in ("COVID-19", "Normal") for kind in kinds):
        write_image(tmp_path / path)
    paths, _, (line,) = walked(tmp_path)
    assert paths == ["Train/COVID-19/images/1.png", "Train/Normal/images/1.png"]
    assert "4 masks left out" in line


def test_a_data_set_in_a_folder_named_masks_is_read(tmp_path):
    for name in ("NORMAL/images/n.png", "NORMAL/masks/n.png", "COVID/images/c.png", "COVID/masks/c.png"):
        write_image(tmp_path / "masks" / name)
    write_image(tmp_path / "other" / "a.png")
    paths, _, lines = walked(tmp_path)
    assert paths == ["masks/COVID/images/c.png", "masks/NORMAL/images/n.png", "other/a.png"]
    places = "masks/COVID/masks, masks/NORMAL/masks"
    assert lines == [f"{tmp_path}: 2 masks left out, not radiographs (in {places})"]


def test_all_masks_below_a_folder_of_masks_are_counted(tmp_path):
    for name in (
        "images/1.png",
        "masks/lungs/1.png",
        "masks/lungs/masks/1.png",
        "masks/infection masks/1.png",
    ):
        write_image(tmp_path / name)
    paths, _, lines = walked(tmp_path)
    assert paths == ["images/1.png"]
    assert lines == [f"{tmp_path}: 3 masks left out, not radiographs (in masks)"]


def test_without_a_progress_lines_are_logged(tmp_path, caplog):
    heat_map(tmp_path / "a.heatmap.png")
    assert list(walk(tmp_path)) == []
    assert "drawn by Pneumoscope" in caplog.text


def capture(folder: Path, **elements: str) -> bytes:
    """Return the DICOM image that the node files beside an X-ray, as an archive may have changed it."""
    folder.mkdir(exist_ok=True)
    image = source(folder, header(), predicted())
    options = ResultOptions(structured_report=False)
    (dataset,) = build_results(study(make_bundle(folder / "bundle"), image), options)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return encode(dataset)


def test_captures_of_the_node_are_own_output_and_x_rays_of_other_makers_are_none(tmp_path):
    own = capture(tmp_path)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "own.dcm").write_bytes(own)
    (tmp_path / "set" / "1.2.3").write_bytes(own)
    (tmp_path / "set" / "xray.dcm").write_bytes(dicom(ramp(), Manufacturer="Pneumoscope"))
    assert walked(tmp_path / "set") == (
        ["xray.dcm"],
        [],
        [f"{tmp_path / 'set'}: 2 images drawn by Pneumoscope left out"],
    )
    assert is_own_output(own)
    forwarded, implicit = pydicom.dcmread(BytesIO(own)), BytesIO()
    forwarded.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    forwarded.save_as(implicit, implicit_vr=True, little_endian=True)
    assert is_own_output(implicit.getvalue())
    assert not is_own_output(capture(tmp_path / "b", Manufacturer="Pneumoscope Imaging Ltd"))


@pytest.mark.timeout(20)
def test_a_pipe_is_no_own_output_and_keeps_nobody_waiting(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert not is_own_output(tmp_path / "a.png")

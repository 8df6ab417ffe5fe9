"""Synthetic chest radiographs: schematic, labelled, without patients, drawn in milliseconds.

They let the demo and the tests run without a download. A network that classifies them shows that training
works, and nothing about medicine.

An image is a map of attenuation (soft tissue, bone, air) with the exposure and noise of a detector.
Bacterial pneumonia is one or two focal opacities that fill part of a lobe; viral pneumonia is a net of fine
lines and a thin haze in both lungs. Brightness, contrast, pose and side marker do not depend on the label.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from pneumoscope.data.description import read_description, write_description
from pneumoscope.data.folder import scan
from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.domain import DatasetDescription, Population
from pneumoscope.errors import DataError
from pneumoscope.parallel import Progress

__all__ = ["PHANTOM_CLASSES", "draw_phantom", "write_phantoms"]

PHANTOM_CLASSES = ("normal", "bacterial", "viral")

_DESCRIPTION = DatasetDescription("Pneumoscope phantoms", Population("phantoms"), label_source="drawn")
_Array = npt.NDArray[np.floating[Any]]
_JPEG_QUALITY = 93
# Mean share of images that are a further view of a patient already drawn.
_REPEAT_VIEWS = 0.35


@dataclass(frozen=True)
class _Anatomy:
    """The anatomy that all images of one patient share; lengths in half image widths."""

    chest: float
    apex: float
    base: float
    ribs: int
    rib_slope: float
    rib_strength: float
    heart: float
    heart_tilt: float
    spine: float
    curve: float
    fat: float
    vessels: int

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> _Anatomy:
        """Draw a patient."""
        return cls(
            chest=rng.uniform(0.68, 0.82),
            apex=rng.uniform(-0.78, -0.66),
            base=rng.uniform(0.36, 0.56),
            ribs=int(rng.integers(9, 12)),
            rib_slope=rng.uniform(0.16, 0.36),
            rib_strength=rng.uniform(0.06, 0.13),
            heart=rng.uniform(0.27, 0.36),
            heart_tilt=rng.uniform(0.3, 0.75),
            spine=rng.uniform(0.085, 0.115),
            curve=rng.uniform(-0.03, 0.03),
            fat=rng.uniform(0.04, 0.14),
            vessels=int(rng.integers(1 << 30)),
        )


@dataclass(frozen=True)
class _Scene:
    """Coordinates of one image (x to the right, y down, in [-1, 1] before the pose) and its lungs."""

    x: _Array
    y: _Array
    lungs: _Array
    depth: _Array


def draw_phantom(
    label: str, seed: int, size: int = 256, *, anatomy_seed: int | None = None
) -> npt.NDArray[np.uint8]:
    """Draw one synthetic chest radiograph.

    Parameters
    ----------
    label : {"normal", "bacterial", "viral"}
        Normal, or one of the two diseases.
    seed : int
        Pose, exposure, noise and disease; not negative. The same arguments give the same image.
    size : int
        Width and height in pixels, 32 to 4096.
    anatomy_seed : int, optional
        The patient; by default each seed is another patient.

    Returns
    -------
    ndarray of uint8, shape (size, size)
        Grey levels; bright means dense.

    Raises
    ------
    DataError
        If the label, the seed or the size is out of range.
    """
    if label not in PHANTOM_CLASSES:
        raise DataError(f"phantom of '{label}': choose {', '.join(PHANTOM_CLASSES)}")
    if not 32 <= size <= 4096:
        raise DataError(f"phantom size {size}: choose 32 to 4096 pixels")
    if seed < 0 or (anatomy_seed is not None and anatomy_seed < 0):
        raise DataError("phantom seeds must not be negative")
    anatomy = _Anatomy.drawn(np.random.default_rng([1, seed if anatomy_seed is None else anatomy_seed]))
    # Streams of their own, so that pose and exposure do not depend on the label.
    view, disease = (np.random.default_rng([stream, seed]) for stream in (2, 3))
    scene = _pose(anatomy, view, size)
    tissue = _soft_tissue(scene, anatomy) + _vessels(scene, anatomy) + _bones(scene, anatomy)
    # Little lung lies before and behind the heart, so little disease shows through it.
    seen = 1 - 0.7 * _heart(scene, anatomy)
    if label == "bacterial":
        tissue = tissue + seen * _consolidation(scene, disease)
    elif label == "viral":
        tissue = tissue + seen * _interstitial(scene, disease)
    return _expose(tissue, scene, view)


def write_phantoms(
    out: str | Path,
    *,
    n: int = 300,
    seed: int = 0,
    size: int = 256,
    classes: tuple[str, ...] = PHANTOM_CLASSES,
    progress: Progress | None = None,
) -> Manifest:
    """Write a labelled set of phantoms as JPEG, with folders and names like the Kermany set.

    The classes are as even as `n` allows, and about a third of the images are a further view of a
    patient: enough for a split by file to leak. Writes ``dataset.yaml`` too, where there is none.

    Parameters
    ----------
    out : path-like
        Folder; created if absent. The same call may be repeated into it.
    n : int
        Number of images, at least one for each class.
    seed : int
        The same arguments give the same set.
    size : int
        Width and height in pixels.
    classes : tuple of str
        Of ``normal``, ``bacterial`` and ``viral``.
    progress : Progress, optional
        Receives the number of images drawn and their total.

    Returns
    -------
    Manifest
        Of the folder, without a split.

    Raises
    ------
    DataError
        If an argument is out of range, or the folder holds other images.
    """
    out = Path(out)
    if unknown := [label for label in classes if label not in PHANTOM_CLASSES]:
        raise DataError(f"phantom of '{unknown[0]}': choose {', '.join(PHANTOM_CLASSES)}")
    if not classes or n < len(classes):
        raise DataError(f"{n} phantoms of {len(classes)} classes: draw at least one of each")
    plan = _plan(n, seed, classes)
    if foreign := {path.relative_to(out).as_posix() for path in out.rglob("*.jpeg")} - plan.keys():
        raise DataError(f"{out}: holds other images ({min(foreign)}); choose an empty folder")
    progress = progress or Progress()
    progress.step("drawing phantoms")
    for done, (name, (label, image_seed, patient_seed)) in enumerate(plan.items(), start=1):
        image = draw_phantom(label, image_seed, size, anatomy_seed=patient_seed)
        data = cv2.imencode(".jpeg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
        try:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(data.tobytes())
        except OSError as error:
            raise DataError(f"{out / name}: cannot be written ({error.strerror})") from error
        progress.update(done, len(plan))
    if read_description(out) is None:
        write_description(out, _DESCRIPTION)
    found = scan(out, progress=progress)
    return found.with_records(
        Record(r.path, r.label, r.patient_id, "", r.sha256, size, size, "phantom") for r in found
    )


def _plan(n: int, seed: int, classes: tuple[str, ...]) -> dict[str, tuple[str, int, int]]:
    """Return for each file name its label, image seed and patient seed."""
    rng = np.random.default_rng([4, seed])
    plan: dict[str, tuple[str, int, int]] = {}
    patient = 0
    for index, label in enumerate(classes):
        count = n // len(classes) + (index < n % len(classes))
        view = 0
        for number in range(1, count + 1):
            again = view > 0 and rng.random() < _REPEAT_VIEWS
            view = view + 1 if again else 1
            patient += not again
            if label == "normal":
                name = f"NORMAL/IM-{patient:04d}-{view:04d}.jpeg"
            else:
                cause = {"bacterial": "bacteria", "viral": "virus"}[label]
                name = f"PNEUMONIA/person{patient}_{cause}_{number}.jpeg"
            if not again:
                patient_seed = int(rng.integers(1 << 62))
            plan[name] = (label, int(rng.integers(1 << 62)), patient_seed)
    return plan


def _inside(distance: _Array, softness: float = 0.015) -> _Array:
    """Turn a signed distance (positive inside) into a mask with a soft edge."""
    soft: _Array = 1 / (1 + np.exp(-np.clip(distance / softness, -30, 30)))
    return soft


def _noise(rng: np.random.Generator, size: int, scale: float) -> _Array:
    """Smooth noise of mean 0 and deviation 1; `scale` is its grain in half image widths."""
    grain = max(scale * size / 2, 0.4)
    # Drawn no finer than it needs to be, then enlarged: coarse noise costs nothing.
    coarse = int(np.clip(np.ceil(size * 2 / grain), 8, size))
    field = rng.standard_normal((coarse, coarse), dtype=np.float32)
    field = cv2.GaussianBlur(field, (0, 0), max(grain * coarse / size, 0.4))
    field = cv2.resize(field, (size, size), interpolation=cv2.INTER_CUBIC)
    centred: _Array = (field - field.mean()) / field.std()
    return centred


def _pose(anatomy: _Anatomy, rng: np.random.Generator, size: int) -> _Scene:
    axis = (np.arange(size, dtype=np.float32) + 0.5) * 2 / size - 1
    column, row = np.meshgrid(axis, axis)
    angle, zoom = rng.normal(0, 0.05), rng.uniform(0.92, 1.1)
    column, row = (column - rng.normal(0, 0.05)) / zoom, (row - rng.normal(0, 0.05)) / zoom
    x = np.cos(angle) * column + np.sin(angle) * row
    y = np.cos(angle) * row - np.sin(angle) * column
    x = x - np.float32(anatomy.curve) * np.sin(3 * y)
    # A patient turned a little to one side shows one lung wider than the other.
    x = (x + rng.normal(0, 0.03) * (1 - x**2)).astype(np.float32)
    breath = rng.normal(0, 0.04)
    u = np.abs(x)
    t = np.clip((y - anatomy.apex) / (anatomy.base - anatomy.apex), 0, 1.4)
    outer = anatomy.chest * (0.5 + 0.5 * np.sin(np.pi / 2 * np.clip(t * 1.25, 0, 1))) ** 0.8
    inner = 0.1 + 0.05 * np.abs(t - 0.5)
    # The right dome of the diaphragm (left in the image) stands higher: the liver is under it.
    dome = anatomy.base + breath + np.where(x < 0, -0.05, 0.02) + 0.9 * (u - 0.36) ** 2 * (1 + (u > 0.36))
    top = anatomy.apex + 1.5 * (u - 0.33) ** 2
    edges = (outer - u, u - inner, y - top, dome - y)
    lungs = np.prod([_inside(edge) for edge in edges], axis=0)
    depth = np.clip(np.min([edges[0], edges[1] + 0.05, edges[2], edges[3]], axis=0) / 0.3, 0, 1)
    return _Scene(x, y.astype(np.float32), lungs.astype(np.float32), np.sqrt(depth).astype(np.float32))


def _soft_tissue(scene: _Scene, anatomy: _Anatomy) -> _Array:
    """Body, lungs, trachea, heart and aortic arch."""
    x, y, u = scene.x, scene.y, np.abs(scene.x)
    side = anatomy.chest + anatomy.fat + 0.06 + 0.5 * np.clip(-y - 0.45, 0, 1)
    shoulder = y + 0.98 - 0.5 * np.clip(u - 0.2, 0, 1) ** 1.5
    body = _inside(side - u, 0.02) * _inside(np.maximum(shoulder, 0.17 - u), 0.02)
    thickness = np.sqrt(np.clip(1 - (u / (side + 0.05)) ** 2, 0, 1))
    tissue = body * (0.34 + 0.3 * thickness + 0.1 * np.clip(y - 0.3, 0, 1))
    tissue -= scene.lungs * (0.2 + 0.2 * scene.depth)
    trachea = _inside(0.045 - np.abs(x - 0.01), 0.012) * _inside(-0.22 - y, 0.03)
    tissue -= 0.12 * trachea * body
    heart = _heart(scene, anatomy)
    arch = _inside(1 - np.sqrt(((x - 0.1) / 0.1) ** 2 + ((y + 0.28) / 0.12) ** 2), 0.1)
    tissue += scene.lungs * (0.26 * heart + 0.15 * arch) + 0.04 * heart * body
    mediastinum: _Array = np.exp(-((u / 0.15) ** 4)) * body * 0.05
    total: _Array = tissue + mediastinum
    return total


def _heart(scene: _Scene, anatomy: _Anatomy) -> _Array:
    cx, cy, r = 0.13 * anatomy.heart / 0.3, 0.2, anatomy.heart
    a = (scene.x - cx) * np.cos(anatomy.heart_tilt) + (scene.y - cy) * np.sin(anatomy.heart_tilt)
    b = (scene.y - cy) * np.cos(anatomy.heart_tilt) - (scene.x - cx) * np.sin(anatomy.heart_tilt)
    return _inside(1 - np.sqrt((a / (1.15 * r)) ** 2 + (b / (0.82 * r)) ** 2), 0.06)


def _bones(scene: _Scene, anatomy: _Anatomy) -> _Array:
    """Spine with its discs, posterior and anterior ribs, clavicles."""
    y, u = scene.y, np.abs(scene.x)
    column = _inside(anatomy.spine + 0.008 * np.cos(2 * np.pi * y / 0.155) - u, 0.012)
    discs = 0.5 + 0.5 * np.cos(2 * np.pi * y / 0.155)
    bones: _Array = column * (0.035 + 0.03 * discs**2)
    cage = _inside(anatomy.chest + 0.03 - u, 0.02) * _inside(u - anatomy.spine, 0.02)
    step = (anatomy.base + 0.25 - anatomy.apex) / anatomy.ribs
    for rib in range(anatomy.ribs):
        start = anatomy.apex - 0.06 + rib * step
        width = 0.022 + 0.004 * np.sin(rib)
        back = y - (start - 0.05 * np.sin(np.pi * u / 0.8) + anatomy.rib_slope * u**1.8)
        front = y - (start + 0.12 + 0.6 * (anatomy.chest - u))
        bones = bones + cage * anatomy.rib_strength * _tube(back, width)
        bones = bones + cage * 0.5 * anatomy.rib_strength * _tube(front, width) * _inside(u - 0.33, 0.04)
    clavicle = y - (anatomy.apex + 0.13 - 0.2 * u + 0.04 * np.sin(6 * u))
    return bones + 0.13 * _tube(clavicle, 0.028) * _inside(u - 0.09, 0.02) * _inside(0.72 - u, 0.05)


def _tube(distance: _Array, radius: float) -> _Array:
    """Shadow of a hollow bone: dense at the rim, less so in the middle."""
    inside = _inside(radius - np.abs(distance), 0.006)
    rim = np.exp(-(((np.abs(distance) - radius * 0.8) / 0.009) ** 2))
    shadow: _Array = 0.7 * inside + 0.45 * rim
    return shadow


def _vessels(scene: _Scene, anatomy: _Anatomy) -> _Array:
    """Hila and the branching vessels that every lung shows; the same in all images of a patient."""
    rng = np.random.default_rng([5, anatomy.vessels])
    x, y = scene.x, scene.y
    size = x.shape[0]
    marks = np.zeros_like(x)
    for side in (-1, 1):
        hx, hy = side * 0.17, -0.02 + 0.03 * side
        marks += 0.1 * np.exp(-(((x - hx) / 0.07) ** 2) - ((y - hy) / 0.13) ** 2)
        for _ in range(13):
            angle, bend = rng.uniform(-1.35, 1.35), rng.normal(0, 0.5)
            dx, dy = side * (x - hx), y - hy
            along = dx * np.cos(angle) + dy * np.sin(angle)
            across = dy * np.cos(angle) - dx * np.sin(angle) - bend * np.clip(along, 0, 1) ** 2
            radius = 0.016 * np.clip(1 - along / 0.75, 0.15, 1)
            marks += (
                rng.uniform(0.05, 0.1)
                * np.exp(-((across / radius) ** 2))
                * _inside(along, 0.02)
                * np.clip(1 - along / 0.6, 0, 1)
            )
    # Where vessels cross they do not add up without end.
    marks = 0.13 * np.tanh(marks / 0.13) + 0.012 * _noise(rng, size, 0.12)
    shadow: _Array = marks * scene.lungs
    return shadow


def _consolidation(scene: _Scene, rng: np.random.Generator) -> _Array:
    """One or two focal opacities with an uneven edge, each cut off on one side by a fissure."""
    size = scene.x.shape[0]
    opacity = np.zeros_like(scene.x)
    for _ in range(1 + int(rng.random() < 0.3)):
        side = rng.choice([-1, 1])
        # Not behind the heart (in the lower right of the image), where it would be hidden.
        cx, cy = side * rng.uniform(0.3, 0.56), rng.uniform(-0.5, 0.38 if side < 0 else 0.02)
        rx, ry = rng.uniform(0.13, 0.28), rng.uniform(0.12, 0.24)
        radius = np.sqrt(((scene.x - cx) / rx) ** 2 + ((scene.y - cy) / ry) ** 2)
        edge = 1 - radius + 0.28 * _noise(rng, size, 0.1)
        fissure = side * rng.choice([-1, 1]) * (scene.y - cy - 0.25 * (scene.x - cx) * side) + 0.5 * ry
        blob = _inside(edge, rng.uniform(0.12, 0.25)) * _inside(fissure, 0.02)
        # Air left in the bronchi and alveoli keeps a consolidation from being flat.
        blob *= 1 + 0.18 * _noise(rng, size, 0.035)
        opacity = np.maximum(opacity, rng.uniform(0.15, 0.28) * blob)
    shadow: _Array = opacity * scene.lungs
    return shadow


def _interstitial(scene: _Scene, rng: np.random.Generator) -> _Array:
    """A net of fine lines and a thin haze in both lungs, thickest around the hila."""
    size = scene.x.shape[0]
    net = np.zeros_like(scene.x)
    for grain in (0.03, 0.05):
        # The zero crossings of smooth noise form a closed net of lines.
        net += np.exp(-((_noise(rng, size, grain) / 0.3) ** 2))
    patchy = np.clip(0.75 + 0.35 * _noise(rng, size, 0.25), 0.15, 1.5)
    centre = np.exp(-(((np.abs(scene.x) - 0.22) / 0.4) ** 2) - ((scene.y - 0.05) / 0.5) ** 2)
    strength = rng.uniform(0.06, 0.12)
    haze = rng.uniform(0.0, 0.05)
    pattern = (strength * net * patchy + haze) * (0.5 + 0.7 * centre)
    shadow: _Array = pattern * scene.lungs
    return shadow


def _expose(tissue: _Array, scene: _Scene, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Scatter, detector curve, quantum noise, collimation and side marker, as 8 bits."""
    size = tissue.shape[0]
    scattered = cv2.GaussianBlur(tissue, (0, 0), size * 0.06)
    image = tissue + 0.12 * (scattered - tissue) + 0.012 * _noise(rng, size, 0.5)
    image = cv2.GaussianBlur(image, (0, 0), max(size * rng.uniform(0.001, 0.004), 0.3))
    black, white = rng.uniform(-0.06, 0.06), rng.uniform(0.74, 0.95)
    image = np.clip((image - black) / (white - black), 0, 1) ** rng.uniform(0.75, 1.3)
    fog = rng.uniform(0.0, 0.06)
    image = fog + (1 - fog) * image
    grain = rng.uniform(0.006, 0.022)
    image += grain * rng.standard_normal(image.shape, dtype=np.float32)
    if rng.random() < 0.3:
        border = np.maximum(np.abs(np.linspace(-1, 1, size)), np.abs(scene.y))
        image *= _inside(rng.uniform(0.9, 1.0) - border, 0.01)
    levels: npt.NDArray[np.uint8] = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    if rng.random() < 0.5:
        left = rng.random() < 0.8
        at = (int(size * (0.05 if left else 0.88)), int(size * rng.uniform(0.1, 0.2)))
        line = max(size // 110, 1)
        cv2.putText(levels, "R" if left else "L", at, cv2.FONT_HERSHEY_SIMPLEX, size / 350, 250, line)
    return levels

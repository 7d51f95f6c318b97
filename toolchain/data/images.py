"""A folder of images, one folder inside for each class, as torchvision's ``ImageFolder`` has it; read by Pillow."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporters.bundle import digest
from sim.findings import Refused, refuse
from sim.network import Shape
from toolchain.data.source import Read, Source
from toolchain.inputs import as_inputs, existing

if TYPE_CHECKING:  # only who has images waits for it
    from PIL import Image

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")  #: of Pillow's; others start interpreters
MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}  #: of Pillow's, of 8 bits a value
GREY = {"1", "L", "LA"}
LARGEST = 1 << 26  #: pixels of an image
LISTED = 3  #: classes that messages name


class Images(Source):
    """Images, read one by one as bytes (C, H, W), which become 0..1; all must have the size of the first."""

    def __init__(self, root: Path, names: Sequence[str], classes: np.ndarray | None, shape: Shape | None) -> None:
        """Take images below ``root``, with class numbers (N,) where they have any; see :func:`open_images`."""
        self._root, self._names, self._classes = root.absolute(), names, classes
        self.name, self.labelled = str(root), classes is not None
        if shape is None:
            with _opened(root / names[0], str(root / names[0])) as image:
                width, height = image.size
                shape = (1 if image.mode in GREY else 3, height, width)
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise refuse(str(root), f"images for inputs of {' x '.join(map(str, shape))}", "give inputs as a file")
        self.shape = shape

    def __len__(self) -> int:
        return len(self._names)

    def read(self, samples: Sequence[int]) -> Read:
        """Decode them."""
        pixels = np.stack([self._pixels(self._names[sample]) for sample in samples])
        return as_inputs(pixels, self.shape, self.name, samples[0]), self.labels(samples)

    def labels(self, samples: Sequence[int]) -> np.ndarray | None:
        """Return the numbers of their classes."""
        return None if self._classes is None else self._classes[list(samples)]

    def part(self, samples: Sequence[int]) -> Source:
        """Take only some of the names along."""
        names = [self._names[sample] for sample in samples]
        found = Images(self._root, names, self.labels(samples), self.shape)
        found.name = self.name
        return found

    def described(self) -> str:
        """Name every file, its class and its size."""
        sizes = [(self._root / name).stat().st_size for name in self._names]
        classes = {} if self._classes is None else {"classes": self._classes}
        return digest({"names": np.array(self._names), "sizes": np.array(sizes)} | classes)

    def _pixels(self, name: str) -> np.ndarray:
        """Return an image, uint8 (C, H, W)."""
        channels, height, width = self.shape
        where = str(Path(self.name, name))
        with _opened(self._root / name, where) as image:
            if image.size != (width, height):
                given = f"{image.height} x {image.width} pixels"
                remedy = f"give images of {height} x {width}, or FILE.py:FACTORY of a Dataset that transforms them"
                raise refuse(where, given, remedy)
            try:
                values = np.asarray(image.convert("L" if channels == 1 else "RGB"))
            except Exception as error:  # a damaged image raises almost any
                raise refuse(where, "is damaged", "save it again, or leave it out") from error
        return values.reshape(height, width, channels).transpose(2, 0, 1)


def open_images(root: Path, shape: Shape | None = None, labels: bool = True) -> Images:
    """Open a folder of images: class by class in the order of their names, or without classes where it has none inside.

    A class is a folder inside, with all that lies in folders of its own; its number is its place in the order of names.
    Raises :class:`Refused` where there are none, or no classes and ``labels`` are needed.
    """
    try:
        inside = sorted(os.scandir(root), key=lambda entry: entry.name)
        folders = [entry.name for entry in inside if entry.is_dir()]
        found = [(_below(root, folder), folder) for folder in folders]
        loose = [entry.name for entry in inside if _is_image(entry)]
    except OSError as error:
        raise refuse(str(root), (error.strerror or str(error)).lower(), "check the path and its permissions") from error
    if any(names for names, _ in found):
        if empty := [folder for names, folder in found if not names]:
            listed = ", ".join(empty[:LISTED]) + (", ..." if len(empty) > LISTED else "")
            raise refuse(str(root), f"classes without images: {listed}", "put images there, or move the folders away")
        if loose:
            raise refuse(str(root), f"images beside the folders of classes: {loose[0]}", "move them into one")
        numbers = np.repeat(np.arange(len(found)), [len(names) for names, _ in found])
        return Images(root, [name for names, _ in found for name in names], numbers, shape)
    if not loose:
        raise refuse(str(root), "holds no images", f"give a folder of {', '.join(ENDINGS)}, or a file")
    if labels:
        raise refuse(str(root), "holds no folders of classes", "put the images of each class into a folder of its own")
    return Images(root, loose, None, shape)


def _below(root: Path, folder: str) -> list[str]:
    """List the images of a folder and of those inside, in the order of their names, relative to ``root``."""
    inside = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
    found = [os.path.join(folder, entry.name) for entry in inside if _is_image(entry)]
    for entry in inside:
        if entry.is_dir(follow_symlinks=False):
            found += _below(root, os.path.join(folder, entry.name))
    return found


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(ENDINGS) and entry.is_file()


@contextmanager
def _opened(path: Path, where: str) -> Iterator[Image.Image]:
    """Open an image of a known format, whose size is checked before anything of it is decoded."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            image: Any = Image.open(existing(path), formats=FORMATS)
    except Refused:
        raise
    except Exception as error:  # Pillow's readers raise almost any
        raise refuse(where, "is no readable image", f"give {', '.join(FORMATS)}, or leave it out") from error
    with image:
        if image.width * image.height > LARGEST:
            raise refuse(where, f"{image.height} x {image.width} pixels", f"give at most {LARGEST} pixels")
        if image.mode not in MODES:
            raise refuse(where, f"values of Pillow's mode {image.mode}", "save it with 8 bits a value, or as an array")
        yield image

"""Data sets are read in parts, whatever they are kept in, and what cannot be used is refused in one line."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from refusing import refusal

from toolchain.data import Source, open_data, opening
from toolchain.inputs import load_arrays

X = np.random.default_rng(0).integers(0, 256, (23, 2, 3, 4)).astype(np.uint8)
Y = np.arange(23) % 5


@pytest.fixture(autouse=True)
def _in_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(opening, "WHOLE", 0)
    monkeypatch.chdir(tmp_path)


def written(kind: str) -> str:
    """Save the arrays, and say where."""
    if kind == "npy":
        np.save("x.npy", X)
        return "x.npy"
    x = np.asfortranarray(X) if kind == "Fortran" else X
    (np.savez_compressed if kind == "compressed" else np.savez)("x.npz", x=x, y=Y)
    return "x.npz"


@pytest.mark.parametrize("kind", ["stored", "compressed", "Fortran", "npy"])
def test_a_file_read_in_parts_holds_what_it_holds_as_a_whole(kind: str) -> None:
    source = open_data(written(kind), labels=kind != "npy")
    whole = torch.from_numpy(X).float() / 255
    assert (len(source), source.shape, source.labelled) == (23, (2, 3, 4), kind != "npy")
    for samples in (range(3, 9), [0, 7, 22], range(1, 4), range(23), [5]):
        x, y = source.read(samples)
        assert torch.equal(x, whole[list(samples)])
        assert y is None or y.tolist() == Y[list(samples)].tolist()
    part = source.part(range(4, 20)).part([1, 2, 9])
    assert torch.equal(part.read([0, 2])[0], whole[[5, 13]])
    labels = part.labels([0, 2])
    assert (labels is None) == (kind == "npy")
    assert labels is None or labels.tolist() == Y[[5, 13]].tolist()


def test_small_archives_are_read_as_they_always_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "WHOLE", 1 << 20)
    x, y = open_data(written("stored")).read(range(23))
    whole, labels = load_arrays("x.npz")
    assert torch.equal(x, whole)
    assert labels is not None
    assert y is not None
    assert y.tolist() == labels.tolist()


def test_sequences_and_plain_features_have_the_shape_of_the_network() -> None:
    np.save("sequences.npy", np.zeros((4, 2, 5), np.float32))
    assert open_data("sequences.npy", (2, 5, 1), labels=False).read([1, 3])[0].shape == (2, 2, 5, 1)
    message = "sequences.npy: x: shape (4, 2, 5); it needs (N, 2, 6, 1)"
    assert refusal(open_data, "sequences.npy", (2, 6, 1), False) == message


def test_numbers_that_are_no_inputs_are_named_by_their_place_in_the_whole() -> None:
    x = np.zeros((9, 4), np.float32)
    x[7] = np.nan
    np.save("x.npy", x)
    source = open_data("x.npy", labels=False).part(range(5, 9))
    assert refusal(source.read, range(1, 4)) == "x.npy: x: sample 7 holds NaN or infinity; clean the data"


def test_files_that_promise_more_than_they_hold_are_refused_before_anything_is_allocated() -> None:
    np.save("x.npy", X)
    whole = Path("x.npy").read_bytes()
    Path("cut.npy").write_bytes(whole[:-1])
    Path("huge.npy").write_bytes(whole.replace(b"(23, 2, 3, 4)", b"(1 << 40, 9,)"[:13]))
    Path("large.npy").write_bytes(whole.replace(b"(23, 2, 3, 4)", b"(9999999, 99)"))
    for name in ("cut", "large"):
        assert "declares more data than the file holds" in refusal(open_data, f"{name}.npy", None, False)
    assert "is not a readable .npy file" in refusal(open_data, "huge.npy", None, False)
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile("x.npz", "w", compression) as archive:
            archive.writestr("x.npy", Path("large.npy").read_bytes())
        assert "x.npz: x: declares more data than the file holds" in refusal(open_data, "x.npz", None, False)


def test_damage_that_shows_while_a_file_is_read_is_one_line() -> None:
    np.savez_compressed("x.npz", x=np.random.default_rng(0).random((50, 40), np.float32))
    source = open_data("x.npz", labels=False)
    data = bytearray(Path("x.npz").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    Path("x.npz").write_bytes(data)
    for _ in range(2):  # nobody reads on from where the first error left it
        assert "x.npz: is not a readable .npz file" in refusal(source.read, range(50))
    assert "x.npz: is not a readable .npz file" in refusal(source.read, range(49, 50))


def test_what_archives_take_when_they_are_read_decides_how(monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed("x.npz", x=np.zeros((64, 256), np.float32))
    assert Path("x.npz").stat().st_size < 1 << 12
    for limit, kind in ((1 << 17, "Arrays"), (1 << 16, "Npy")):
        monkeypatch.setattr(opening, "WHOLE", limit)
        assert type(open_data("x.npz", labels=False)).__name__ == kind


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": Y}, "has no array 'x'"),
        ({"x": X}, "has no array 'y'; add the labels"),
        ({"x": X.astype(str), "y": Y}, "type <U3; give floating-point numbers or integers"),
        ({"x": X, "y": Y[:3]}, "y: int64 of shape (3,); it needs numbers for 23 samples"),
        ({"x": np.array([None] * 3), "y": Y[:3]}, "is not a readable .npz file"),
        ({"x": X[:0], "y": Y[:0]}, "empty: shape (0, 2, 3, 4)"),
    ],
)
def test_archives_that_do_not_fit_are_refused_as_when_read_whole(arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez("x.npz", **arrays)
    assert message in refusal(open_data, "x.npz")
    assert message in refusal(load_arrays, "x.npz")


def test_no_part_of_a_compressed_array_in_fortrans_order_can_be_read() -> None:
    np.savez_compressed("x.npz", x=np.asfortranarray(X), y=Y)
    assert "it is" not in refusal(open_data, "x.npz")
    assert refusal(open_data, "x.npz").endswith("can be read alone; save numpy.ascontiguousarray of it")


def test_labels_of_an_array_alone_are_asked_for() -> None:
    assert refusal(open_data, written("npy")).startswith("x.npy: holds inputs alone; give labels too")


def images(*names: str, mode: str = "RGB", size: tuple[int, int] = (5, 4)) -> dict[str, np.ndarray]:
    """Save drawn images, and return their pixels."""
    found, rng = {}, np.random.default_rng(1)
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
        image = Image.fromarray(pixels).convert(mode)
        image.save(name)
        found[name] = np.asarray(image)
    return found


def test_a_folder_of_images_has_classes_in_the_order_of_names() -> None:
    pixels = images("im/cat/b.png", "im/cat/a.PNG", "im/ant/sub/of/a/sub/z.bmp", "im/ant/y.png")
    source = open_data("im")
    x, y = source.read(range(4))
    assert source.shape == (3, 4, 5)
    assert y is not None
    assert y.tolist() == [0, 0, 1, 1]
    order = ["im/ant/y.png", "im/ant/sub/of/a/sub/z.bmp", "im/cat/a.PNG", "im/cat/b.png"]
    assert torch.equal(
        x, torch.stack([torch.from_numpy(pixels[name].transpose(2, 0, 1) / np.float32(255)) for name in order])
    )
    assert torch.equal(source.part(range(2, 4)).read([1])[0], x[3:])


def test_grey_images_have_one_channel_and_coloured_ones_are_made_grey_for_a_network_that_takes_one() -> None:
    grey = images("grey/0/a.png", mode="L")["grey/0/a.png"]
    assert torch.equal(open_data("grey").read([0])[0], torch.from_numpy(grey[None, None] / np.float32(255)))
    assert open_data("grey", (3, 4, 5)).read([0])[0].shape == (1, 3, 4, 5)
    images("colour/0/a.png")
    assert open_data("colour", (1, 4, 5)).read([0])[0].shape == (1, 1, 4, 5)


def test_images_without_classes_do_for_calibration() -> None:
    images("loose/a.png", "loose/b.png")
    source = open_data("loose", labels=False)
    assert (len(source), source.labels([0])) == (2, None)
    assert "holds no folders of classes" in refusal(open_data, "loose")


def test_images_that_cannot_be_used_are_refused_by_name() -> None:
    images("im/a/1.png", "im/b/2.png")
    images("im/b/3.png", size=(6, 4))
    assert refusal(open_data("im").read, range(3)).startswith(
        "im/b/3.png: 4 x 6 pixels; give images of 4 x 5, or FILE.py:FACTORY of a Dataset"
    )
    Path("im/b/3.png").write_bytes(Path("im/b/2.png").read_bytes()[:60])
    assert refusal(open_data("im").read, range(3)).startswith("im/b/3.png: is ")
    Path("im/b/3.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 4\n")
    assert "im/b/3.png: is no readable image" in refusal(open_data("im").read, range(3))
    Image.fromarray(np.zeros((4, 5), np.uint16)).save("im/b/3.png")
    assert "im/b/3.png: values of Pillow's mode I;16" in refusal(open_data("im").read, range(3))


def test_folders_that_hold_no_classes_of_images_are_refused() -> None:
    images("im/a/1.png")
    Path("im/empty").mkdir()
    assert "im: classes without images: empty" in refusal(open_data, "im")
    Path("im/empty").rmdir()
    images("im/beside.png")
    assert "im: images beside the folders of classes: beside.png" in refusal(open_data, "im")
    Path("nothing").mkdir()
    assert "nothing: holds no images" in refusal(open_data, "nothing")
    assert "im/a/1.png: is not a readable .npz file" in refusal(open_data, "im/a/1.png")


def test_an_image_of_too_many_pixels_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    from toolchain.data import images as module

    images("im/a/1.png")
    monkeypatch.setattr(module, "LARGEST", 19)
    assert "im/a/1.png: 4 x 5 pixels; give at most 19 pixels" in refusal(open_data, "im")


DATASET = """
import numpy as np, torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

def pairs():
    print("made")
    return TensorDataset(torch.arange(12.0).reshape(4, 3), torch.tensor([0, 1, 0, 2]))

class Pictures(Dataset):
    def __len__(self):
        return 3
    def __getitem__(self, i):
        return Image.fromarray(np.full((2, 2, 3), 51 * i, np.uint8)), i % 2

class Failing(Pictures):
    def __getitem__(self, i):
        if i == 2:
            raise KeyError("no such file")
        return super().__getitem__(i)

class Growing(Pictures):
    def __getitem__(self, i):
        return torch.zeros(2 + i // 2), 0

class Alone(Pictures):
    def __getitem__(self, i):
        return torch.zeros(2)

class Texts(Pictures):
    def __getitem__(self, i):
        return torch.zeros(2), "cat"

class Words(Pictures):
    def __getitem__(self, i):
        return {"x": 1}

class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield torch.zeros(2), 0

class Empty(Pictures):
    def __len__(self):
        return 0

number = 3
"""


def made(name: str, module: bool = False) -> Source:
    Path("theirs.py").write_text(DATASET)
    return open_data(f"theirs{'' if module else '.py'}:{name}")


def test_a_dataset_of_the_users_own_is_taken_item_by_item(capsys: pytest.CaptureFixture[str]) -> None:
    for module in (False, True):
        source = made("pairs", module)
        x, y = source.read([1, 3])
        assert y is not None
        assert (x.tolist(), y.tolist()) == ([[3, 4, 5], [9, 10, 11]], [1, 2])
    assert capsys.readouterr().out == ""
    pictures = made("Pictures").read(range(3))[0]
    assert pictures.shape == (3, 3, 2, 2)
    assert pictures[:, 0, 0, 0].tolist() == pytest.approx([0.0, 0.2, 0.4])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Failing", "sample 2: KeyError: 'no such file' (theirs.py, line 19)"),
        ("Growing", "samples of different shapes"),
        ("Texts", "the labels of samples 0..2 are no numbers of one shape"),
    ],
)
def test_items_that_cannot_be_used_are_refused_by_their_number(name: str, message: str) -> None:
    assert message in refusal(made(name).read, range(3))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Alone", "has no labels; return (input, label) from __getitem__"),
        ("Words", "sample 0 is a dict with keys 'x'"),
        ("Endless", "its length: TypeError: object of type 'Endless' has no len()"),
        ("Empty", "is empty"),
        ("number", "'number' is an int; name a data set, or a function or class that builds one"),
        ("nothing", "has no 'nothing'; name a function or class that builds the data set; it has pairs, Pictures"),
    ],
)
def test_what_is_no_data_set_is_refused(name: str, message: str) -> None:
    assert message in refusal(made, name)


def test_data_sets_are_told_apart_and_recognised_elsewhere() -> None:
    def identity(**changes: np.ndarray) -> str:
        np.savez("x.npz", **({"x": X, "y": Y} | changes))
        return open_data("x.npz").identity()

    other = X.copy()
    other[1, 0, 0, 0] += 1  # of no sample that is looked at: the archive's checksum tells
    found = [identity(), identity(x=other), identity(y=Y[::-1]), identity(x=X[:-1], y=Y[:-1])]
    assert len(set(found)) == 4
    Path("x.npz").rename("elsewhere.npz")
    assert open_data("elsewhere.npz").identity() == found[-1]
    assert open_data("elsewhere.npz").first(7).identity() not in found
    images("im/a/1.png", "im/b/2.png")
    first = open_data("im").identity()
    Path("im").rename("moved")
    assert open_data("moved").identity() == first
    Path("moved/b").rename("moved/c")
    assert open_data("moved").identity() != first


def test_samples_are_the_first_or_drawn_from_all_over() -> None:
    source = open_data(written("stored"))
    assert len(source.first(3)) == 3
    drawn = source.drawn(5)
    labels = drawn.labels(range(5))
    assert labels is not None
    assert len(drawn) == 5
    assert torch.equal(drawn.read(range(5))[0], source.drawn(5).read(range(5))[0])
    assert source.drawn(99) is source
    assert refusal(source.first, 24) == "samples: 24 asked for; the data holds 1 to 23"
    assert refusal(source.drawn, 0) == "samples: 0 asked for; give at least 1"


def test_neither_torchvision_nor_dask_is_imported_for_images(tmp_path: Path) -> None:
    images("im/a/1.png")
    code = (
        "import sys, toolchain.data, toolchain.assessment; toolchain.data.open_data('im').read([0]);"
        "print({'torchvision', 'distributed', 'dask'} & sys.modules.keys())"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": root})
    assert done.stdout == "set()\n", done.stderr

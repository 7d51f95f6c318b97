"""Files of format 1 are read today as they were written then."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from goldens import networks

from exporters import netx
from sim.network import Network
from toolchain.recipe import RECIPES, Recipe

GOLDENS = Path(networks.__file__).parent


@pytest.mark.parametrize("build", [networks.sequence, networks.residual], ids=["sequence", "residual"])
def test_a_network_of_format_1_is_read_and_written_as_it_was(build: Callable[[], Network], tmp_path: Path) -> None:
    stored = GOLDENS / f"{build.__name__}.net"
    assert netx.read(stored) == build()
    netx.save(build(), tmp_path / "again.net")
    then, now = contents(stored), contents(tmp_path / "again.net")
    assert then.keys() == now.keys()
    for name, value in then.items():
        assert np.array_equal(value, now[name]), name
        assert value.dtype == now[name].dtype, name


def contents(path: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: found.update({name: item[()]} if isinstance(item, h5py.Dataset) else {}) or None
        )
        groups = [file, *(file[name] for name in collect(file))]
        for group in groups:
            found |= {f"{group.name}@{key}": np.asarray(value) for key, value in group.attrs.items()}
    return found


def collect(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visit(names.append)
    return names


def test_a_recipe_of_format_1_is_read() -> None:
    assert Recipe(**json.loads((GOLDENS / "config.json").read_text())) == RECIPES["ftbc+rts"]

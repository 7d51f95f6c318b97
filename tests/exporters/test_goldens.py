"""Files of format 1 are read today as they were written then, and written again with what silicon holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from goldens import networks

from exporters import netx
from sim import reference
from sim.network import Network
from sim.trace import first_difference
from toolchain.recipe import RECIPES, Recipe

GOLDENS = Path(networks.__file__).parent


#: What format 3 says otherwise in the netx form: which format it is, what silences each layer, the digest.
SAID_ANEW = {"/@format_version", "/@sha256"}
SAID_ANEW |= {f"layer/{index}/{field}" for index in (1, 2, 4) for field in ("bias", "neuron/vThMant")}


@pytest.mark.parametrize(
    ("build", "changed"), [(networks.sequence, SAID_ANEW), (networks.residual, set())], ids=["sequence", "residual"]
)
def test_a_network_of_format_1_is_read_and_written_as_it_was(
    build: Callable[[], Network], changed: set[str], tmp_path: Path
) -> None:
    stored = GOLDENS / f"{build.__name__}.net"
    assert netx.read(stored) == build()
    netx.save(build(), tmp_path / "again.net")
    then, now = contents(stored), contents(tmp_path / "again.net")
    assert then.keys() == now.keys()
    assert {name for name, value in then.items() if not np.array_equal(value, now[name])} == changed
    assert all(value.dtype == now[name].dtype for name, value in then.items())


def test_a_layer_is_silenced_by_16_bits_in_format_1_and_by_13_since(tmp_path: Path) -> None:
    network = networks.sequence()
    netx.save(network, tmp_path / "again.net")
    then, now = contents(GOLDENS / "sequence.net"), contents(tmp_path / "again.net")
    room = 4095 - int((network["first"].v0 + np.cumsum(network["first"].bias, 0)).max())
    assert then["layer/1/bias"].tolist() == [-32768] * 4
    assert now["layer/1/bias"].tolist() == [-4096] * 4
    assert (then["layer/1/neuron/vThMant"], now["layer/1/neuron/vThMant"]) == (303, 303 + room)


@pytest.mark.lava
def test_a_file_of_format_1_runs_through_stock_netx_as_it_did() -> None:
    network = networks.sequence()
    payload = np.arange(120).reshape(2, 2, 6, 5) % 41 - 20
    trace = netx.load(GOLDENS / "sequence.net").run(payload)
    assert first_difference(reference.run(network, payload), trace) is None
    assert trace.spikes["first"].any()


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

"""A Loihi 2 system through Lava's private extension, which Intel gives to members of its research community.

None of this has met the extension here. It keeps to what public programs for the chip do: the names are those of
lava-nc 0.10.0 (``lava/utils/loihi.py``) and of the notebooks of lava-dl 0.6.0 (``netx/mnist``, ``netx/pilotnet_snn``).
"""

from __future__ import annotations

import os
import subprocess
from typing import Any

from sim.findings import Finding, refuse
from sim.on_lava.stepped import Host


def missing() -> list[Finding]:
    """Say what this computer, which has Lava, lacks to run anything on Loihi 2; an empty list where it has all."""
    from lava.utils import loihi

    if loihi.is_installed():
        return []
    problem = "Lava's extension for Loihi (lava-loihi) is not installed here, which alone reaches a chip"
    remedy = "members of Intel's Neuromorphic Research Community get it from Intel: ask inrc_interest@intel.com"
    return [Finding("loihi2", problem, remedy)]


def choose(partition: str | None, board: str | None, host: str | None, generation: str) -> None:
    """Tell Lava which system to take, before anything is built: by SLURM, or directly by address.

    Raises :class:`sim.findings.Refused` for what Lava does not find.
    """
    from lava.utils import loihi

    try:
        chips = loihi.ChipGeneration(generation)
        if host is not None:
            loihi.use_ethernet_host(host, loihi_gen=chips)
        else:
            loihi.use_slurm_host(partition=partition, board=board, loihi_gen=chips)
    except (ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise refuse("loihi2", reason, "see `sinfo` for partitions, boards and their state") from error


def jobs() -> set[tuple[str, str]]:
    """Return partition and node of every job that SLURM runs for this user; empty where SLURM does not answer."""
    command = ["squeue", "--me", "--noheader", "--states=RUNNING", "--format=%P %N"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return set()
    return {(partition, node) for partition, _, node in (line.partition(" ") for line in listed.splitlines())}


def address() -> str | None:
    """Return the address that Lava connects to where SLURM has no part in it."""
    return os.environ.get("NXSDKHOST")


def _hardware() -> Any:
    from lava.magma.core.run_configs import Loihi2HwCfg

    return Loihi2HwCfg()


def _inward(port: Any, conv: bool, bits: int) -> Any:
    from lava.proc import embedded_io as eio

    adapter = eio.spike.PyToN3ConvAdapter if conv else eio.spike.PyToNxAdapter
    entry = adapter(shape=port.shape, num_message_bits=bits)
    port.connect(entry.inp)
    return entry.out


HOST = Host(_hardware, _inward)

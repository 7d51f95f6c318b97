"""What has been published about cores, events and steps of Loihi, as data with its source. None is Intel's word.

The core model is fitted to what the closed compiler has printed into public notebooks: tables of words per core of five
networks (lava-dl d825ac5, tutorials/lava/lib/dl/netx: mnist/run, oxford/run, pilotnet_snn/benchmark,
pilotnet_sdnn/benchmark, yolo_kp/run). It gives every word of dense synapses there and the cores of all 20 convolutions;
words of AxonMap and AxonMem are the most that the tables have.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cores:
    """What a core of one chip holds, and what things take in it; words are of 64 bit."""

    name: str
    per_chip: int  #: usable; papers report 120 to 128
    neurons: int  #: the tables' percentages are shares of 4095, and no tile holds the 4096 that powers of two offer
    synapses: int  #: words; mnist/run, yolo_kp/run (notebooks of January 2023: 12000)
    axon_in: int  #: words; mnist/run
    axon_map: int  #: words; mnist/run
    total: int  #: words of all kinds, one a neuron; mnist/run, yolo_kp/run
    weight_bits: tuple[int, ...]  #: that a synapse may have; nengo-loihi 1.1 block.py, and the words of oxford/run
    dense_bits: int  #: of a dense synapse beside its weight; exact on 13 of 13 dense layers
    dense_header: int  #: bits of a list of dense synapses; 1 to 8 explain all 13
    conv_header: int  #: words of a list of convolutional synapses; exact on 7 of 10 layers, within 35 % on all
    conv_axons_in: int  #: words for a whole convolution; 1 to 2
    conv_sites: int  #: words of AxonMap per (row, column) for all its neurons, towards a convolution; 1 to 2
    mesh: tuple[int, int, int]  #: tiles from west to east, from south to north, cores in each: of Loihi 1 (SANA-FE)


LOIHI2 = Cores(
    "Loihi 2",
    per_chip=120,
    neurons=4095,
    synapses=16_000,
    axon_in=16_000,
    axon_map=16_000,
    total=20_000,
    weight_bits=(1, 2, 3, 4, 5, 6, 8),
    dense_bits=12,
    dense_header=8,
    conv_header=1,
    conv_axons_in=2,
    conv_sites=2,
    mesh=(8, 4, 4),
)

CORES = {"loihi2": LOIHI2}


@dataclass(frozen=True)
class Events:
    """What single events take on one chip: energies in pJ, times in ns."""

    chip: str
    source: str
    access: float  #: energy of looking at a neuron
    update: float  #: energy beside it of changing its state
    spike: float  #: energy of firing
    conv: float  #: energy of a synaptic event, shared kernel
    dense: float  #: energy of a synaptic event, one of a list to all neurons
    sparse: float  #: energy of a synaptic event, any other
    message: float  #: energy of sending a spike to one core
    hop_east_west: float  #: energy between neighbouring tiles
    hop_north_south: float
    neuron_time: float  #: of access and update
    spike_time: float
    conv_time: float
    dense_time: float
    sparse_time: float
    send_time: float
    receive_time: float
    barrier: tuple[float, float]  #: synchronisation of a step, from 1 to 29 tiles


#: SPICE simulations of Davies et al. (IEEE Micro 2018), as SANA-FE has them (SLAM-Lab/SANA-FE, arch/loihi.yaml).
LOIHI1_EVENTS = Events(
    "Loihi 1",
    "SANA-FE, arch/loihi.yaml, after Davies et al. 2018",
    access=51.2,
    update=21.6,
    spike=69.3,
    conv=24.0,
    dense=35.5,
    sparse=33.6,
    message=111.0,
    hop_east_west=3.0,
    hop_north_south=4.2,
    neuron_time=6.0 + 3.7,
    spike_time=30.0,
    conv_time=3.1,
    dense_time=3.8,
    sparse_time=4.7,
    send_time=5.1,
    receive_time=16.0,
    barrier=(600.0, 1800.0),
)


@dataclass(frozen=True)
class Measured:
    """A range between measurements on one chip."""

    chip: str
    source: str
    low: float
    high: float


#: us per step. The low end is a small network's, the high end PilotNet's on 74 cores, 6543 steps a second.
STEP = Measured("Loihi 2", "arXiv 2609.32317 (low); lava-dl pilotnet_snn/benchmark, 74 cores (high)", 12.9, 153.0)
#: W per chip that does nothing. The same notebook's energies are not used: its input may never have reached the chip.
STATIC = Measured("Loihi 2", "lava-dl pilotnet_snn/benchmark (low), pilotnet_sdnn/benchmark (high)", 0.23, 0.28)

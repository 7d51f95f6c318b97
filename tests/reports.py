"""A report made by hand, with something in every field that is shown."""

from __future__ import annotations

from exporters.report import (
    Accuracy,
    Agreement,
    Attribution,
    Cost,
    CostRow,
    EdgeRow,
    EngineRow,
    Estimate,
    Fit,
    FitRow,
    LayerRow,
    Report,
    Share,
    StepAccuracy,
    Verification,
)


def accuracy(percent: float, n: int = 200) -> Accuracy:
    return Accuracy(value=percent, n=n, low=percent - 1.5, high=percent + 0.75)


def agreement(percent: float, n: int = 200) -> Agreement:
    return Agreement(value=percent, n=n, low=percent - 2, high=percent)


REPORT = Report(
    model="tiny",
    timesteps=4,
    holdoff=1,
    method="exact",
    weights="fitted",
    samples=200,
    accuracy={"ann": accuracy(98.5), "int8": accuracy(97.25), "lava": accuracy(93.75, 16)},
    agreement={"folded": agreement(100.0), "int8": agreement(96.5), "lava": agreement(87.5, 16)},
    accuracy_by_step=tuple(StepAccuracy(step=t, **vars(accuracy(90 + t))) for t in (1, 2, 3, 4)),
    accuracy_by_timesteps={10: accuracy(98.0), 2: accuracy(95.0), 4: accuracy(94.0)},
    layers=(
        LayerRow(
            name="conv|1",
            shape=(16, 8, 8),
            kind="spiking",
            edges=(EdgeRow(source="input", synapse="Conv2d", weight_shape=(16, 1, 3, 3)),),
            weights=144,
            theta=181,
            phase=2,
            bias_min=-12,
            bias_max=34,
            neurons=1024,
            copies=2,
            spikes_per_neuron=0.9567,
            rate_error=0.0112,
            correlation=0.9941,
            peak=1000,
            outside=900,
            worst_case=200_000,
            state_limit=131_072,
        ),
        LayerRow(
            name="silent",
            shape=(3,),
            kind="spiking",
            edges=(EdgeRow(source="conv|1", synapse="Dense", weight_shape=(3, 3)),),
            weights=9,
            theta=7,
            phase=4,
            bias_min=0,
            bias_max=0,
            neurons=3,
            worst_case=99,
        ),
        LayerRow(
            name="fc",
            shape=(10,),
            kind="readout",
            edges=(EdgeRow(source="silent", synapse="Dense", weight_shape=(10, 512)),),
            weights=5120,
            theta=0,
            phase=5,
            bias_min=-5,
            bias_max=6,
            neurons=10,
            peak=26_236,
            worst_case=101_170,
            state_limit=131_072,
        ),
    ),
    attribution=Attribution(
        samples=99,
        layers=(
            Share(
                name="conv|1",
                error=0.25,
                inherited=-0.1,
                own=0.35,
                weights=-0.0001,
                clipping=0.2,
                staircase=0.15,
                timing=0.02,
                dead=0.03,
                saturated=0.125,
                residual_outside=0.0012,
                dead_channels=3,
            ),
            Share(
                name="fc",
                error=0.5,
                inherited=0.4,
                own=0.1,
                weights=0.1,
                clipping=0,
                staircase=0,
                timing=0,
                dead=0,
            ),
        ),
        verdict="It goes wrong first in conv|1: because.",
    ),
    verification=Verification(
        samples=16,
        engines=(
            EngineRow(engine="reference", differences=0, seconds=1.234, neuron_steps=5000),
            EngineRow(engine="fast", differences=3, seconds=0.5, neuron_steps=4999),
        ),
        spikes=777,
        difference="layer fc, step 3",
        skipped=(),
        summary="reference, fast differ: layer fc, step 3",
    ),
    fit=Fit(
        chip="Loihi 2",
        cores=5,
        chips=1,
        neurons=1037,
        layers=(
            FitRow(
                name="conv|1",
                shape=(16, 8, 8),
                tile=(16, 4, 8),
                cores=2,
                neurons=512,
                synapses=59,
                axon_in=4,
                axon_map=128,
                axon_mem=32,
                total=735,
                bottleneck="neurons",
                share=12.5,
                remedy="use fewer channels",
            ),
            FitRow(
                name="fc",
                shape=(10,),
                tile=(10,),
                cores=None,
                neurons=10,
                synapses=17_000,
                axon_in=512,
                axon_map=10,
                axon_mem=0,
                total=17_532,
                bottleneck="synapses",
                share=106.25,
                remedy=None,
            ),
        ),
    ),
    cost=Cost(
        samples=99,
        steps=8,
        period=5,
        spikes=979.75,
        payloads=240.5,
        synaptic_events=88_000.25,
        neuron_updates=5000,
        messages=1200.0,
        hops=0.5,
        between_chips=0.0,
        layers=(
            CostRow(
                name="conv|1",
                spikes=979.75,
                synaptic_events=60_000.25,
                neuron_updates=4096,
                messages=1200.0,
                hops=0.5,
            ),
        ),
        estimates=(
            Estimate(
                quantity="time to the answer", unit="ms", low=0.1032, high=1.224, chip="Loihi 2", source="a notebook"
            ),
            Estimate(
                quantity="dynamic energy", unit="uJ", low=None, high=None, chip="Loihi 2", source="nothing is published"
            ),
        ),
    ),
    findings=("conv1: something stands out; look at it",),
)

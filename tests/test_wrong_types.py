"""Whatever is put through the door in the place of what belongs there is refused in one line, and never taken."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ann2loihi as a2l
from sim import fast, reference
from sim.network import Conv2d, Dense, Geometry, Output
from toolchain.convert import in_every_form
from toolchain.inputs import load_arrays, selected
from toolchain.loading import load_model

pytestmark = pytest.mark.filterwarnings("ignore")


class BadError(Exception):
    """What a foreign object may raise."""


class Awkward:
    """An object that answers no question."""

    def __repr__(self) -> str:
        raise BadError

    def __bool__(self) -> bool:
        raise BadError

    def __array__(self, *_: Any) -> Any:
        raise BadError


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


X = np.random.default_rng(0).random((40, 4), np.float32)
Y = np.arange(40) % 3
MODEL = build()
SAMPLE = torch.from_numpy(X)
training = a2l.training
FEW = training.Settings(epochs=1, validation=8, calibration=8)


@functools.cache
def made() -> a2l.Conversion:
    return a2l.convert(MODEL, X, 2)


#: What no argument is meant to be.
ALWAYS: dict[str, Any] = {
    "an object": object(),
    "an object that raises": Awkward(),
    "a class": Awkward,
    "a complex number": 1j,
    "a set": {1, 2},
    "a ragged list": [[1.0], [1.0, 2.0]],
    "an array of objects": np.array([None, "x"]),
}
#: What some argument may be; each group of arguments is tried with what it is not.
NONE = {"None": None}
TEXTS = {"text": "x", "empty text": "", "bytes": b"x"}
NUMBERS = {"a fraction": 2.5, "NaN": float("nan"), "infinity": float("inf"), "True": True}
INTEGERS = {"an integer": 3, "a negative integer": -1}
ARRAYS = {"an empty array": np.zeros((0, 4)), "an array of rank 6": np.zeros((1,) * 6), "an array with NaN": X * np.nan}
OTHERS = {"a dict": {"x": 1}, "a list of lists": [[1, 2], [3, 4]], "a function": lambda x: x, "a path": Path("nowhere")}
MODULES = {"a module": MODEL}


def without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


NOT_AN_INSTANCE = ALWAYS | NONE | TEXTS | NUMBERS | INTEGERS | ARRAYS | OTHERS
NO_SINK = without(NOT_AN_INSTANCE, "None", "a function", "a class")
NOT_AN_ARRAY = ALWAYS | NONE | TEXTS | {"NaN": float("nan"), "an integer": 3} | ARRAYS | OTHERS | MODULES
NOT_A_COUNT = ALWAYS | TEXTS | NUMBERS | {"a negative integer": -1, "zero": 0} | ARRAYS | OTHERS
NOT_A_TEXT = ALWAYS | TEXTS | NUMBERS | INTEGERS | {"a dict": {}, "a list": ["x"], "NumPy's text": np.array("x")}
NOT_A_PATH = (
    ALWAYS
    | NONE
    | NUMBERS
    | INTEGERS
    | ARRAYS
    | MODULES
    | {
        "bytes": b"x",
        "a list": ["x"],
        "a NUL": "a\0b",
        "half a character": "\ud800",
        "a name that is too long": "x" * 300,
    }
)
NO_FILE = NOT_A_PATH | {"empty text": "", "no file": "nowhere.net", "a directory": "/"}
NOT_A_BOOL = ALWAYS | NONE | TEXTS | INTEGERS | {"a fraction": 2.5, "a list": [True]}
NOT_A_SHAPE = (
    ALWAYS | NONE | TEXTS | INTEGERS | ARRAYS | {"fractions": (2.5,), "negative": (-4,), "none": (), "long": (1,) * 5}
)


def arguments() -> dict[str, tuple[Callable[[Any], Any], dict[str, Any]]]:
    """By function and argument: the call with a value in its place, and what it is tried with."""
    c, n = made(), made().network
    payload = n.input.encode(X[:2])
    layer, edge = n.layers[0], n.layers[0].edges[0]

    def network(**fields: Any) -> Any:
        return dataclasses.replace(n, **fields)

    def first(**fields: Any) -> Any:
        return network(layers=(dataclasses.replace(layer, **fields), *n.layers[1:]))

    def fed(**fields: Any) -> Any:
        return first(edges=(dataclasses.replace(edge, **fields),))

    def source(**fields: Any) -> Any:
        return network(input=dataclasses.replace(n.input, **fields))

    measured = a2l.assessment
    return {
        "convert(model)": (lambda v: a2l.convert(v, X, 2), NOT_AN_INSTANCE),
        "convert(calibration)": (lambda v: a2l.convert(MODEL, v, 2), NOT_AN_ARRAY),
        "convert(timesteps)": (lambda v: a2l.convert(MODEL, X, v), NOT_A_COUNT),
        "convert(recipe)": (lambda v: a2l.convert(MODEL, X, recipe=v), NOT_A_TEXT | NONE),
        "convert(labels)": (lambda v: a2l.convert(MODEL, X, 2, labels=v), without(NOT_AN_ARRAY, "None")),
        "convert(dense_limit)": (lambda v: a2l.convert(MODEL, X, 2, dense_limit=v), NOT_A_COUNT | NONE),
        "convert(leave_off_last)": (lambda v: a2l.convert(MODEL, X, 2, leave_off_last=v), NOT_A_BOOL),
        **{
            f"Recipe({field})": (lambda v, field=field: a2l.Recipe(**{field: v}), wrong | NONE)
            for fields, wrong in (
                (("timesteps", "updates", "input_bits"), NOT_A_COUNT),
                (("holdoff",), without(NOT_A_COUNT, "zero")),
                (("per_neuron", "shift_input"), NOT_A_BOOL),
                (
                    ("method", "weights", "threshold", "initial", "task", "chip", "input_form", "reset_interval"),
                    NOT_A_TEXT,
                ),
            )
            for field in fields
        },
        "choose(model)": (lambda v: a2l.choose(v, X), NOT_AN_INSTANCE),
        "choose(calibration)": (lambda v: a2l.choose(MODEL, v), NOT_AN_ARRAY),
        "choose(base)": (lambda v: a2l.choose(MODEL, X, v), without(NOT_AN_INSTANCE, "None")),
        "choose(latency_budget)": (lambda v: a2l.choose(MODEL, X, latency_budget=v), NOT_A_COUNT),
        "choose(labels)": (lambda v: a2l.choose(MODEL, X, labels=v), without(NOT_AN_ARRAY, "None")),
        "import_model(model)": (lambda v: a2l.import_model(v, (4,)), NOT_AN_INSTANCE),
        "import_model(input_shape)": (lambda v: a2l.import_model(MODEL, v), NOT_A_SHAPE),
        "import_model(samples)": (
            lambda v: a2l.import_model(MODEL, (4,), samples=v),
            without(NOT_AN_ARRAY, "None") | {"no samples": torch.zeros(0, 4), "NaN": torch.full((2, 4), torch.nan)},
        ),
        "check(model)": (lambda v: a2l.check(v, (4,)), NOT_AN_INSTANCE),
        "check(input_shape)": (lambda v: a2l.check(MODEL, v), NOT_A_SHAPE),
        "check(dense_limit)": (lambda v: a2l.check(MODEL, (4,), dense_limit=v), NOT_A_COUNT | NONE),
        "operation(module)": (lambda v: a2l.operation(v), NOT_AN_INSTANCE),
        "operation(replace)": (lambda v: a2l.operation(nn.Linear, replace=v), NOT_A_BOOL),
        "operation(...)(function)": (
            lambda v: a2l.operation(nn.ReLU, replace=True)(v),
            without(NOT_AN_INSTANCE, "a function", "a class"),
        ),
        "replace_max_pooling(model)": (a2l.replace_max_pooling, NOT_AN_INSTANCE),
        "replace_activations(model)": (lambda v: a2l.replace_activations(v, "nq", sample=SAMPLE), NOT_AN_INSTANCE),
        "replace_activations(activation)": (
            lambda v: a2l.replace_activations(MODEL, v, sample=SAMPLE),
            NOT_A_TEXT | NONE,
        ),
        "replace_activations(levels)": (
            lambda v: a2l.replace_activations(MODEL, "nq", levels=v, sample=SAMPLE),
            NOT_A_COUNT | NONE,
        ),
        "replace_activations(sample)": (
            lambda v: a2l.replace_activations(MODEL, "nq", sample=v),
            NOT_AN_ARRAY | {"no samples": torch.zeros(0, 4), "another shape": torch.zeros(4, 3)},
        ),
        "replace_activations(per_channel)": (
            lambda v: a2l.replace_activations(MODEL, "nq", sample=SAMPLE, per_channel=v),
            NOT_A_BOOL,
        ),
        "training.train(model)": (lambda v: training.train(v, X, Y, FEW), NOT_AN_INSTANCE),
        "training.train(x)": (lambda v: training.train(MODEL, v, Y, FEW), NOT_AN_ARRAY),
        "training.train(y)": (lambda v: training.train(MODEL, X, v, FEW), NOT_AN_ARRAY),
        "training.train(settings)": (lambda v: training.train(MODEL, X, Y, v), without(NOT_AN_INSTANCE, "None")),
        "training.train(device)": (lambda v: training.train(MODEL, X, Y, FEW, device=v), NOT_A_TEXT | NONE),
        "training.train(directory)": (
            lambda v: training.train(MODEL, X, Y, FEW, directory=v),
            without(NOT_A_PATH, "None") | {"a file": __file__},
        ),
        "training.train(callbacks)": (
            lambda v: training.train(MODEL, X, Y, FEW, callbacks=v),
            without(NOT_AN_INSTANCE, "text", "empty text", "a ragged list") | {"numbers": [1]},
        ),
        "training.measure(model)": (lambda v: training.measure(v, X, Y, X, a2l.Recipe()), NOT_AN_INSTANCE),
        "training.measure(x)": (lambda v: training.measure(MODEL, v, Y, X, a2l.Recipe()), NOT_AN_ARRAY),
        "training.measure(recipe)": (lambda v: training.measure(MODEL, X, Y, X, v), NOT_AN_INSTANCE),
        "training.induce(found)": (lambda v: training.induce(MODEL, v), NOT_AN_INSTANCE),
        "training.Settings(levels)": (lambda v: training.Settings(levels=v), NOT_A_COUNT | NONE),
        "training.Settings(distill)": (
            lambda v: training.Settings(distill=v),
            ALWAYS | NONE | TEXTS | {"NaN": float("nan"), "infinity": float("inf"), "True": True},
        ),
        "training.Settings(per_channel)": (lambda v: training.Settings(per_channel=v), NOT_A_BOOL),
        "training.Settings(activation)": (lambda v: training.Settings(activation=v), NOT_A_TEXT | NONE),
        "NQ(levels)": (a2l.NQ, NOT_A_COUNT | NONE),
        "SlipReLU(slope)": (lambda v: a2l.SlipReLU(4, 1.0, v), without(NOT_A_COUNT, "zero") | NONE),
        "TCL(threshold)": (a2l.TCL, without(NOT_A_COUNT, "a fraction") | NONE),
        "RNL(threshold)": (a2l.RNL, without(NOT_A_COUNT, "a fraction") | NONE),
        "QCFS(levels)": (a2l.QCFS, NOT_A_COUNT | NONE),
        "QCFS(threshold)": (lambda v: a2l.QCFS(4, v), without(NOT_A_COUNT, "a fraction") | NONE),
        "TReLU(threshold)": (a2l.TReLU, without(NOT_A_COUNT, "a fraction") | NONE),
        "load_model(model)": (load_model, without(NO_FILE, "a module")),
        "load_model(weights)": (lambda v: load_model(MODEL, v), without(NO_FILE, "None")),
        "load_arrays(path)": (load_arrays, NO_FILE),
        "selected(samples)": (lambda v: selected(torch.zeros(2, 4), None, v), NOT_A_COUNT),
        "run(engine)": (lambda v: a2l.run(v, n, payload), NOT_A_TEXT | NONE),
        "run(network)": (lambda v: a2l.run("fast", v, payload), NOT_AN_INSTANCE | MODULES),
        "run(payload)": (lambda v: a2l.run("fast", n, v), NOT_AN_ARRAY | {"beyond its range": payload * 0 + 128}),
        "run(chip)": (lambda v: a2l.run("fast", n, payload, chip=v), NOT_AN_INSTANCE),
        "run(overflow)": (lambda v: a2l.run("fast", n, payload, overflow=v), NOT_A_TEXT),
        "run(record)": (lambda v: a2l.run("fast", n, payload, record=v), NOT_A_BOOL),
        "verify(network)": (lambda v: a2l.verify(v, payload, ["fast", "reference"]), NOT_AN_INSTANCE),
        "verify(payload)": (lambda v: a2l.verify(n, v, ["fast", "reference"]), NOT_AN_ARRAY),
        "verify(engines)": (lambda v: a2l.verify(n, payload, v), without(NOT_AN_INSTANCE, "None")),
        "verify(net_path)": (
            lambda v: a2l.verify(n, payload, ["fast", "reference"], net_path=v),
            without(NO_FILE, "None"),
        ),
        "verify(inputs)": (lambda v: a2l.verify(n, payload, ["fast", "reference"], inputs=v), NOT_A_TEXT),
        "in_every_form(conversion)": (lambda v: in_every_form(v, MODEL, X), NOT_AN_INSTANCE),
        "in_every_form(model)": (lambda v: in_every_form(c, v, X), NOT_AN_INSTANCE),
        "fast.run(batch)": (lambda v: fast.run(n, payload, batch=v), NOT_A_COUNT),
        "fast.run(payload)": (lambda v: fast.run(n, v), NOT_AN_ARRAY),
        "reference.run(payload)": (lambda v: reference.run(n, v), NOT_AN_ARRAY),
        "reference.run(overflow)": (lambda v: reference.run(n, payload, overflow=v), NOT_A_TEXT | NONE),
        "read(path)": (a2l.read, NO_FILE),
        "load(path)": (a2l.load, NO_FILE),
        "load(period)": (lambda v: a2l.load("nowhere.net", period=v), NOT_A_COUNT),
        "write(network)": (lambda v: a2l.write(v, "never.net"), NOT_AN_INSTANCE | MODULES),
        "write(path)": (lambda v: a2l.write(n, v), NOT_A_PATH | {"a directory": "/", "no folder": "/no/where.net"}),
        "load_bundle(directory)": (a2l.load_bundle, NO_FILE),
        "reporting(sink)": (
            lambda v: a2l.reporting(v).__enter__(),
            without(NOT_AN_INSTANCE, "None", "a function", "a class"),
        ),
        "Conversion.run(x)": (c.run, NOT_AN_ARRAY),
        "Conversion.predict(x)": (c.predict, NOT_AN_ARRAY),
        "Conversion.predict(overflow)": (lambda v: c.predict(X[:2], overflow=v), NOT_A_TEXT | NONE),
        "Conversion.decode(potentials)": (c.decode, NOT_AN_ARRAY),
        "Conversion.verify(x)": (lambda v: c.verify(v, ["fast", "reference"]), NOT_AN_ARRAY),
        "Conversion.save(directory)": (c.save, NOT_A_PATH | {"a file": __file__}),
        "Conversion.save(report)": (lambda v: c.save("never", v), without(NOT_AN_INSTANCE, "None")),
        "assessment.accuracy(outputs)": (lambda v: measured.accuracy(v, Y), NOT_AN_ARRAY),
        "assessment.accuracy(y)": (lambda v: measured.accuracy(X[:, :3], v), NOT_AN_ARRAY),
        "assessment.accuracy(task)": (lambda v: measured.accuracy(X[:, :3], Y, v), without(NOT_AN_INSTANCE, "None")),
        "assessment.agreement(trained)": (lambda v: measured.agreement(X, v), NOT_AN_ARRAY),
        "assessment.by_step(outputs)": (lambda v: measured.by_step(v, Y), NOT_AN_ARRAY),
        "assessment.evaluate(network)": (lambda v: measured.evaluate(v, X, Y), NOT_AN_INSTANCE),
        "assessment.evaluate(x)": (lambda v: measured.evaluate(n, v, Y), NOT_AN_ARRAY),
        "assessment.evaluate(y)": (lambda v: measured.evaluate(n, X, v), NOT_AN_ARRAY),
        "assessment.evaluate(task)": (lambda v: measured.evaluate(n, X, Y, task=v), NOT_A_TEXT | NONE),
        "assessment.evaluate(overflow)": (lambda v: measured.evaluate(n, X, Y, overflow=v), NOT_A_TEXT),
        "assessment.evaluate(engine)": (lambda v: measured.evaluate(n, X, Y, engine=v), NOT_A_TEXT | NONE),
        "assessment.attribute(conversion)": (lambda v: measured.attribute(v, X), NOT_AN_INSTANCE),
        "assessment.attribute(x)": (lambda v: measured.attribute(c, v), NOT_AN_ARRAY),
        "assessment.layer_table(network)": (measured.layer_table, NOT_AN_INSTANCE),
        "assessment.model_logits(model)": (lambda v: measured.model_logits(v, X), NOT_AN_INSTANCE),
        "assessment.model_logits(x)": (lambda v: measured.model_logits(MODEL, v), NOT_AN_ARRAY),
        "assessment.model_logits(batch)": (lambda v: measured.model_logits(MODEL, X, v), NOT_A_COUNT | NONE),
        "assessment.report(model)": (lambda v: measured.report(c, v, X, Y), NOT_AN_INSTANCE),
        "Network(timesteps)": (lambda v: network(timesteps=v), NOT_A_COUNT | NONE),
        "Network(holdoff)": (lambda v: network(holdoff=v), without(NOT_A_COUNT, "zero") | NONE),
        "Network(reset_interval)": (lambda v: network(reset_interval=v), NOT_A_COUNT),
        "Network(layers)": (lambda v: network(layers=v), NOT_AN_INSTANCE),
        "Network(input)": (lambda v: network(input=v), NOT_AN_INSTANCE),
        "Network(output)": (lambda v: network(output=v), without(NOT_AN_INSTANCE, "None")),
        "Network.input.encode(x)": (n.input.encode, without(NOT_AN_ARRAY, "an empty array")),
        "Layer(name)": (lambda v: first(name=v), without(NOT_A_TEXT, "text", "empty text") | NONE),
        "Layer(shape)": (lambda v: first(shape=v), NOT_A_SHAPE),
        "Layer(edges)": (lambda v: first(edges=v), NOT_AN_INSTANCE),
        "Layer(threshold)": (lambda v: first(threshold=v), NOT_A_COUNT | NONE),
        "Layer(v0)": (lambda v: first(v0=v), NOT_AN_ARRAY),
        "Layer(bias)": (lambda v: first(bias=v), NOT_AN_ARRAY),
        "Layer(kind)": (lambda v: first(kind=v), NOT_A_TEXT | NONE),
        "Edge(source)": (lambda v: fed(source=v), NOT_A_TEXT | NONE),
        "Edge(synapse)": (lambda v: fed(synapse=v), NOT_AN_INSTANCE),
        "Edge(exponent)": (
            lambda v: fed(exponent=v),
            without(NOT_A_COUNT, "zero", "a negative integer") | NONE | {"a large one": 100},
        ),
        "Dense(weight)": (lambda v: fed(synapse=Dense(v)), NOT_AN_ARRAY),
        "Conv2d(geometry)": (lambda v: Conv2d(np.zeros((1, 1, 1, 1), int), v), NOT_AN_INSTANCE),
        "Geometry(stride)": (lambda v: Conv2d(np.zeros((1, 1, 1, 1), int), Geometry(v)), NOT_AN_INSTANCE),
        "Input(shape)": (lambda v: source(shape=v), NOT_A_SHAPE),
        "Input(bits)": (lambda v: source(bits=v), NOT_A_COUNT | NONE),
        "Input(signed)": (lambda v: source(signed=v), NOT_A_BOOL),
        "Input(form)": (lambda v: source(form=v), NOT_A_TEXT | NONE),
        "Input(scale)": (lambda v: source(scale=v), without(NOT_A_COUNT, "a fraction") | NONE),
        "Output(scale)": (
            lambda v: network(output=Output(v, np.array(0.0))),
            without(NOT_A_COUNT, "a fraction", "True") | NONE,
        ),
    }


CALLS = arguments()


def test_there_are_enough_kinds_of_wrong_calls() -> None:
    assert sum(len(wrong) for _, wrong in CALLS.values()) >= 412


@pytest.mark.parametrize("name", CALLS)
def test_an_argument_of_another_kind_is_refused_in_lines_with_a_way_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call, wrong = CALLS[name]
    others = []
    for kind, value in wrong.items():
        try:
            call(value)
        except a2l.Refused as error:
            findings, lines = error.findings, str(error).splitlines()
            if len(lines) != len(findings) or not findings or max(map(len, lines)) > 600:
                others.append(f"{kind}: {error}")
        except Exception as error:  # each kind is judged
            others.append(f"{kind}: {type(error).__name__}: {error!s:.200}")
        else:
            others.append(f"{kind}: accepted")
    assert not others, "\n".join(others)
    assert not list(tmp_path.iterdir())

"""What the page draws: matplotlib's figures inline, maps of counts and biases, bars, and the network as a graph."""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup
from matplotlib import image, rc_context
from matplotlib.figure import Figure

from exporters.report.figures import BLUE, GREY, VERMILION
from exporters.report.schema import PARTS, Report, Share
from sim.network import INPUT, Layer, Network

#: What the stylesheet calls the figures' colours, so that they follow light and dark.
COLOURS = {
    BLUE.lower(): "var(--blue)",
    VERMILION.lower(): "var(--vermilion)",
    GREY.lower(): "var(--muted)",
    "#009e73": "var(--green)",
    "#b0b0b0": "var(--line)",  # matplotlib's grids
    "#000000": "currentColor",
    "#ffffff": "var(--page)",
}
ROWS, COLUMNS = 48, 48  #: channels and steps that a map of biases shows at most; more are averaged
SHADES = 16  #: of opacity
UNSIGNED: dict[str, Any] = {"Software": None}  #: pictures name no version
#: Tones that are seen on light and on dark ground, of 0..1.
FEW, MANY = (0.20, 0.56, 0.86), (0.92, 0.45, 0.16)
WIDTH, HEIGHT, BETWEEN, BESIDE, LANE, MARGIN = 288, 66, 34, 20, 14, 10  #: of the graph's nodes, pixels


def inline(figure: Figure, prefix: str) -> Markup:
    """Turn a figure into an ``<svg>`` element that inherits colours; its ids begin with ``prefix``."""
    file = io.StringIO()
    plain = rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix, "font.family": "sans-serif"})
    with plain, warnings.catch_warnings():
        # The reader's browser has letters that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    for parent in root.iter():
        for child in [child for child in parent if child.tag.endswith("metadata")]:
            parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        element.attrib.clear()
        for key, value in attributes.items():
            if key == "id":
                value = f"{prefix}-{value}"
            elif key == "style":
                value = re.sub("#[0-9a-f]{6}", lambda match: COLOURS.get(match[0], match[0]), value)
                value = re.sub(r"font: ([\d.]+px) [^;]*", r"font-size: \1", value)
            value = value.replace("url(#", f"url(#{prefix}-") if "url(" in value else value
            element.set(key, f"#{prefix}-{value[1:]}" if key == "href" and value.startswith("#") else value)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    width = float(root.attrib["viewBox"].split()[2])
    root.attrib |= {"role": "img", "style": f"width: {1.25 * width:.0f}px"}
    return Markup(ElementTree.tostring(root, encoding="unicode", short_empty_elements=False))


def heat(counts: Sequence[Sequence[int]]) -> str:
    """Draw counts (rows from below, columns) as a picture of as many pixels, stronger by their logarithm."""
    values = np.log1p(np.asarray(counts, float))
    return _picture(np.broadcast_to(FEW, (*values.shape, 3)), _visible(values / (values.max() or 1)))


def schedule(layer: Layer) -> tuple[str, float]:
    """Draw a layer's biases, channels (from above) by steps, and return what the strongest colour stands for.

    In thresholds; of a readout, which has none, in synaptic units. A channel's biases are averaged over space.
    """
    values = layer.bias.reshape(*layer.bias.shape[:2], -1).mean(axis=2).T / (layer.threshold or 1)
    values = _coarser(_coarser(values, ROWS).T, COLUMNS).T[::-1]
    limit = float(np.abs(values).max())
    colours = np.where(values[..., None] < 0, FEW, MANY)
    return _picture(colours, _visible(np.abs(values) / (limit or 1))), limit


def _visible(share: np.ndarray) -> np.ndarray:
    """Choose one of few opacities, of which pictures are small, for values of 0..1."""
    return np.where(share > 0, np.ceil(SHADES * share) / SHADES, 0)


def _coarser(values: np.ndarray, most: int) -> np.ndarray:
    """Average neighbouring rows of (n, m) so that at most so many are left."""
    return np.stack([part.mean(0) for part in np.array_split(values, min(len(values), most))])


def _picture(colours: np.ndarray, opacity: np.ndarray) -> str:
    """Encode (rows from below, columns) as a PNG in a data URI."""
    file = io.BytesIO()
    pixels = np.concatenate([colours, opacity[..., None]], axis=2)
    image.imsave(file, np.rint(255 * pixels).astype(np.uint8), format="png", origin="lower", metadata=UNSIGNED)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


class Bar(NamedTuple):
    """One part of a bar, in per cent of the width that all bars have."""

    part: str
    value: float
    left: float
    width: float


class Bars(NamedTuple):
    """Bars of error shares on one scale; what takes error away lies to the left of zero."""

    zero: float  #: in per cent of the width
    scale: float  #: per cent per unit

    @classmethod
    def of(cls, shares: Sequence[Share]) -> Bars:
        """Choose a scale on which all of them have room."""
        sides = [[sum(max(0, sign * share.of(part)) for part in PARTS) for share in shares] for sign in (-1, 1)]
        left, right = (max(side, default=0) for side in sides)
        scale = 100 / (left + right) if left + right else 0
        return cls(left * scale, scale)

    def parts(self, share: Share) -> list[Bar]:
        """Lay out one layer's bar."""
        left = right = self.zero
        laid = []
        for part in PARTS:
            value, width = share.of(part), abs(share.of(part)) * self.scale
            if value < 0:
                left -= width
                laid.append(Bar(part, value, left, width))
            else:
                laid.append(Bar(part, value, right, width))
                right += width
        return [bar for bar in laid if bar.width > 0.05]


def holdoffs(network: Network) -> dict[str, int]:
    """Find each layer's K: by how much its phase lies behind the arrival of its last source."""
    phase = {INPUT: 0} | network.phase
    return {
        layer.name: phase[layer.name] - max(phase[edge.source] + 1 for edge in layer.edges) for layer in network.layers
    }


@dataclass
class Node:
    """A layer as a box."""

    index: int | None  #: of the layer in the report; None for the input
    name: str
    lines: tuple[str, ...]
    x: float
    y: float
    heat: float = 0.0  #: its own error, of the largest
    fault: bool = False


class Graph(NamedTuple):
    """The network from above to below: a row for each depth, edges that skip rows in lanes to the right."""

    width: float
    height: float
    nodes: list[Node]
    paths: list[str]
    box: tuple[int, int] = (WIDTH, HEIGHT)

    @classmethod
    def of(cls, report: Report, network: Network) -> Graph:
        """Lay out a network, with what a report knows of its layers."""
        sources = {layer.name: list(dict.fromkeys(edge.source for edge in layer.edges)) for layer in network.layers}
        depth = {INPUT: 0}
        for name, read in sources.items():
            depth[name] = 1 + max(depth[source] for source in read)
        order: dict[int, list[str]] = {}
        place = {INPUT: 0.0}
        for name in sorted(depth, key=depth.__getitem__):
            order.setdefault(depth[name], []).append(name)
        for names in list(order.values())[1:]:
            names.sort(key=lambda name: sum(place[source] for source in sources[name]) / len(sources[name]))
            place |= {name: index - (len(names) - 1) / 2 for index, name in enumerate(names)}
        widest = max(map(len, order.values()))
        inner = widest * WIDTH + (widest - 1) * BESIDE
        nodes = {node.name: node for node in _nodes(report, network)}
        for name, node in nodes.items():
            node.x = MARGIN + inner / 2 + place[name] * (WIDTH + BESIDE) - WIDTH / 2
            node.y = MARGIN + depth[name] * (HEIGHT + BETWEEN)
        skips = [(s, name) for name, read in sources.items() for s in read if depth[name] > depth[s] + 1]
        lanes = _lanes([(depth[a], depth[b]) for a, b in skips])
        right = MARGIN + inner + LANE
        paths = [
            _direct(nodes[s], nodes[name]) for name, read in sources.items() for s in read if (s, name) not in skips
        ]
        paths += [_around(nodes[a], nodes[b], right + lane * LANE) for (a, b), lane in zip(skips, lanes, strict=True)]
        width = right + (max(lanes, default=-1) + 1) * LANE
        return cls(width, 2 * MARGIN + max(depth.values()) * (HEIGHT + BETWEEN) + HEIGHT, list(nodes.values()), paths)


def _nodes(report: Report, network: Network) -> list[Node]:
    shares = {} if report.attribution is None else {share.name: share for share in report.attribution.layers}
    cores = {} if report.fit is None else {row.name: row.cores for row in report.fit.layers}
    rows = {row.name: (index, row.spikes_per_neuron) for index, row in enumerate(report.layers)}
    largest = max((share.own for share in shares.values()), default=0)
    held = holdoffs(network)
    nodes = [Node(None, INPUT, ("from the host",), 0, 0)]
    for layer in network.layers:
        index, spikes = rows.get(layer.name, (None, None))
        kind = f"θ {layer.threshold}, K {held[layer.name]}" if layer.kind == "spiking" else "readout"
        more = [] if spikes is None else [f"{spikes:.2f} spikes per neuron"]
        if layer.name in cores:
            number = cores[layer.name]
            more.append("no core holds it" if number is None else f"{number} core{'s' * (number != 1)}")
        node = Node(index, layer.name, (f"{'x'.join(map(str, layer.shape))}, {kind}", ", ".join(more)), 0, 0)
        if layer.name in shares and largest > 0:
            node.heat = max(0.0, shares[layer.name].own / largest)
        node.fault = report.attribution is not None and report.attribution.fault == layer.name
        nodes.append(node)
    return nodes


def _lanes(spans: Sequence[tuple[int, int]]) -> list[int]:
    """Give each edge the first lane that is free over its rows, the shortest first."""
    taken: list[list[tuple[int, int]]] = []
    lanes = [0] * len(spans)
    for index in sorted(range(len(spans)), key=lambda i: spans[i][1] - spans[i][0]):
        start, end = spans[index]
        free = (lane for lane, used in enumerate(taken) if all(end <= a or b <= start for a, b in used))
        lanes[index] = lane = next(free, len(taken))
        if lane == len(taken):
            taken.append([])
        taken[lane].append((start, end))
    return lanes


def _direct(source: Node, target: Node) -> str:
    x, y, to, end = source.x + WIDTH / 2, source.y + HEIGHT, target.x + WIDTH / 2, target.y - 3
    bend = (end - y) / 2
    return f"M{x:.0f} {y:.0f}C{x:.0f} {y + bend:.0f} {to:.0f} {end - bend:.0f} {to:.0f} {end:.0f}"


def _around(source: Node, target: Node, lane: float) -> str:
    """Leave a box to below, go down beside all boxes, and come back above another."""
    x, y, to, end = source.x + WIDTH * 0.75, source.y + HEIGHT, target.x + WIDTH * 0.75, target.y - 3
    return f"M{x:.0f} {y:.0f}v9H{lane:.0f}V{end - 12:.0f}H{to:.0f}V{end:.0f}"

"""Integrate and fire as one compiled pass: each current is read once, each spike written once.

Compiled by numba on first use, which takes a few seconds, and kept in the cache directory that numba chooses (beside
this file, or the user's). Threads may run it at the same time: it holds no lock and starts none of its own.
"""

from __future__ import annotations

import numpy as np
from numba import njit


def _scan(
    currents: np.ndarray,
    begin: int,
    steps: int,
    scale: np.float32,
    more: np.ndarray,
    more_begin: int,
    more_steps: int,
    more_scale: np.float32,
    weight: np.ndarray,
    offsets: np.ndarray,
    phase: int,
    width: int,
    threshold: int,
    spikes: np.ndarray,
    potentials: np.ndarray,
    counts: np.ndarray,
    peaks: np.ndarray,
) -> None:
    """Run one layer over its busy steps, all in 32 bits.

    ``currents`` (B, steps, N), or (B, 1, N) for what is the same at each of them, float32 or int32, arrive from busy
    step ``begin`` on, times ``scale``, a power of two (1 for int32), rounded down; so does ``more``, uint8 or float32,
    and then times ``weight`` (period,). ``offsets`` (1 + T, period) is v0, then v0 + cumulative bias at every window
    step. A period below N repeats and is ``width``, the neurons at a time. Writes ``spikes`` (B, T, N), ``potentials``
    after the reset (B, busy steps or 0, N), how often each neuron fires into ``counts`` (B or 0, N), and ``peaks``
    (B,), the largest |v| or |u| before a reset.
    """
    integer = np.int32
    theta = integer(threshold)
    samples, window, size = spikes.shape
    busy, kept = phase + window, potentials.shape[1]
    period = offsets.shape[1]
    # Shifts by a number that is not known when this is compiled take twice as long: those of 64 bits.
    whole, more_whole = scale == 1, more_scale == 1
    u = np.empty(min(width, size), np.int32)
    for n in range(samples):
        peak = integer(0)
        for start in range(0, size, width):
            stop = min(start + width, size)
            w = stop - start
            base = start if period == size else 0
            for i in range(w):
                u[i] = 0
            for t in range(busy):
                j, tau = t - more_begin, t - phase
                if 0 <= j < more_steps:
                    row_of_more = more[n, j if more.shape[1] > 1 else 0, start:stop]
                    factor = weight[base : base + w]
                    for i in range(w):
                        m = row_of_more[i]
                        brought = integer(m) if more_whole else integer(np.floor(np.float32(m) * more_scale))
                        u[i] = integer(u[i] + integer(brought * factor[i]))
                j = t - begin
                arrives = 0 <= j < steps
                row = currents[n, j if arrives and currents.shape[1] > 1 else 0, start:stop]
                offset = offsets[max(tau + 1, 0), base : base + w]
                if tau >= 0:
                    out = spikes[n, tau, start:stop]
                    if arrives:
                        for i in range(w):
                            c = row[i]
                            current = integer(c) if whole else integer(np.floor(np.float32(c) * scale))
                            y = integer(u[i] + current)
                            x = integer(y + offset[i])
                            fires = x >= theta
                            peak = max(peak, max(integer(abs(x)), integer(abs(y))))
                            out[i] = fires
                            u[i] = integer(y - theta) if fires else y
                    else:
                        for i in range(w):
                            y = u[i]
                            x = integer(y + offset[i])
                            fires = x >= theta
                            peak = max(peak, max(integer(abs(x)), integer(abs(y))))
                            out[i] = fires
                            u[i] = integer(y - theta) if fires else y
                else:
                    if arrives:
                        for i in range(w):
                            c = row[i]
                            current = integer(c) if whole else integer(np.floor(np.float32(c) * scale))
                            u[i] = integer(u[i] + current)
                    for i in range(w):
                        y = u[i]
                        x = integer(y + offset[i])
                        peak = max(peak, max(integer(abs(x)), integer(abs(y))))
                if kept == busy:
                    left_over = potentials[n, t, start:stop]
                    for i in range(w):
                        left_over[i] = integer(u[i] + offset[i])
            if counts.shape[0]:
                for i in range(w):
                    u[i] = 0
                for tau in range(window):
                    out = spikes[n, tau, start:stop]
                    for i in range(w):
                        u[i] = integer(u[i] + integer(out[i]))
                counts[n, start:stop] = u[:w]
        peaks[n] = peak


try:
    scan = njit(nogil=True, cache=True)(_scan)
except RuntimeError:  # there is no folder to keep it in
    scan = njit(nogil=True)(_scan)

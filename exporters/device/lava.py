"""The targets that Lava reaches: its own CPU models, and a Loihi 2 system."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from exporters.device.target import Answer, Job, Stamp, Unavailable
from sim import chip, stock
from sim.findings import Finding, Refused
from sim.on_lava import loihi2, runtime, stepped


def obstacles(job: Job) -> list[Finding]:
    """List what Lava's processes would compute wrongly of a job, wherever they run."""
    if job.network.input.form == "payload":
        return stock.inexact(job.network, job.payload, "stock")
    from sim import inputs  # torch loads where it is needed

    return inputs.inexact(job.network, job.payload, "stock")


def _require_lava() -> None:
    try:
        runtime.require_lava()
    except Refused as error:
        raise Unavailable(error.findings) from None


class LavaCpu:
    """Lava's CPU models of the chip."""

    host = stepped.CPU

    def open(self, job: Job) -> Stamp:
        """Build and load; raises :class:`Refused` for what Lava computes wrongly, :class:`Unavailable` without it."""
        _require_lava()
        if found := obstacles(job):
            raise Refused(found)
        self._running = stepped.Stepped(job.network, job.payload, job.read, self.host, job.schedule)
        placed, nodes = self._running.start()
        return Stamp(tuple(placed), tuple(nodes))

    def answers(self, at: Callable[[int, int], None]) -> Iterator[Answer]:
        """Run the samples one by one."""
        for spikes, potentials in self._running.samples(at):
            yield Answer(spikes, potentials)

    def close(self) -> Mapping[str, float]:
        """End Lava's processes; nothing was probed."""
        self._running.stop()
        return {}


class Loihi2(LavaCpu):
    """A chip. Its offsets have 13 bits, also the one that silences neurons: only what fits them is accepted."""

    host = loihi2.HOST

    def open(self, job: Job) -> Stamp:
        """Choose the system, build and load; raises :class:`Unavailable` without Lava's extension for Loihi."""
        _require_lava()
        if missing := loihi2.missing():
            raise Unavailable(missing)
        if found := chip.check(job.network):
            raise Refused(found)
        asked = job.request
        loihi2.choose(asked.partition, asked.board, asked.host, asked.generation)
        before = loihi2.jobs()
        stamp = super().open(job)
        ours = loihi2.jobs() - before
        partition, board = ours.pop() if len(ours) == 1 else (None, None)
        return Stamp(stamp.placed, stamp.nodes, partition, board, loihi2.address())

"""The engine that users run: exact, batched, layer after layer, each over all its steps at once.

A layer needs only its sources' outputs inside their firing windows, never the network from the input again. Samples go
through in chunks that stay in the cache, one chunk a thread.
"""

from sim.fast.engine import paths, place, run
from sim.fast.stepwise import Bias, Currents, fire

__all__ = ["Bias", "Currents", "fire", "paths", "place", "run"]

"""What a deployed network is and what it does, in integers.

Start with :mod:`sim.network` (the data model and its semantics) and :mod:`sim.reference` (the definition
in slow NumPy); :mod:`sim.fast` is the engine that users run, :mod:`sim.on_lava` the same network on Lava.
"""

"""Lava processes and their models, nothing else: Lava executes every file beside a process."""

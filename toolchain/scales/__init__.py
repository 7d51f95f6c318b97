"""Scales: which activation a spike stands for, and the integers that follow from it."""

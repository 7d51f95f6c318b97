"""Calibration: weights and bias schedules for the spikes that really arrive."""

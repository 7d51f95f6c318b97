"""A trained torch model becomes an integer Network: import, thresholds, quantisation, calibration."""

"""Training: the source network learns with the error that the conversion will bring."""

"""What a conversion is worth and what it costs: measured, with the commands that repeat it."""

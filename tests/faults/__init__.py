"""What goes wrong with machines and data, made to happen for real."""

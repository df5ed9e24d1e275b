"""Flax Linen modules; the only place that imports flax."""

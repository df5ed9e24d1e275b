"""Entry points: `python -m experiments.NAME`. They may import anything; nothing imports them."""

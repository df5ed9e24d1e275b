import importlib.util

if importlib.util.find_spec("torch"):
    from tests.parity import operators  # noqa: F401

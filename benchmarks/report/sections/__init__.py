"""Our sections. They are imported in the order in which pages show them."""

import importlib

for _name in ("scores", "learning", "costs", "provenance"):
    importlib.import_module(f"{__name__}.{_name}")

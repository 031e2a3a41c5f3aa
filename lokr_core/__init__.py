"""The algebra of LoKr adapters: read them, attach them to a model, apply them row by row."""

import lazy_loader

# What needs torch is imported when it is first asked for: clients of a server need none of it.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

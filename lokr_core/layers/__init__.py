"""The modules of a base model that adapters change, and how rows find their mix in them."""

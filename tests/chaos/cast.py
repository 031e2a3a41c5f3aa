"""Cast: the adapter ids of a run, by how each comes by its content."""

SWAPPED = ("peft-lokr", "peft-lora", "peft-dora", "lycoris-lokr-full")  # loaded from the folder
SENT = ("sent/one", "sent/two", "sent/three")  # uploaded
FAR = ("far/one", "far/two")  # fetched from the store
DECLARED = ("house/one", "house/two")  # by the manifest
ALIASES = {"house/alias": "house/one"}  # what requests name in the place of an id

# What requests may name: an id and its alias never both, since a mix names an adapter once.
NAMED = (*SWAPPED, *SENT, *FAR, *ALIASES, *(i for i in DECLARED if i not in ALIASES.values()))

"""The demo's image part: a small pipeline made on the spot, and images of many mixes at once."""

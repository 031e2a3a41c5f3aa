"""Generated from protos/lokr_serve/v1 by scripts/generate_protos.py; never edited."""

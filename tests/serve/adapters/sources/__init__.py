"""Tests of where adapters come from: folder, uploads, hub layout and remote stores."""

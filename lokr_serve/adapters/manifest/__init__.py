"""The manifest: which adapters a replica must hold, and what makes it hold them."""

from lokr_serve.adapters.manifest.aliases import AliasTable
from lokr_serve.adapters.manifest.declared import DeclaredAdapters
from lokr_serve.adapters.manifest.file import ManifestFile
from lokr_serve.adapters.manifest.reconciler import Reconciler

__all__ = ["AliasTable", "DeclaredAdapters", "ManifestFile", "Reconciler"]

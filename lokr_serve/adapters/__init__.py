"""Which adapters the server knows, which are in memory, and who uses them."""

from lokr_serve.adapters.leasing import Lease
from lokr_serve.adapters.manifest import ManifestFile
from lokr_serve.adapters.policy import Workload
from lokr_serve.adapters.registry import AdapterRegistry
from lokr_serve.adapters.sources import AnnouncedFile, Upload

__all__ = ["AdapterRegistry", "AnnouncedFile", "Lease", "ManifestFile", "Upload", "Workload"]

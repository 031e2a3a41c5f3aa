"""Where adapters come from: the adapter folder, uploads, the hub's layout, and remote stores."""

from lokr_serve.adapters.sources.front import Sources
from lokr_serve.adapters.sources.located import Located, Source
from lokr_serve.adapters.sources.shelf import AnnouncedFile
from lokr_serve.adapters.sources.uploads import Upload, Uploads

__all__ = ["AnnouncedFile", "Located", "Source", "Sources", "Upload", "Uploads"]

"""LoadRequest: what is read for an id, and how."""

from dataclasses import dataclass

from lokr_serve.types import AdapterOverrides, LoadSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRequest:
    """One way to load one id; equal requests share one load."""

    adapter_id: str
    source: str  # as Sources tells its kinds apart
    overrides: AdapterOverrides
    digest: str | None = None  # hex SHA-256 that the tensor file must have

    @classmethod
    def of(cls, spec: LoadSpec) -> "LoadRequest":
        """Return what is to be read for a request of an operator."""
        return cls(
            adapter_id=spec.adapter_id,
            source=spec.source,
            overrides=spec.overrides,
            digest=spec.digest,
        )

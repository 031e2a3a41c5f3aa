"""Metadata that a client may add to its calls, beside what every call has."""

from collections.abc import Callable, Iterable

from lokr_serve.client.requests import ADAPTER_KEY, Metadata

MODEL_NAME_KEY = "x-llm-d-model-name-rewrite"

# From the metadata of a call to what is added to it; called on the thread that makes the call.
MetadataHook = Callable[[Metadata], Metadata]


def gateway_model_name(metadata: Metadata) -> Metadata:
    """Name the mix of a call as an inference gateway's endpoint picker reads it.

    The picker then prefers servers that have the mix in memory; nothing is rewritten.
    """
    return tuple((MODEL_NAME_KEY, value) for key, value in metadata if key == ADAPTER_KEY)


def with_hooks(hooks: Iterable[MetadataHook], metadata: Metadata) -> Metadata:
    """Return a call's metadata with what each hook adds."""
    return (*metadata, *(pair for hook in hooks for pair in hook(metadata)))

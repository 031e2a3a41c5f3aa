"""Adapter statuses for tests."""

from datetime import UTC, datetime

from lokr_serve.types import AdapterFailure, AdapterState, AdapterStatus, ScaleReport


def adapter_status(adapter_id: str) -> AdapterStatus:
    """Return the status of an adapter that was never used."""
    return AdapterStatus(
        adapter_id=adapter_id,
        version="0123456789abcdef",
        digest="ab" * 32,
        state=AdapterState.READY,
        source=f"{adapter_id}.safetensors",
        format="lycoris",
        algorithms=("lokr",),
        num_modules=7,
        num_parameters=1234,
        device_bytes=4936,
        host_bytes=0,
        scales=(ScaleReport(source="alpha", num_modules=7),),
        in_flight=2,
        pinned=True,
        created=datetime(2026, 11, 22, 4, 5, 6, tzinfo=UTC),
        last_used=None,
    )


def failed_status(adapter_id: str) -> AdapterStatus:
    """Return the status of an adapter that was used, and then failed to load."""
    return AdapterStatus(
        adapter_id=adapter_id,
        version="",
        digest="",
        state=AdapterState.FAILED,
        source=adapter_id,
        format="",
        algorithms=(),
        num_modules=0,
        num_parameters=0,
        device_bytes=0,
        host_bytes=10,
        scales=(),
        in_flight=0,
        pinned=False,
        created=datetime(2026, 11, 22, tzinfo=UTC),
        last_used=datetime(2026, 11, 22, 1, 2, 3, 456000, tzinfo=UTC),
        warnings=("alpha is 0",),
        error=AdapterFailure(reason="ADAPTER_FILE", message="truncated"),
    )

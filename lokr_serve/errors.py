"""Errors of the server; ``rpc/status.py`` maps each class to one gRPC status."""

from lokr_core import LokrError


class InvalidRequestError(LokrError):
    """A field of a request has a value that can never be right."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class SettingsError(LokrError):
    """A setting is unknown, malformed or contradictory."""


class ModelError(LokrError):
    """The base model, which is where the settings say, cannot be loaded or cannot be served."""


class AdapterNotFoundError(LokrError):
    """A request names an adapter that is not registered."""

    def __init__(self, adapter_id: str) -> None:
        super().__init__(f"adapter {adapter_id!r} is not registered; call LoadAdapter first")
        self.adapter_id = adapter_id


class AdapterExistsError(LokrError):
    """An id is loaded again with other content, without ``replace``."""

    def __init__(self, adapter_id: str) -> None:
        super().__init__(
            f"adapter {adapter_id!r} is already loaded with other content; set replace to swap it"
        )
        self.adapter_id = adapter_id


class AdapterDrainingError(LokrError):
    """An adapter takes no new requests because it is being unloaded."""

    def __init__(self, adapter_id: str) -> None:
        super().__init__(f"adapter {adapter_id!r} is being unloaded; load it again to use it")
        self.adapter_id = adapter_id


class AdapterBusyError(LokrError):
    """An adapter was still in use when its drain time ended."""

    def __init__(self, adapter_id: str, in_flight: int) -> None:
        requests = "1 request" if in_flight == 1 else f"{in_flight} requests"
        super().__init__(
            f"adapter {adapter_id!r} still serves {requests}; "
            "set force to end what is left, or allow a longer drain_timeout"
        )
        self.adapter_id = adapter_id
        self.in_flight = in_flight


class AdapterDeclaredError(LokrError):
    """A call would change an adapter that the manifest declares, or take its name."""

    def __init__(self, adapter_id: str) -> None:
        super().__init__(f"{adapter_id!r} is declared by the manifest, and is changed there alone")
        self.adapter_id = adapter_id


class AdapterUnloadedError(LokrError):
    """A request was ended because its adapter was unloaded by force."""

    def __init__(self, adapter_id: str) -> None:
        super().__init__(f"adapter {adapter_id!r} was unloaded by force")
        self.adapter_id = adapter_id


class AdapterLoadFailedError(LokrError):
    """A registered adapter failed to load a moment ago and is not yet tried again."""

    def __init__(self, adapter_id: str, message: str, retry_seconds: float) -> None:
        super().__init__(
            f"adapter {adapter_id!r} failed to load: {message} "
            f"(it is tried again after {retry_seconds:.0f} s)"
        )
        self.adapter_id = adapter_id
        self.retry_seconds = retry_seconds


class AdapterLoadCrashedError(LokrError):
    """A load met a bug of ours, now or a moment ago; the log has the cause."""

    def __init__(self, adapter_id: str) -> None:
        super().__init__(
            f"loading adapter {adapter_id!r} failed unexpectedly; the server's log has the cause"
        )
        self.adapter_id = adapter_id


class SourceError(LokrError):
    """An adapter's source is outside the store, behind a link out of it, or does not exist."""

    def __init__(self, source: str, problem: str) -> None:
        super().__init__(f"source {source!r} {problem}")
        self.source = source


class SourceUnavailableError(LokrError):
    """An adapter's source is allowed and well formed, but cannot be reached or read now."""

    def __init__(self, source: str, problem: str, retry_seconds: float) -> None:
        super().__init__(f"source {source!r} {problem}; try again after {retry_seconds:.0f} s")
        self.source = source
        self.retry_seconds = retry_seconds


class UploadError(LokrError):
    """An upload's frames are not what its header announced."""


class UploadBusyError(LokrError):
    """Another call uploads the same file at the moment."""

    def __init__(self, digest: str) -> None:
        super().__init__(f"a file with digest {digest} is being uploaded by another call")
        self.digest = digest


class StorageFullError(LokrError):
    """The folder that files are kept in has no room, by its budget or on its disk."""

    def __init__(self, subject: str, problem: str) -> None:
        super().__init__(f"{subject}: {problem}")
        self.subject = subject


class ManifestError(LokrError):
    """The manifest of declared adapters is malformed."""


class DigestMismatchError(LokrError):
    """A file's content is not what the caller announced."""

    def __init__(self, source: str, *, expected: str, found: str) -> None:
        super().__init__(f"source {source!r} has digest {found}, not {expected}")
        self.source = source


class AdapterBudgetError(LokrError):
    """No room for an adapter, or for merged weights, under a budget of bytes."""

    def __init__(self, subject: str, *, needed_bytes: int, budget_bytes: int, tier: str) -> None:
        super().__init__(
            f"{subject} needs {needed_bytes} bytes, which the {tier} budget of {budget_bytes} "
            "bytes cannot give beside what is in use or pinned"
        )
        self.subject = subject
        self.tier = tier


class DeviceMemoryError(LokrError):
    """The device itself has no memory left, whatever the budgets say."""

    def __init__(self, subject: str, *, remedy: str) -> None:
        super().__init__(f"{subject} needs more memory than the device has left; {remedy}")
        self.subject = subject


class QueueFullError(LokrError):
    """Too many requests wait already, or more urgent ones came while it waited."""

    def __init__(self, problem: str, retry_seconds: float) -> None:
        super().__init__(f"{problem}; retry after {retry_seconds:.1f} s")
        self.retry_seconds = retry_seconds


class DeadlineError(LokrError):
    """A request's deadline has passed."""


class ShuttingDownError(LokrError):
    """The server is draining, or its model is not ready."""


class GenerationFailedError(LokrError):
    """A request could not be computed even alone; the log has the cause."""

    def __init__(self, request_id: str) -> None:
        super().__init__(f"request {request_id!r} failed while it was computed")
        self.request_id = request_id


class NotFiniteError(LokrError):
    """A request's latents or pixels hold NaN or infinity, so that no image can be made of them."""

    def __init__(self, request_id: str, subject: str) -> None:
        super().__init__(
            f"request {request_id!r}: its {subject} are not finite; lower the weights of its "
            "adapters or its guidance, or serve the model in a wider dtype"
        )
        self.request_id = request_id


class NumericsError(LokrError):
    """A row's logits hold NaN or have no finite maximum, so no token can be chosen."""

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row}: the logits hold NaN or have no finite maximum")
        self.row = row


class EngineStoppedError(LokrError):
    """The engine stopped with requests in flight."""


class NotServedError(LokrError):
    """A call belongs to the contract, but this server does not have it."""


class NotPermittedError(LokrError):
    """A call is not allowed on this listener, or not to this caller."""


class UnauthenticatedError(LokrError):
    """A caller does not say who it is, or nobody knows it."""


class LimitExceededError(LokrError):
    """A client, or an adapter, has what its limit allows already."""

    def __init__(self, subject: str, problem: str, retry_seconds: float | None = None) -> None:
        """Say who has what, and when it is worth to come again; None is not before something ends.

        Args:
            subject: Whose limit it is.
            problem: What is said of it.
            retry_seconds: How long to wait.
        """
        when = "" if retry_seconds is None else f"; retry after {retry_seconds:.1f} s"
        super().__init__(f"{subject} {problem}{when}")
        self.subject = subject
        self.retry_seconds = retry_seconds

"""Stand-ins: what a request's pipeline sees in place of the modules that all requests share."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

from torch import Tensor, nn

from lokr_serve.errors import ModelError
from lokr_serve.image.calls import Call, CallSignature, Function, bind_call
from lokr_serve.image.parting import Part, part_call, whole_output

Run = Callable[[Sequence[Call]], Sequence[object]]  # returns the output of each

ENCODER_SIGNATURE = CallSignature(
    counted_by="input_ids", rows=frozenset({"input_ids", "attention_mask"})
)

# What language models compute beside their hidden states, which nobody reads here: a cache for
# tokens to come, whose rows cannot be told from one another, and the logits of every token.
_UNREAD: Mapping[str, object] = {"use_cache": False, "logits_to_keep": 1}


class StandIn(nn.Module):
    """Looks like a shared module, and has the engine run what is called.

    It has no children and no parameters of its own, so that what is done to it, such as ``to``,
    ends with it. The attributes of the module can be read; its methods cannot be called, but for
    those that a subclass passes on.
    """

    def __init__(self, name: str, module: nn.Module, run: Run) -> None:
        super().__init__()
        self.__dict__.update(_name=name, _shared=module, _run=run)  # not as a child

    def __getattr__(self, name: str) -> Any:
        shared = self.__dict__["_shared"]
        value = getattr(shared, name)
        if inspect.ismethod(value) and value.__self__ is shared:
            raise AttributeError(
                f"{self.__dict__['_name']} is shared by requests, so that its {name}() cannot be "
                "called by one of them"
            )
        return value

    def forward(self, *args: object, **kwargs: object) -> object:
        """Have the engine run the module's forward, for this call alone."""
        return self._call("", self._shared, None, args, kwargs)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Return the module's parameters, to be read."""
        shared: nn.Module = self._shared
        return shared.parameters(recurse)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Leave the module's parameters, which this would walk over, as they are."""
        return self

    def _call(
        self,
        method: str,
        function: Function,
        signature: CallSignature | None,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
    ) -> object:
        call = bind_call(f"{self._name}{method}", function, signature, args, kwargs)
        parts = [Part(call=call, rows=())] if signature is None else part_call(call, signature)
        run: Run = self._run
        return whole_output(call.name, parts, run([part.call for part in parts]))


class DenoiserStandIn(StandIn):
    """Stands for the denoiser, whose calls join those of other requests."""

    def __init__(self, name: str, module: nn.Module, run: Run, *, signature: CallSignature) -> None:
        super().__init__(name, module, run)
        self.__dict__.update(_signature=signature)

    def forward(self, *args: object, **kwargs: object) -> object:
        """Have the engine run the module's forward, together with others."""
        return self._call("", self._shared, self._signature, args, kwargs)

    @contextmanager
    def cache_context(self, name: str, **place: object) -> Iterator[None]:
        """Do what the module's own does while no cache is on: nothing.

        Raises:
            ModelError: A cache is on, which would serve one request what it keeps of another.
        """
        if getattr(self._shared, "is_cache_enabled", False):
            raise ModelError(
                f"{self._name} keeps a cache between steps, which requests cannot share; "
                "load it without one"
            )
        yield


class EncoderStandIn(StandIn):
    """Stands for a text encoder, whose calls join those of other requests."""

    def forward(self, *args: object, **kwargs: object) -> object:
        """Have the engine run the module's forward, together with others."""
        shared: nn.Module = self._shared
        known = inspect.signature(shared.forward).parameters
        unread = {argument: value for argument, value in _UNREAD.items() if argument in known}
        return self._call("", shared, ENCODER_SIGNATURE, args, {**unread, **kwargs})


class VaeStandIn(StandIn):
    """Stands for the VAE, whose calls run one by one, in its own dtype."""

    def encode(self, x: Tensor, *args: object, **kwargs: object) -> object:
        """Have the engine encode pixels."""
        shared = self._shared
        return self._call(".encode", shared.encode, None, (x.to(shared.dtype), *args), kwargs)

    def decode(self, z: Tensor, *args: object, **kwargs: object) -> object:
        """Have the engine decode latents."""
        shared = self._shared
        return self._call(".decode", shared.decode, None, (z.to(shared.dtype), *args), kwargs)

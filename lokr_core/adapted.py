"""attach: make a model apply adapters, row by row."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal, get_args

import torch
from torch import nn

from lokr_core.adapter import Adapter, beside_base
from lokr_core.cache import MergeCache
from lokr_core.cost import CostModel, MixCost
from lokr_core.errors import LokrError, RoutingError
from lokr_core.layers.discover import discover
from lokr_core.layers.module import RoutedModule
from lokr_core.layers.plans import Plans
from lokr_core.layers.routing import (
    Router,
    RowOrder,
    SampleRouting,
    TokenRouting,
    require_order,
    require_word,
)
from lokr_core.layers.spans import RowSpan
from lokr_core.merge import MergedMix, merge_mix
from lokr_core.mix import AdapterMix, AdapterRef, Apply
from lokr_core.pool import AdapterPool
from lokr_core.replacing import resized_module
from lokr_core.spec import ModelSpec

DEFAULT_MERGE_CACHE_BYTES = 2**31
DEFAULT_BANK_BYTES = 2**30

ApplyWord = Literal["auto", "unmerged", "merged"]


class Adapted:
    """A model that applies adapters; made by :func:`attach`.

    Adapters may be added, removed and merged by any thread while others run the model. Each
    thread that runs it has banks of its own.
    """

    def __init__(
        self, model: nn.Module | Mapping[str, nn.Module], *, merge_cache_bytes: int, bank_bytes: int
    ) -> None:
        self.model = model
        self.spec: ModelSpec = discover(model)
        self.merges = MergeCache(merge_cache_bytes)
        self._pool = AdapterPool()
        self._plans = Plans(
            pool=self._pool,
            merges=self.merges,
            max_bytes=bank_bytes,
            dtype=self.spec.compute_dtype,
        )
        self._costs = CostModel(self._pool, self.spec)
        self._router = Router()
        self._is_attached = True
        for path, module in self.spec.modules.items():
            if isinstance(module.module.__dict__.get("forward"), RoutedModule):
                raise LokrError(f"module {path!r} is attached already; detach it first")
        for module in self.spec.modules.values():
            if module.refusal is None:
                RoutedModule(module, self._router).install()

    def add(self, adapter: Adapter) -> None:
        """Make an adapter usable; adding it twice changes nothing.

        Its factors are brought to the device that the modules it changes are on now, so a model
        is moved to its device before adapters are added; the adapter given stays where it is.

        Raises:
            LokrError: It was read for another model, or changes modules on several devices.
        """
        if adapter.spec is not self.spec:
            raise LokrError(f"adapter {adapter.ref.adapter_id!r} was read for another model")
        if adapter.ref not in self._pool:
            self._pool.add(beside_base(adapter))

    def remove(self, ref: AdapterRef) -> None:
        """Forget an adapter and everything made of it.

        Raises:
            AdapterNotAddedError: It was not added.
            AdapterInUseError: A forward is using it.
        """
        self._pool.remove(ref)
        self.merges.discard_adapter(ref)

    def give_back_memory(self) -> int:
        """Drop what is kept only to save time: merged weights that nobody has leased.

        On CUDA what torch keeps of freed memory goes back to the device, too.

        Returns:
            Bytes of what was dropped.
        """
        num_bytes = self.merges.discard_idle()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        return num_bytes

    def detach(self) -> None:
        """Give the model back as it was; nothing can be applied to it afterwards."""
        self._is_attached = False
        for module in self.spec.modules.values():
            routed = module.module.__dict__.get("forward")
            if isinstance(routed, RoutedModule):
                routed.restore()

    def check(self, mix: AdapterMix) -> None:
        """Check that a mix can be applied.

        Raises:
            AdapterNotAddedError: One of its adapters was not added.
            MixError: A pattern matches no module that its adapter changes, or two disagree.
        """
        self._pool.check(mix)

    def resized_module(self, mix: AdapterMix) -> str | None:
        """Return the path of a module that a mix replaces by one of another size, or None.

        Raises:
            AdapterNotAddedError: One of its adapters was not added.
        """
        return resized_module([(part, self._pool.get(part.ref)) for part in mix.parts])

    def cost(self, mix: AdapterMix) -> MixCost:
        """Return what a mix costs, counted from shapes."""
        return self._costs.of(mix)

    def merge(self, mix: AdapterMix) -> MergedMix:
        """Return the merged weights of a mix, without keeping them.

        Raises:
            AdapterNotAddedError: One of its adapters was not added.
            MixError: The mix does not fit its adapters.
            MergeError: A module that it changes is quantised.
        """
        self.check(mix)
        return merge_mix(mix, self._pool, self.spec)

    @contextmanager
    def using(
        self,
        mixes: AdapterMix | Sequence[AdapterMix],
        apply: ApplyWord | Apply = "auto",
        rows: RowOrder | None = None,
    ) -> Iterator[None]:
        """Run the model's forwards inside the context with these mixes.

        Args:
            mixes: One mix for each sample of the batch, or one for all.
            apply: ``"unmerged"``, ``"merged"``, or ``"auto"``: merged where the merge cache holds
                the mix already, else unmerged. A member of Apply will do, too.
            rows: How rows are repeated where a module sees a multiple of the batch:
                ``"interleave"`` if each sample's rows lie together, ``"tile"`` if the whole batch
                is repeated.

        Raises:
            AdapterNotAddedError: A mix names an adapter that was not added.
            MixError: A mix does not fit its adapters.
            MergeBudgetError: A merged mix does not fit the merge cache.
            RoutingError: No mix is given, or ``apply`` or ``rows`` is no word of theirs; or from a
                forward, where rows cannot be matched to mixes.
        """
        self._require_attached()
        way = _way(apply)
        require_order(rows)
        batch = [mixes] if isinstance(mixes, AdapterMix) else list(mixes)
        if not batch:
            raise RoutingError("no mix was given; AdapterMix() is the base model")
        for mix in set(batch):
            self.check(mix)
        with ExitStack() as stack:
            stack.enter_context(self._pool.hold(batch))
            ways = {mix: self._lease_merged(mix, way, stack) for mix in set(batch)}
            stack.enter_context(self.route_samples([(mix, ways[mix]) for mix in batch], rows))
            yield

    @contextmanager
    def route_samples(
        self, samples: Sequence[tuple[AdapterMix, Apply]], rows: RowOrder | None = None
    ) -> Iterator[None]:
        """Run a forward over a batch of samples inside the context, each as it says.

        The caller holds the adapters, and the merged mixes, for as long as the forward runs.

        Args:
            samples: The mix of each sample of the batch, and how it is applied.
            rows: As for :meth:`using`.

        Raises:
            RoutingError: ``rows`` is no word of its own.
        """
        self._require_attached()
        require_order(rows)
        changes = {mix: self._changed(mix) for mix, _ in set(samples)}
        with self._router.activate(SampleRouting(samples, changes, self._plans.plan, rows)):
            yield

    @contextmanager
    def route(
        self,
        spans: Sequence[RowSpan],
        head: tuple[str, Sequence[RowSpan]] | None = None,
    ) -> Iterator[None]:
        """Run a forward over packed tokens inside the context.

        The caller holds the adapters, and the merged mixes, for as long as the forward runs.

        Args:
            spans: The mix of each run of consecutive tokens, all flattened rows in order.
            head: Path of the output head, and the spans of the rows that it sees.
        """
        self._require_attached()
        head_path, head_spans = head if head is not None else (None, ())
        plans = self._plans.token_plans(tuple(spans), tuple(head_spans))
        routing = TokenRouting(tokens=plans.tokens, head=plans.head, head_path=head_path)
        with self._router.activate(routing):
            yield

    def _require_attached(self) -> None:
        if not self._is_attached:
            raise LokrError("the model was detached; attach it again to apply adapters")

    def _lease_merged(self, mix: AdapterMix, way: Apply | None, stack: ExitStack) -> Apply:
        """Lease the merged weights of a mix where it is to be applied merged."""
        if mix.is_base or way is Apply.UNMERGED:
            return Apply.UNMERGED
        if not self.merges.acquire(mix):
            if way is None:
                return Apply.UNMERGED
            self.merges.put(mix, self.merge(mix))
        stack.callback(self.merges.release, mix)
        return Apply.MERGED

    def _changed(self, mix: AdapterMix) -> frozenset[str]:
        """Return the paths of the modules that a mix changes."""
        return frozenset(path for p in mix.parts for path in self._pool.get(p.ref).layout.modules)


def _way(apply: ApplyWord | Apply) -> Apply | None:
    """Return the way that a word means, or None for whichever is at hand."""
    if isinstance(apply, Apply):
        return apply
    require_word("apply", apply, get_args(ApplyWord))
    return None if apply == "auto" else Apply(apply)


def attach(
    model: nn.Module | Mapping[str, nn.Module],
    *,
    merge_cache_bytes: int = DEFAULT_MERGE_CACHE_BYTES,
    bank_bytes: int = DEFAULT_BANK_BYTES,
) -> Adapted:
    """Make a model apply adapters, in place.

    Args:
        model: A module, a mapping of modules by component name, or a diffusers pipeline.
        merge_cache_bytes: Bound of the cache of merged weights.
        bank_bytes: Bound of the copies of active adapters that batched products read, for each
            thread that runs the model.

    Raises:
        LokrError: The object is no model, has no linear module, or is attached already.
    """
    return Adapted(model, merge_cache_bytes=merge_cache_bytes, bank_bytes=bank_bytes)

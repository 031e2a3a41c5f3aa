"""Change: what the adapters of a group add to their rows at one module."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from lokr_core.errors import MixError
from lokr_core.layers.autocast import is_autocast_on
from lokr_core.layers.group import Group
from lokr_core.layers.layer import Layer, along_channels, is_whole
from lokr_core.ops.batched import BatchedDelta
from lokr_core.ops.torch_ops import adapted_bias, bias_change
from lokr_core.spec import ModuleSpec
from lokr_core.weights import DenseWeights, Gain, ModuleWeights, Term

# Elements that are moved in about the time in which one more product is started: 30 µs.
_MAX_MOVED = 2**15


class Change(Protocol):
    """A change of one module, ready to be applied."""

    group: Group
    needs_base: bool  # whether it reads the base's output

    def add_to(self, out: Tensor, x: Tensor, base: Tensor) -> None:
        """Add the change to the group's rows, in place.

        Args:
            out: Output so far, [N, ...].
            x: Inputs, [N, ...].
            base: Output of the base, [N, ...]; read only if the change needs it.
        """
        ...


class DeltaChange:
    """The change that one factored delta of all outputs makes, and nothing beside it.

    Rows that do not lie in the group's order are brought into it, if they are small. Large ones,
    of images or long prompts, stay where they are, and each adapter has products of its own.
    """

    needs_base = False

    def __init__(self, group: Group, layer: Layer, delta: BatchedDelta) -> None:
        self.group = group
        self.delta = delta
        self._layer = layer
        self._by_entry: tuple[BatchedDelta, ...] = ()

    def add_to(self, out: Tensor, x: Tensor, base: Tensor) -> None:
        """Add the delta's output to the group's rows."""
        if self.group.rows.span is None and x.is_cpu and self._is_large(out, x):
            self._add_runs(out, x)
        else:
            self.group.add_delta(self.delta, out, x)

    def _is_large(self, out: Tensor, x: Tensor) -> bool:
        """Whether bringing the rows into the group's order costs more than products for each."""
        group = self.group
        num_moved = len(group.rows.gather) * (x.numel() + out.numel()) // len(x)
        return num_moved > _MAX_MOVED * len(group.parts) and (
            num_moved > _MAX_MOVED * len(group.runs)
        )

    def _add_runs(self, out: Tensor, x: Tensor) -> None:
        """Add the delta's output to each run of consecutive rows where it lies."""
        if not self._by_entry:
            path, entries = self._layer.spec.path, range(len(self.group.parts))
            singles = (self.group.banked(path, slice(entry, entry + 1)) for entry in entries)
            self._by_entry = tuple(
                delta for weights in singles for delta in self._layer.deltas(weights, 1)
            )
        for entry, run in self.group.runs:
            self._by_entry[entry].add_to(out[run], x[run])


class SummedChange:
    """Any number of terms, with or without factors, a bias, and a gain over them.

    For a part of weight w it is ``w * (W' x − W x + b' − b)`` with W' = gain * (W + Σ terms); the
    banked factors carry w already.
    """

    def __init__(self, group: Group, layer: Layer, deltas: Sequence[BatchedDelta]) -> None:
        self.group = group
        self._layer = layer
        path = layer.spec.path
        banked = group.banked(path)
        self._deltas = deltas
        self._dense = _dense_terms(group, path)
        self._gain = banked.gain
        self._weights = group.weights(path)
        self._bias = _bias(group, layer.spec, banked)  # [E, O], weights folded in
        self.needs_base = banked.gain is not None

    def add_to(self, out: Tensor, x: Tensor, base: Tensor) -> None:
        """Add the change to the group's rows."""
        rows = self.group.take(x)  # [E * L, ...]
        change = out.new_zeros(len(rows), *out.shape[1:])
        if self._gain is None:
            self._add_terms(change, rows)
        else:
            self._add_gained(change, rows, self._gain, self.group.take(base))
        if self._bias is not None:
            self._by_entry(change).add_(along_channels(self._bias.to(change), change.ndim))
        self.group.add_rows(out, change)

    def _by_entry(self, rows: Tensor) -> Tensor:
        by_entry: Tensor = rows.unflatten(0, (len(self._weights), -1))
        return by_entry

    def _add_terms(self, change: Tensor, rows: Tensor) -> None:
        for delta in self._deltas:
            delta.add_to(change, rows)
        if not any(self._dense):
            return
        outs, inputs = self._by_entry(change), self._by_entry(rows)
        for index, terms in enumerate(self._dense):
            for term in terms:
                self._layer.add_dense(outs[index], inputs[index], term, self._weights[index])

    def _add_gained(self, change: Tensor, rows: Tensor, gain: Gain, base: Tensor) -> None:
        """Add the terms under a gain, and what the gain makes of the base's own product."""
        spec, gains = self._layer.spec, self._layer.gains(gain, rows)
        weight = torch.tensor(self._weights, dtype=torch.float64).to(change)
        weight = weight.view(-1, *(1,) * change.ndim)
        if gains.inputs is not None:
            inputs = self._by_entry(rows)
            self._add_terms(change, (inputs * gains.inputs).flatten(0, 1))
            matrix = spec.to_base_layout(spec.weight.to(change.dtype))
            product = self._layer.bind(matrix, None)((inputs * (gains.inputs - 1)).flatten(0, 1))
            self._by_entry(change).add_(weight * self._by_entry(product))
        if gains.outputs is not None:
            self._add_terms(change, rows)
            if spec.bias is not None:
                base = base - along_channels(spec.bias[None].to(base), base.ndim)[0]
            plain = self._by_entry(base)
            by_entry = self._by_entry(change)
            by_entry.mul_(gains.outputs).add_(weight * (gains.outputs - 1) * plain)


class ReplacedChange:
    """The change ``w * (F(x, W') − F(x, W))`` of weights that take the place of the base's."""

    needs_base = True

    def __init__(self, group: Group, layer: Layer) -> None:
        self.group = group
        self._weights = group.weights(layer.spec.path)
        self._forwards = [
            ReplacedForward(layer, adapter.module(layer.spec.path)) for adapter in group.adapters
        ]
        for part, forward in zip(group.parts, self._forwards, strict=True):
            if forward.is_resized:
                raise MixError(
                    part.ref.adapter_id,
                    f"replaces {layer.spec.path!r} by a weight of another shape, so it can only "
                    "be applied alone, at weight 1",
                )

    def add_to(self, out: Tensor, x: Tensor, base: Tensor) -> None:
        """Add the change to the group's rows."""
        entries = len(self._weights), -1
        rows = self.group.take(x).unflatten(0, entries)
        change = self.group.take(base).unflatten(0, entries).neg()
        for index, weight in enumerate(self._weights):
            change[index].add_(self._forwards[index](rows[index], change.dtype)).mul_(weight)
        self.group.add_rows(out, change.flatten(0, 1))


class ReplacedForward:
    """A module's forward with the weights that an adapter has in place of the base's.

    It is computed in the dtype of the output, or in that of the weights where theirs is wider.
    """

    def __init__(self, layer: Layer, weights: ModuleWeights) -> None:
        self._layer = layer
        spec = layer.spec
        assert weights.replacement is not None
        assert weights.replacement.weight is not None
        self._weight = weights.replacement.weight
        self._weights = weights
        self.is_resized = tuple(self._weight.shape) != spec.shape

    @property
    def weight(self) -> Tensor:
        """The weight as a matrix [O', C]."""
        return self._weight

    def __call__(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return the output in ``dtype``.

        If it is None, in that of the module's own output: autocast's, or that of floating inputs,
        or of the base.
        """
        spec = self._layer.spec
        may_narrow = dtype is None and is_autocast_on(x.device.type)
        if dtype is None:
            dtype = x.dtype if x.is_floating_point() else spec.parameter.dtype
        wide = torch.promote_types(self._weight.dtype, dtype)
        if type(spec.module).forward is nn.Embedding.forward:  # looks up, and computes nothing
            return self._layer.bind(self._weight, None)(x).to(dtype)
        bias = adapted_bias(spec.bias, self._weights, wide)
        weight = spec.to_base_layout(self._weight.to(wide))
        x = x.to(wide) if x.is_floating_point() else x
        out = self._layer.bind(weight, bias)(x)
        return out if may_narrow and out.dtype != wide else out.to(dtype)


def _dense_terms(group: Group, path: str) -> tuple[tuple[Term, ...], ...]:
    """Return each entry's terms without factors, in its adapter's own buffer."""
    if not any(term.is_dense for term in group.layout.modules[path].terms):
        return ((),) * len(group.adapters)
    return tuple(
        tuple(t for t in adapter.module(path).terms if isinstance(t.delta, DenseWeights))
        for adapter in group.adapters
    )


def _bias(group: Group, spec: ModuleSpec, banked: ModuleWeights) -> Tensor | None:
    """Return what each entry adds to the bias, [E, O], weights folded in."""
    if group.layout.modules[spec.path].replacement is None:
        return banked.bias
    changes = [
        bias_change(spec.bias, adapter.module(spec.path), torch.float64)
        for adapter in group.adapters
    ]
    weights = group.weights(spec.path)
    return torch.stack(
        [w * change for w, change in zip(weights, changes, strict=True) if change is not None]
    )


def changes_at(layer: Layer, groups: Iterable[Group]) -> list[Change]:
    """Return what each group adds at a module."""
    return [_change_at(layer, group) for group in groups]


def _change_at(layer: Layer, group: Group) -> Change:
    slots = group.layout.modules[layer.spec.path]
    if slots.replaces_weight:
        return ReplacedChange(group, layer)
    weights = group.banked(layer.spec.path)
    deltas = layer.deltas(weights, len(group.parts))
    is_plain = slots.gain is None and slots.bias is None and not slots.has_dense
    if is_plain and len(deltas) == 1 and _is_whole(layer, weights):
        return DeltaChange(group, layer, deltas[0])
    return SummedChange(group, layer, deltas)


def _is_whole(layer: Layer, weights: ModuleWeights) -> bool:
    return all(is_whole(term, layer.spec.out_features) for term in weights.terms)

"""Parting: a call with rows of several kinds is run as calls of one kind each."""

from typing import cast

import torch
from diffusers.utils.outputs import BaseOutput
from torch import Tensor

from lokr_serve.image.calls import CallSignature, bind_call
from lokr_serve.image.joining import split, unsplit
from lokr_serve.image.parting import Part, part_call, whole_output

SIGNATURE = CallSignature(
    counted_by="x",
    rows=frozenset({"added"}),
    lists=frozenset({"x", "captions"}),
    expanded=frozenset({"t"}),
    padded_lists={"captions": 4},
)


def forward(
    x: list[Tensor], captions: list[Tensor], t: object, added: object, ids: Tensor
) -> tuple[list[Tensor], Tensor]:
    """Return what tells rows and their captions apart."""
    return x, torch.stack([caption.sum() for caption in captions])


def parts_of(lengths: list[int], t: object) -> list[Part]:
    """Return the parts of a call whose captions are so long."""
    num_rows = len(lengths)
    arguments: dict[str, object] = {
        "x": list(torch.arange(num_rows * 2.0).view(num_rows, 2)),
        "captions": [torch.ones(length) for length in lengths],
        "t": t,
        "added": {"a": torch.arange(num_rows), "b": None},
        "ids": torch.zeros(num_rows, 7),  # shared, whatever its size
    }
    return part_call(bind_call("transformer", forward, SIGNATURE, (), arguments), SIGNATURE)


def test_rows_of_one_kind_are_one_part() -> None:
    """Nearly every call; its output is what the module returns, as it is."""
    (part,) = parts_of([1, 4, 3], 7)
    output = object()

    assert part.rows == (0, 1, 2)
    assert whole_output("transformer", [part], [output]) is output


def test_each_part_has_its_rows_of_every_argument_and_joins() -> None:
    """Lists, tensors and mappings are cut; what is shared, and one number for all, is not."""
    parts = parts_of([1, 5, 2, 8], torch.arange(4))

    assert [part.rows for part in parts] == [(0, 2), (1, 3)]
    assert all(part.call.joining is not None for part in parts)
    arguments = parts[1].call.arguments
    torch.testing.assert_close(arguments["x"], [torch.tensor([2.0, 3.0]), torch.tensor([6.0, 7.0])])
    torch.testing.assert_close(arguments["t"], torch.tensor([1, 3]))
    assert isinstance(arguments["added"], dict)
    torch.testing.assert_close(arguments["added"]["a"], torch.tensor([1, 3]))
    assert parts_of([1, 5], 7)[0].call.arguments["t"] == 7


def test_the_outputs_of_parts_are_put_together_in_the_order_of_rows() -> None:
    """The pipeline sees one call and its output."""
    parts = parts_of([1, 5, 2, 8], 7)
    outputs = [part.call.function(**part.call.arguments) for part in parts]

    whole = whole_output("transformer", parts, outputs)

    rows, sums = cast(tuple[list[Tensor], Tensor], whole)
    torch.testing.assert_close(torch.stack(rows), torch.arange(8.0).view(4, 2))
    torch.testing.assert_close(sums, torch.tensor([1.0, 5.0, 2.0, 8.0]))


def test_putting_together_undoes_taking_apart() -> None:
    """In every form that an output may have."""

    class Output(BaseOutput):  # a class of diffusers, whose fields are its items
        sample: Tensor

    tensor = torch.arange(6).view(3, 2)
    output = (tensor, None, [1, 2, 3], Output(sample=tensor))

    whole = unsplit(split("unet", output, [1, 1, 1]))

    assert isinstance(whole, tuple)
    torch.testing.assert_close(whole[0], tensor)
    assert whole[1:3] == (None, [1, 2, 3])
    assert isinstance(whole[3], Output)
    torch.testing.assert_close(whole[3]["sample"], tensor)

"""Calls: which may join, how they do, and what is refused by name."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.utils.outputs import BaseOutput
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from lokr_serve.errors import ModelError
from lokr_serve.image.calls import Call, CallKey, CallSignature, bind_call
from lokr_serve.image.joining import join, split

SIGNATURE = CallSignature(
    counted_by="x",
    rows=frozenset({"x", "text", "added", "words", "seen"}),
    lists=frozenset({"captions", "shapes"}),
    expanded=frozenset({"t"}),
    repeated=frozenset({"places"}),
    masked={"words": "seen"},
    padded_lists={"captions": 4},
)
LISTED = CallSignature(counted_by="captions", rows=frozenset(), lists=frozenset({"captions"}))


def forward(x: Tensor, t: object = None, text: Tensor | None = None, **others: object) -> Tensor:
    """Stand for a denoiser's forward."""
    return x


def call(*args: object, **kwargs: object) -> Call:
    """Return a call of it."""
    return bind_call("unet", forward, SIGNATURE, args, kwargs)


def key(*args: object, **kwargs: object) -> CallKey:
    """Return what must be equal in calls that join this one."""
    joining = call(*args, **kwargs).joining
    assert joining is not None
    return joining.key


ROWS = torch.zeros(2, 3)
ONE_ROW = torch.ones(1, 3)
WORDS = torch.ones(2, 5, 3)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {}),
        ({"t": torch.tensor(7)}, {"t": torch.tensor(0.5)}),
        ({"t": 7}, {"t": torch.tensor([0.5, 0.25])}),
        ({"ids": torch.arange(4)}, {"ids": torch.arange(4)}),
        ({"added": {"b": ROWS, "a": None}}, {"added": {"a": None, "b": ROWS + 1}}),
        ({"shapes": [[(1, 2)]] * 2}, {"shapes": [[(1, 2)]] * 2}),
        ({"captions": [torch.zeros(2), torch.zeros(4)]}, {"captions": [torch.zeros(3)] * 2}),
        ({"words": WORDS}, {"words": torch.zeros(2, 9, 3), "seen": torch.ones(2, 9)}),
        ({"attention_kwargs": None}, {"attention_kwargs": None}),
        ({"attention_kwargs": {}}, {"attention_kwargs": {}}),
    ],
)
def test_calls_join_where_all_but_their_rows_is_equal(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    """Timesteps of any number, tensors compared by value, lists by what they are padded to."""
    assert key(ROWS, **first) == key(ROWS + 1, **second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"text": ROWS}, {"text": None}),
        ({"text": ROWS}, {}),
        ({"text": ROWS}, {"text": ROWS.double()}),
        ({"text": ROWS}, {"text": torch.zeros(2, 4)}),
        ({"t": torch.tensor(7)}, {"t": torch.tensor(7.0, dtype=torch.float16)}),
        ({"ids": torch.arange(4)}, {"ids": torch.arange(1, 5)}),
        ({"ids": torch.arange(4)}, {"ids": torch.arange(4).float()}),
        ({"return_dict": True}, {"return_dict": 1}),
        ({"layers": (1, 2)}, {"layers": [1, 2]}),
        ({"deep": {"a": (1, "b", None)}}, {"deep": {"a": (1, "c", None)}}),
        ({"added": {"a": ROWS}}, {"added": {"a": ROWS, "b": ROWS}}),
        ({"shapes": [[(1, 2)]] * 2}, {"shapes": [[(2, 1)]] * 2}),
        ({"captions": [torch.zeros(3)] * 2}, {"captions": [torch.zeros(5)] * 2}),
        ({"words": WORDS}, {"words": torch.zeros(2, 5, 4)}),
        ({"words": WORDS}, {"words": WORDS.double()}),
    ],
)
def test_calls_stay_apart_where_anything_else_differs(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    """Joined, one of them would be computed with what the other brought."""
    assert key(ROWS, **first) != key(ROWS, **second)


def test_rows_of_several_lengths_run_alone() -> None:
    """Their tokens would be packed unevenly, and no row could be told from another's."""
    uneven = call(ROWS, captions=[torch.zeros(4), torch.zeros(5)])

    assert uneven.joining is None


def test_a_call_without_a_signature_runs_alone_with_its_arguments_as_they_are() -> None:
    """Nothing is known of them, so nothing is compared."""
    bound = bind_call("checker", forward, None, (np.zeros(2),), {"t": object()})

    assert bound.joining is None
    assert bound.num_rows == 1
    assert sorted(bound.arguments) == ["t", "x"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"x": None}, "unet is called without x"),
        ({"x": torch.tensor(1.0)}, "unet is called without x"),
        ({"x": ROWS, "text": ONE_ROW}, r"text is \(1, 3\) in a call of 2 rows"),
        ({"x": ROWS, "text": torch.tensor(1)}, r"text is \(\) in a call of 2 rows"),
        ({"x": ROWS, "added": {"image_embeds": [ROWS]}}, r"added\['image_embeds'\] is a list"),
        ({"x": ROWS, "shapes": [1]}, "shapes is not a list of 2 items"),
        ({"x": ROWS, "shapes": ROWS}, "shapes is not a list of 2 items"),
        ({"x": ROWS, "t": torch.zeros(3)}, "t is neither one number nor one for each"),
        ({"x": ROWS, "t": "now"}, "t is neither one number nor one for each"),
        ({"x": ROWS, "attention_kwargs": {"scale": 0.5}}, "called with attention_kwargs"),
        ({"x": ROWS, "places": torch.eye(2)}, "places has other values in some of its 2 rows"),
        ({"x": ROWS, "words": None}, "words is no tensor of rows that have lengths"),
        (
            {"x": ROWS, "words": WORDS, "seen": torch.ones(2, 4)},
            r"words is \(2, 5, 3\), but its mask \(2, 4\)",
        ),
        ({"x": ROWS, "hook": object()}, "hook is a object"),
        ({"t": 1}, "missing a required argument: 'x'"),
    ],
)
def test_what_no_call_may_bring_is_refused_by_name(arguments: dict[str, Any], problem: str) -> None:
    """A guess would give wrong images; the error says which argument of which module."""
    with pytest.raises(ModelError, match=problem):
        call(**arguments)


def test_arguments_that_have_no_name_are_refused() -> None:
    """They could not be told apart by the signature."""

    def variadic(x: Tensor, *rest: object) -> Tensor:
        return x

    with pytest.raises(ModelError, match=r"unet is called with \*rest"):
        bind_call("unet", variadic, SIGNATURE, (ROWS, 1), {})


def test_joined_arguments_have_the_rows_of_each_call_in_order() -> None:
    """Rows one after the other, numbers as many as there are rows, what is shared once."""
    ids = torch.arange(3)
    calls = [
        call(ROWS, torch.tensor(7), text=None, added={"a": ROWS}, shapes=[1, 1], ids=ids),
        call(ONE_ROW, 0.5, text=None, added={"a": ONE_ROW}, shapes=[1], ids=ids.clone()),
    ]

    joined = join(calls)

    expected = torch.tensor([7.0, 7.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(joined["x"], torch.cat([ROWS, ONE_ROW]))
    torch.testing.assert_close(joined["t"], expected)
    assert joined["text"] is None
    assert joined["added"] == {"a": pytest.approx(torch.cat([ROWS, ONE_ROW]))}
    assert joined["shapes"] == [1, 1, 1]
    assert joined["ids"] is ids


def test_repeated_rows_join_calls_of_any_number_of_rows() -> None:
    """Places are one row's, said once for each: a request for two images joins one for one."""
    places = torch.arange(3)
    one = call(ONE_ROW, places=places.expand(1, 3))
    two = call(ROWS, places=places.expand(2, 3))
    other = call(ROWS, places=(places + 1).expand(2, 3))

    joined = join([one, two])

    assert one.joining is not None
    assert two.joining is not None
    assert other.joining is not None
    assert one.joining.key == two.joining.key != other.joining.key
    torch.testing.assert_close(joined["places"], places.expand(3, 3))


def test_rows_of_several_lengths_are_padded_and_hidden() -> None:
    """A mask is made where a call has none; the one that there is stays as it is."""
    short = call(ONE_ROW, words=WORDS[:1, :2], seen=torch.tensor([[1, 0]]))
    joined = join([call(ROWS, words=WORDS), short])

    seen = [[True] * 5, [True] * 5, [True, False, False, False, False]]
    torch.testing.assert_close(joined["seen"], torch.tensor(seen))
    padded = torch.cat([WORDS[:1, :2], torch.zeros(1, 3, 3)], dim=1)
    torch.testing.assert_close(joined["words"], torch.cat([WORDS, padded]))


def test_rows_of_one_length_need_no_mask() -> None:
    """The module then does what it does for each of them alone."""
    joined = join([call(ROWS, words=WORDS, seen=None), call(ROWS, words=WORDS, seen=None)])

    assert joined["seen"] is None


def test_lists_count_rows_where_a_module_takes_lists() -> None:
    """Z-Image takes a list of images and one of captions."""
    first = bind_call("t", lambda captions: captions, LISTED, ([ROWS, ROWS],), {})
    second = bind_call("t", lambda captions: captions, LISTED, ([ROWS],), {})

    assert (first.num_rows, second.num_rows) == (2, 1)
    assert len(join([first, second])["captions"]) == 3  # type: ignore[arg-type]


def test_numbers_join_on_the_device_that_counts_the_rows() -> None:
    """A timestep may be on the host; lists are counted by their first tensor."""
    signature = CallSignature(
        counted_by="x", rows=frozenset(), lists=frozenset({"x"}), expanded=frozenset({"t"})
    )
    calls = [bind_call("t", forward, signature, ([ROWS], 1), {}) for _ in range(2)]

    torch.testing.assert_close(join(calls)["t"], torch.tensor([1, 1]))


@dataclass
class Output(BaseOutput):
    """An output class of diffusers."""

    sample: Tensor


TENSOR = torch.arange(6).view(3, 2)


def test_an_output_is_handed_back_in_the_form_that_it_has() -> None:
    """Pipelines index tuples, name fields and walk lists; each call gets its own rows."""
    output = (TENSOR, None, [10, 11, 12], (TENSOR + 1, Output(sample=TENSOR)))

    first, second = split("unet", output, [1, 2])

    assert isinstance(first, tuple)
    assert isinstance(second, tuple)
    torch.testing.assert_close(second[0], TENSOR[1:])
    assert (first[1], first[2], second[2]) == (None, [10], [11, 12])
    torch.testing.assert_close(first[3][0], TENSOR[:1] + 1)
    assert isinstance(second[3][1], Output)
    torch.testing.assert_close(second[3][1].sample, TENSOR[1:])


def test_a_language_models_output_keeps_its_class_and_hidden_states() -> None:
    """Pipelines read hidden states by layer; a field that is unset stays so."""
    output = BaseModelOutputWithPooling(last_hidden_state=TENSOR, hidden_states=(TENSOR, TENSOR))

    first, second = split("text_encoder", output, [2, 1])

    assert isinstance(first, BaseModelOutputWithPooling)
    assert isinstance(second, BaseModelOutputWithPooling)
    assert second.hidden_states is not None
    torch.testing.assert_close(second.hidden_states[1], TENSOR[2:])
    assert first.pooler_output is None


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        (OrderedDict(a=1), "unet returns a OrderedDict"),
        ((TENSOR, {"cache": 1}), "unet returns a dict"),
        (torch.zeros(2, 2), r"unet returns a tensor \(2, 2\) for 3 rows"),
        (torch.tensor(1.0), r"unet returns a tensor \(\) for 3 rows"),
        ([1, 2], "unet returns a list"),
    ],
)
def test_an_output_without_rows_is_an_error(output: object, problem: str) -> None:
    """Such as a cache: a guess would give one request what belongs to another."""
    with pytest.raises(ModelError, match=problem):
        split("unet", output, [1, 2])

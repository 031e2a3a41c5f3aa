"""Mutations of adapter files: blind ones of bytes, and ones that keep the file whole."""

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

from tests.fuzz.files import AdapterFiles, StoredTensor, header_of, pack, unpack, with_header

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1}
DTYPES = [*SIZES, "BOOL", "F8_E4M3", "F8_E5M2", "F4", "C64", "", 7, None]
HUGE = [2**31, 2**32 + 1, 2**53, 2**62, 2**63 - 1, 2**64, 10**30]
ODD: list[object] = [0, -1, 1, 1.5, True, None, "1", [], {}, float("nan"), *HUGE]
FLOATS = [float("nan"), float("inf"), -float("inf"), 0.0, 1e-45, 1e-310, 3.4e38, 6e4, -1.0]
PARTS = ("", "_a", "_b")
LEAVES = [f"{kind}_w{i}{part}" for kind in ("lokr", "hada") for i in (1, 2) for part in PARTS]
LEAVES += [f"lora_{part}.weight" for part in ("up", "down", "mid", "A", "B")]
LEAVES += ["lokr_t2", "hada_t1", "hada_t2", "lora_B.bias", "lora_embedding_A", "lora_embedding_B"]
LEAVES += ["lora_magnitude_vector", "dora_scale", "alpha", "diff", "diff_b", "w_norm", "b_norm"]
LEAVES += ["bias_indices", "bias_values", "bias_size", "weight", "bias", "scale", "oft_blocks"]
TEXTS = ["", ".", "a" * 5000, "\x00\x1b[2J", "\ud800", "\u202e", "é" * 90, "'\"\\", "0", "default"]
PATTERNS = ["(a+)+$", "(.*)*", ".*" * 30, "(", "(?<=a)", "\\1", "a{1,9999}" * 9, "", "|", "fc"]

Mutator = Callable[[Random, AdapterFiles, Sequence[AdapterFiles]], AdapterFiles]


def flip_bits(random: Random, files: AdapterFiles, others: Sequence[AdapterFiles]) -> AdapterFiles:
    """Flip a few bits, half of the time in the header."""
    content = bytearray(files.tensors)
    in_header = 8 + int.from_bytes(content[:8], "little")
    end = random.choice([in_header, len(content)])
    for _ in range(random.randint(1, 4)):
        content[random.randrange(min(end, len(content)))] ^= 1 << random.randrange(8)
    return replace(files, tensors=bytes(content))


def cut(random: Random, files: AdapterFiles, others: Sequence[AdapterFiles]) -> AdapterFiles:
    """Drop the end, the beginning or a stretch."""
    begin, end = sorted(random.randrange(len(files.tensors) + 1) for _ in range(2))
    kept = random.choice([(begin, len(files.tensors)), (end, end), (begin, end)])
    return replace(files, tensors=files.tensors[: kept[0]] + files.tensors[kept[1] :])


def splice(random: Random, files: AdapterFiles, others: Sequence[AdapterFiles]) -> AdapterFiles:
    """Go on with the bytes of another file from some point."""
    other = random.choice(others).tensors
    at = random.randrange(len(files.tensors))
    start = random.choice([min(at, len(other)), random.randrange(len(other))])
    return replace(files, tensors=files.tensors[:at] + other[start:])


def break_entry(
    random: Random, files: AdapterFiles, others: Sequence[AdapterFiles]
) -> AdapterFiles:
    """Change what the header says of a tensor, and nothing else."""
    header, data = header_of(files.tensors)
    name = random.choice(list(header))
    entry = header[name]
    assert isinstance(entry, dict)
    field = random.choice(["shape", "data_offsets", "dtype", ""])
    if not field or not isinstance(entry.get(field), list):
        changed: object = random.choice(DTYPES) if field == "dtype" else random.choice(ODD)
    else:
        changed = list(entry[field])
        if changed and random.random() < 0.7:
            at = random.randrange(len(changed))
            changed[at] = random.choice([*ODD, changed[at] + 1, changed[at] * 2])
        else:
            changed = random.choice([changed[:-1], [*changed, 1], changed[::-1], [1] * 99])
    header[name] = {**entry, field: changed} if field else changed
    text = json.dumps(header).encode()
    return replace(files, tensors=with_header(text, data))


def double_key(random: Random, files: AdapterFiles, others: Sequence[AdapterFiles]) -> AdapterFiles:
    """Give a key of the header twice, or a long or strange one."""
    header, data = header_of(files.tensors)
    key = json.dumps(random.choice([*header, *TEXTS, *(["x"] * 3)]))
    value = json.dumps(random.choice([*header.values(), "a", {}]))
    text = f"{{{key}: {value}, {json.dumps(header)[1:]}".encode()
    return replace(files, tensors=with_header(text, data))


def nest(random: Random, files: AdapterFiles, others: Sequence[AdapterFiles]) -> AdapterFiles:
    """Put much, or deep, JSON into the header."""
    header, data = header_of(files.tensors)
    sign = random.choice(["[", '{"a":', "[1,", '"', "[[],", "9"])
    text = f'{{"a": {sign * random.choice([9, 900, 9000])}, {json.dumps(header)[1:]}'.encode()
    return replace(files, tensors=with_header(text, data))


def rename(random: Random, files: AdapterFiles, others: Sequence[AdapterFiles]) -> AdapterFiles:
    """Give a tensor another name: of another module, another part, or of nothing."""
    tensors, metadata = unpack(files.tensors)
    name = random.choice(list(tensors))
    module, _, _leaf = name.partition(".") if name.startswith("lyc") else name.rpartition(".lo")
    other = random.choice(list(unpack(random.choice(others).tensors)[0]))
    new = random.choice(
        [
            f"{module}.{random.choice(LEAVES)}",
            other,
            name + random.choice(TEXTS),
            random.choice(TEXTS),
            name.replace("_", "."),
            name[: len(name) // 2],
        ]
    )
    changed = {new if key == name else key: tensor for key, tensor in tensors.items()}
    return replace(files, tensors=pack(changed, metadata))


def drop(random: Random, files: AdapterFiles, others: Sequence[AdapterFiles]) -> AdapterFiles:
    """Leave a tensor out."""
    tensors, metadata = unpack(files.tensors)
    del tensors[random.choice(list(tensors))]
    return replace(files, tensors=pack(tensors, metadata))


def add(random: Random, files: AdapterFiles, others: Sequence[AdapterFiles]) -> AdapterFiles:
    """Take a tensor over from another file, under its name or beside a name of this one."""
    tensors, metadata = unpack(files.tensors)
    donor, _ = unpack(random.choice(others).tensors)
    name = random.choice(list(donor))
    key = random.choice(
        [name, *tensors, name, f"{next(iter(tensors)).split('.')[0]}." + random.choice(LEAVES)]
    )
    return replace(files, tensors=pack({**tensors, key: donor[name]}, metadata))


def reshape(random: Random, files: AdapterFiles, others: Sequence[AdapterFiles]) -> AdapterFiles:
    """Give a tensor another shape or dtype, in a file that stays whole."""
    tensors, metadata = unpack(files.tensors)
    tensor = random.choice(list(tensors.values()))
    dtype = random.choice(list(SIZES))
    tensor.dtype = random.choice([tensor.dtype, tensor.dtype, dtype])
    count = len(tensor.data) // SIZES.get(tensor.dtype, 4)
    divisor = random.choice([d for d in range(1, count + 1) if count % d == 0] or [1])
    tensor.shape = random.choice([
        [count], [divisor, count // divisor], tensor.shape[::-1], [*tensor.shape, 1],
        [1, count], [count, 1], [divisor, count // divisor, 1, 1], []])  # fmt: skip
    if tensor.shape == []:
        tensor.data = tensor.data[: SIZES.get(tensor.dtype, 4)]
    elif random.random() < 0.3:
        _resize(random, tensor)
    return replace(files, tensors=pack(tensors, metadata))


def _resize(random: Random, tensor: StoredTensor) -> None:
    sizes = [size if type(size) is int else 1 for size in tensor.shape]
    at = random.randrange(len(sizes))
    sizes[at] = random.choice([0, 1, sizes[at] + 1, sizes[at] * 2, 1000])
    count = SIZES.get(tensor.dtype, 4)
    for size in sizes:
        count *= size
    if count < 1 << 20:
        tensor.shape = list(sizes)
        tensor.data = (tensor.data * (count // max(1, len(tensor.data)) + 1))[:count]


def set_value(random: Random, files: AdapterFiles, others: Sequence[AdapterFiles]) -> AdapterFiles:
    """Write a number that no factor should hold, or one that is merely extreme."""
    tensors, metadata = unpack(files.tensors)
    tensor = random.choice(list(tensors.values()))
    code = {"F64": "d", "F32": "f", "F16": "e"}.get(tensor.dtype)
    if code is None or not tensor.data:
        return files
    value = struct.pack(f"<{code}", random.choice(FLOATS))
    count = len(tensor.data) // len(value)
    if random.random() < 0.3:
        tensor.data = value * count
    else:
        at = random.randrange(count) * len(value)
        tensor.data = tensor.data[:at] + value + tensor.data[at + len(value) :]
    return replace(files, tensors=pack(tensors, metadata))


def set_metadata(
    random: Random, files: AdapterFiles, others: Sequence[AdapterFiles]
) -> AdapterFiles:
    """Let a trainer have written something else of itself."""
    tensors, metadata = unpack(files.tensors)
    key = random.choice(["ss_network_module", "ss_network_dim", "lycoris_config", "format", "x"])
    deep = '{"linear_dim": ' + "[" * 3000
    dims = [f'{{"linear_dim": {n}, "bypass_mode": true}}' for n in ("4", "1e999", "9" * 400, "-1")]
    texts = ["lycoris.kohya", "1e999", "4", "0", "nan", "9" * 5000, "{", deep, *dims, *TEXTS]
    value = random.choice([*texts, *ODD])
    return replace(files, tensors=pack(tensors, {**metadata, key: value}))


def set_config(random: Random, files: AdapterFiles, others: Sequence[AdapterFiles]) -> AdapterFiles:
    """Change a field of the configuration, take one away, or break its text."""
    if files.config is None:
        return rename(random, files, others)
    if random.random() < 0.1:
        content = bytearray(files.config)
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        return replace(files, config=bytes(content[: random.choice([len(content), 50])]))
    config = json.loads(files.config)
    field = random.choice([*config, "peft_type", "r", "rank_pattern", "alpha_pattern", *TEXTS])
    number = random.choice(ODD)
    patterns = {random.choice(PATTERNS): random.choice([2, 4, number])}
    values = [number, patterns, random.choice(PATTERNS), [random.choice(PATTERNS)], "LORA", "LOKR",
              "LOHA", True, "all", "lora_only", random.choice(TEXTS)]  # fmt: skip
    if random.random() < 0.15:
        config.pop(field, None)
    else:
        config[field] = random.choice(values)
    return replace(files, config=json.dumps(config).encode())


MUTATORS: Sequence[Mutator] = (
    flip_bits, cut, splice, break_entry, double_key, nest, rename, drop, add, reshape, set_value,
    set_metadata, set_config, set_config,
)  # fmt: skip

"""LoRA and LoCon: on linear layers, convolutions with a Tucker core or without, and embeddings."""

from torch import nn

from lokr_core.errors import AdapterTensorError, UnsupportedModuleError, quoted
from lokr_core.formats.binding import FileModule
from lokr_core.formats.parts import DeltaForm, FormContext, as_lora, low_rank, required, tucker
from lokr_core.formats.tensors import core
from lokr_core.spec import ModuleKind
from lokr_core.weights import LowRankFactor, TuckerFactor

EMBEDDING_LEAVES = frozenset({"lora_embedding_A", "lora_embedding_B"})
LEAVES = frozenset({"lora_up", "lora_down", "lora_mid", "lora_up_bias"})


def read_lora(module: FileModule, context: FormContext) -> DeltaForm:
    """Return what the factors of a LoRA amount to.

    Raises:
        AdapterTensorError: A factor is unusable, or lacks its partner.
        AdapterMismatchError: They do not multiply out to the base weight.
        UnsupportedModuleError: It is no change of the base weight.
    """
    _refuse_other_layers(module, context)
    kernel = context.shape.kernel
    product: LowRankFactor | TuckerFactor
    if "lora_mid" in module.by_leaf:
        up, down = required(module, "lora_up"), required(module, "lora_down")
        middle = core(required(module, "lora_mid"), kernel)
        product = tucker(middle, up, down, is_transposed=True)
    else:
        product = low_rank(module, "lora_up", "lora_down", kernel)
    context.shape.check(product.shape)
    return DeltaForm(algorithm="lora", delta=as_lora(product), rank=product.b.shape[0])


def read_embedding(module: FileModule, context: FormContext) -> DeltaForm:
    """Return what PEFT's LoRA of an embedding amounts to, whose factors lie transposed.

    Raises:
        AdapterTensorError: A factor is unusable, or lacks its partner, or the module is none.
        AdapterMismatchError: They do not multiply out to the base weight.
    """
    if context.shape.kind is not ModuleKind.EMBEDDING:
        key = next(iter(module.by_leaf.values())).key
        raise AdapterTensorError(key, f"is for an embedding, which {context.shape.name!r} is not")
    stored = low_rank(module, "lora_embedding_B", "lora_embedding_A", ())  # [D, R], [R, V]
    product = LowRankFactor(a=stored.b.mT, b=stored.a.mT)
    context.shape.check(product.shape)
    return DeltaForm(algorithm="lora", delta=as_lora(product), rank=product.b.shape[0])


def _refuse_other_layers(module: FileModule, context: FormContext) -> None:
    """Refuse PEFT's LoRAs of convolutions that are not a change of the base weight.

    In a grouped one its first half reads every channel, in a dilated one it is not dilated.
    """
    conv, down = module.targets[0].spec.module, module.by_leaf.get("lora_down")
    if down is None or not isinstance(conv, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return
    rows = max(1, len(down.value)) if down.value.ndim else 1
    problem = None
    if conv.groups > 1 and down.value.numel() == rows * conv.groups * context.shape.columns:
        problem = "reads every channel, but the convolution only those of a group"
    elif context.is_peft and any(
        d > 1 < k for d, k in zip(conv.dilation, conv.kernel_size, strict=True)
    ):
        problem = "is of PEFT, which trains it without the convolution's dilation"
    if problem is not None:
        problem = f"tensor {quoted(down.key)} {problem}; that is no change of its weight"
        raise UnsupportedModuleError(context.shape.name, problem)

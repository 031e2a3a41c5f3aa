"""What commands have in common: each is a value that typer builds from flags, and that runs."""

from enum import Enum
from typing import Annotated, Literal, Protocol

import typer

ServerFlag = Annotated[str, typer.Option("--server", metavar="HOST:PORT", help="The server.")]
TimeoutFlag = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", min=0, help="How long the call may take.")
]


class Dtype(Enum):
    """A dtype of base weights; AUTO is that of their files."""

    AUTO = "auto"
    FLOAT64 = "float64"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


DtypeFlag = Annotated[Dtype, typer.Option("--dtype", help="Of the base weights.")]
PriorityFlag = Annotated[
    Literal["low", "normal", "high"],
    typer.Option("--priority", help="Which requests go first when several wait."),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]

INFERENCE_SERVER = "127.0.0.1:50051"
ADMIN_SERVER = "127.0.0.1:50052"


class Command(Protocol):
    """A command with its flags, ready to run."""

    def run(self) -> None:
        """Do it."""

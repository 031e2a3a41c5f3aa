"""The one who declares: changes the manifest while the server follows it."""

from tests.chaos.round import Round

MEAN_GAP_SECONDS = 2.0


async def declare(round_: Round) -> None:
    """Write another manifest now and then."""
    scene = round_.scene
    while not round_.over.is_set():
        await round_.pause(MEAN_GAP_SECONDS)
        scene.declarations.write(round_.draws)
        for adapter_id, version in scene.declarations.versions.items():
            scene.shelf.may_become(adapter_id, version)
        scene.ledger.count("manifest", "written")

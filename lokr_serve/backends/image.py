"""A pipeline of diffusers as a backend."""

from collections.abc import Mapping
from dataclasses import dataclass

from diffusers.utils import logging
from torch import nn

from lokr_core import Adapted
from lokr_serve.adapters import AdapterRegistry
from lokr_serve.config import ModelSettings, Settings
from lokr_serve.image.engine import ImageEngine
from lokr_serve.image.load import LoadedPipeline, load_pipeline
from lokr_serve.image.pipelines import PipelineFactory
from lokr_serve.metrics import Metrics
from lokr_serve.rpc.backend import ImageBackend


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PipelineModel:
    """A pipeline and its components."""

    loaded: LoadedPipeline

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """What adapters are put onto, by component."""
        components = self.loaded.pipeline.components.items()
        return {name: module for name, module in components if isinstance(module, nn.Module)}

    def backend(
        self, adapted: Adapted, registry: AdapterRegistry, settings: Settings, metrics: Metrics
    ) -> ImageBackend:
        """Build what calls are served from; its engine is not started."""
        factory = PipelineFactory(self.loaded, settings.image)
        engine = ImageEngine(
            adapted=adapted,
            factory=factory,
            loaded=self.loaded,
            settings=settings.image,
            metrics=metrics,
        )
        return ImageBackend(registry=registry, factory=factory, engine=engine)


def load_pipeline_model(settings: ModelSettings) -> PipelineModel:
    """Load a pipeline; takes long.

    From then on diffusers says nothing of what requests ask for: the planner has checked it, and
    such words come with every request and quote its prompt.

    Raises:
        LokrError: It cannot be loaded, or cannot be served.
    """
    logging.disable_default_handler()  # what it says of files is said in the server's log
    logging.enable_propagation()
    loaded = load_pipeline(settings)
    logging.set_verbosity_error()
    return PipelineModel(loaded=loaded)

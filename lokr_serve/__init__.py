"""An inference server for many LoKr adapters over one base model."""

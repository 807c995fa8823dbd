"""What a round costs on one machine, without Ray: ``python -m pipeline.distill.bench``."""

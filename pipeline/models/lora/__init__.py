"""LoRA files in and out: ``read`` by the names in ``keys``, ``write`` in three layouts."""

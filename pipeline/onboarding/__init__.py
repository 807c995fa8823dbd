"""From a folder of LoRA files and image pairs to a bank and a recipe: ``collectionlora init``."""

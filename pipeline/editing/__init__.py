"""Running an exported student: its folder, the sampler on it, the command."""

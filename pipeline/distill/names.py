"""Names in checkpoints and metrics that are asked for where nothing of torch is."""

# The validation score of a watched run's student; lower is better.
SCORE = "validation/score"
# What of a checkpoint says where the run stands.
STATE_FILE = "state.json"

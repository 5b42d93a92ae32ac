"""The models as plain Flax NNX modules; what else is known of each is in `lmscale.architectures`."""

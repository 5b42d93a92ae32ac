"""The models as plain Flax NNX modules. All else about each of them is in `lmscale.architectures`."""

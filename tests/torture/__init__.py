"""Sweeps that are killed, damaged and started again until they end; then compared to the bit."""

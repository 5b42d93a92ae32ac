"""Published exponents of N_opt ~ C^a, to compare with the user's own."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EXPONENTS", "PublishedExponent"]


@dataclass(frozen=True)
class PublishedExponent:
    """One published a, its interval where one was given, and how the paper counted."""

    source: str
    what: str
    value: float
    interval: tuple[float, float] | None = None
    interval_kind: str = ""


EXPONENTS = (
    PublishedExponent("Kaplan et al. 2020", "frontier, non-embedding", 0.73),
    PublishedExponent("Kaplan et al. 2020", "fixed batch, non-embedding", 0.88),
    PublishedExponent("Hoffmann et al. 2022", "Approach 1", 0.50, (0.488, 0.502), "80%"),
    PublishedExponent("Hoffmann et al. 2022", "Approach 2", 0.49, (0.462, 0.534), "80%"),
    PublishedExponent("Porian et al. 2024", "as Kaplan counted", 0.835, (0.824, 0.846), "95%"),
    PublishedExponent("Porian et al. 2024", "head counted", 0.706, (0.691, 0.717), "95%"),
    PublishedExponent("Porian et al. 2024", "all steps, tuned", 0.497, (0.491, 0.505), "95%"),
    # Standard error 0.018, so 1.96 times that on either side.
    PublishedExponent("Besiroglu et al. 2024", "Approach 3 refitted", 0.513, (0.478, 0.548), "95%"),
)

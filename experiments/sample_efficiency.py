"""Sample efficiency: how many tokens and steps a loss takes, by model size.

Kaplan et al. 2020, Figs. 2 (left) and 19. The runs are those of `compute`: models of many sizes,
one long run each, evaluated all along. Reading off each curve where it first reaches a loss, and
adjusting for the batch by B_crit(L), gives the least tokens E_min and steps S_min that a size needs.
The paper found that bigger models need fewer of both, by about a hundred between its smallest
and its largest.

    lmscale run sample_efficiency              # cpu: 6 sizes x 3 seeds, minutes on two cores
    lmscale run sample_efficiency --scale gpu  # 7 sizes x 3 seeds, under an hour on one H100
    lmscale plan sample_efficiency --scale paper --device v5p:256

The fields are those of `compute`, whose report holds this analysis too.
"""

from dataclasses import dataclass

from lmscale_experiments.compute import CPU, GPU, PAPER, LearningCurves

from lmscale.sweep import finding, published_number


@dataclass(frozen=True, kw_only=True)
class SampleEfficiency(LearningCurves):
    title = "Sample efficiency: tokens and steps to a loss, by model size"
    analyses = ("efficiency", "learning", "curves")
    claims = (
        finding(
            "efficiency/exponent",
            "Bigger models need fewer tokens, and fewer steps, to reach the same loss.",
            "Kaplan et al. 2020, Figs. 2 and 19",
            at_most=0.0,
            would_tell="more seeds, or the scale gpu",
        ),
        published_number(
            "efficiency/ratio",
            "The largest model needs about 100 times fewer than the smallest.",
            "Kaplan et al. 2020, Fig. 19",
            30.0,
            300.0,
            would_tell="the scale paper with --seeds 0 1 2: its sizes differ by 10,000 and more",
        ),
    )


SCALES = {
    "cpu": SampleEfficiency(**CPU),
    "gpu": SampleEfficiency(**GPU),
    "paper": SampleEfficiency(**PAPER),
}

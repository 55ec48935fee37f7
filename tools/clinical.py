"""Thresholds that turn a measurement into a grade, each with the source that DeepTumorVQA's knowledge base names.

They are research conventions, not medical advice; volumes in cm³ (= ml), attenuation in HU.
"""

from __future__ import annotations

from typing import Final, Literal

SPLEEN_CM3: Final = 314.5
LIVER_CM3: Final = (600.0, 1800.0)
PANCREAS_CM3: Final = (40.0, 100.0)
KIDNEY_CM3: Final = (130.0, 260.0)
UPPER_CM3: Final = {
    "spleen": (SPLEEN_CM3, "Bezerra 2005"),
    "liver": (LIVER_CM3[1], "radiologyassistant.nl"),
    "pancreas": (PANCREAS_CM3[1], "radiologyassistant.nl"),
    "kidney_left": (KIDNEY_CM3[1], "radiologyassistant.nl"),
    "kidney_right": (KIDNEY_CM3[1], "radiologyassistant.nl"),
}
"""Organ → volume above which it is enlarged, and who says so."""
LOWER_CM3: Final = {
    "liver": (LIVER_CM3[0], "radiologyassistant.nl"),
    "pancreas": (PANCREAS_CM3[0], "radiologyassistant.nl"),
    "kidney_left": (KIDNEY_CM3[0], "radiologyassistant.nl"),
    "kidney_right": (KIDNEY_CM3[0], "radiologyassistant.nl"),
}
"""Organ → volume below which it is small."""
LIVER_TO_SPLEEN: Final = 1.0
PANCREAS_TO_SPLEEN: Final = 0.70
PSEUDOCYST_HU: Final = 14.5
SOLID_KIDNEY_HU: Final = 34.8
RESECT_CM3: Final = 3.0
RESECT_MM: Final = 30.0
OUTLIER_TIMES: Final = 3.0
OUTLIER_LEAST: Final = 3
CAUDATE_TO_RIGHT: Final = 0.65
ALIKE_HU: Final = 10.0
"""Lesion and organ that differ by no more are isoattenuating: "similar HU", for which no source gives a number."""
ALIKE_SHARE: Final = 0.05
"""Two organs whose volumes differ by no more than this share of the larger are of similar size (ours as well)."""

Grade = Literal["normal", "mild", "moderate", "severe"]


def spleen_grade(volume_cm3: float) -> Grade:
    """Bezerra 2005: normal below 314.5, mild to 500, moderate to 800, severe above (cm³)."""
    if volume_cm3 <= SPLEEN_CM3:
        return "normal"
    return "mild" if volume_cm3 <= 500 else "moderate" if volume_cm3 <= 800 else "severe"


def steatosis_grade(liver_hu: float, spleen_hu: float) -> Grade:
    """Kodama 2007 on liver HU or the liver-to-spleen ratio: the milder of the two that applies.

    A ratio to a spleen of no positive HU says nothing; the liver's HU alone decides then.
    """
    ratio = liver_hu / spleen_hu if spleen_hu > 0 else float("-inf")
    if liver_hu >= 58 or ratio >= 1.0:
        return "normal"
    if liver_hu >= 51 or ratio >= 0.8:
        return "mild"
    return "moderate" if liver_hu >= 39 or ratio >= 0.5 else "severe"


def pancreas_t(size_mm: float) -> str:
    """AJCC 8 by size alone: T1 to 2 cm, T2 to 4 cm, T3 above. T4 is contact with an artery, which size can't tell."""
    return "T1" if size_mm <= 20 else "T2" if size_mm <= 40 else "T3"


def renal_mass(mean_hu: float) -> str:
    """Silverman 2019, simplified: simple cyst −10..20 HU, hyperattenuating cyst above 70, else indeterminate."""
    if -10 <= mean_hu <= 20:
        return "simple cyst"
    return "hyperattenuating cyst" if mean_hu > 70 else "indeterminate"


def spread(shares: list[float]) -> str:
    """Share of the lesions in each liver segment → ``highly clustered``, ``somewhat clustered``, ``widely``."""
    ordered = sorted(shares, reverse=True)
    if ordered[0] > 0.5:
        return "highly clustered"
    return "somewhat clustered" if sum(ordered[:2]) >= 0.75 else "widely distributed"

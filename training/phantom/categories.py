"""T, N and M of a phantom by AJCC 8, from what is drawn: size, count, depth of growth, invasion, nodes, sites.

Not drawn, as a CT doesn't show them or the phantom lacks the part: Tis and T1 of the hollow organs (depth within
the wall), T1a and T1b of the pancreas (under 1 cm), T2 of a solitary liver tumour and T4 of liver and pancreas
(vessels), N1c of the colon (deposits without nodes).
"""

from __future__ import annotations

NODE_CUTS = {
    "liver": ((1, "N1"),),
    "pancreas": ((4, "N2"), (1, "N1")),
    "stomach": ((16, "N3b"), (7, "N3a"), (3, "N2"), (1, "N1")),
    "colorectum": ((7, "N2b"), (4, "N2a"), (2, "N1b"), (1, "N1a")),
    "esophagus": ((7, "N3"), (3, "N2"), (1, "N1")),
}
"""Smallest number of nodes of each N category, from the most."""
BEYOND_MM, THROUGH_MM = 2.0, 8.0
"""A wall tumour that reaches this far beyond the wall is in the tissue around it, or through its outer cover."""


def t_category(
    organ: str, size_mm: float, count: int, reach_mm: float = 0.0, invaded: tuple[int, ...] = ()
) -> str:
    """Size and count for liver and pancreas, depth of growth for the hollow organs."""
    cm = size_mm / 10
    if organ == "liver":
        if count > 1:
            return "T3" if cm > 5 else "T2"
        return "T1a" if cm <= 2 else "T1b"
    if organ == "pancreas":
        return "T1c" if cm <= 2 else "T2" if cm <= 4 else "T3"
    if invaded:
        return "T4b"
    if reach_mm >= THROUGH_MM:
        return "T4a"
    return "T3" if reach_mm >= BEYOND_MM else "T2"


def n_category(organ: str, nodes: int) -> str:
    return next((name for least, name in NODE_CUTS[organ] if nodes >= least), "N0")


def m_category(organ: str, sites: tuple[str, ...]) -> str:
    """``sites`` of metastases: liver, lung, peritoneum."""
    if not sites or organ != "colorectum":
        return "M1" if sites else "M0"
    if "peritoneum" in sites:
        return "M1c"
    return "M1b" if len(sites) > 1 else "M1a"

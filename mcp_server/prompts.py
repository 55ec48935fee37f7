"""Prompts: how a model without TumorChain's training uses the tools for the paper's tasks, step by step."""

from __future__ import annotations

from typing import Annotated

from mcp.server.mcpserver.prompts import Prompt
from pydantic import Field

from tumorchain_agent.records import DISCLAIMER

Path = Annotated[str, Field(description="CT on the server's machine.")]
Organ = Annotated[str, Field(description="Organ with the suspected tumor, e.g. pancreas.")]

_RULES = f"""\
Rules: take every number from a tool result and name its organ; never estimate one. An organ that is absent, cut
by the scan's edge or "not assessed" is not normal: say that it can't be assessed. Repeat the notices that limit
what you say. A tool error or a job that is still running is no finding. End with: "{DISCLAIMER}"
"""


def tnm_staging(path: Path, organ: Organ) -> str:
    """Stage a tumor of one organ by TNM (AJCC 8), from measurements and the reasoning's own evidence."""
    return f"""\
Stage the tumor of the {organ} in the CT {path} by clinical TNM (AJCC, 8th edition).

1. open_scan, and read its gate: if it isn't a contrast-enhanced CT that holds the {organ}, say so first.
2. segment_organs, then measure_organs of the {organ} and of liver, lungs and adrenal glands.
3. ask "Is there a tumor in the {organ}, and what TNM stage?" and explain each claim that bears on T, N or M.
4. If a mask of the tumor is at hand: measure_lesions for its size (T), measure_contact with the vessels beside it.
5. Give T, N and M each with what it rests on. A part that can't be assessed is TX, NX or MX with the reason. Give a
   stage group only if all three are known. If the answer's flags name a contradiction, report it, don't mend it.

{_RULES}"""


def cot_report(
    path: Path,
    question: Annotated[str, Field(description="What the report is to answer.")] = "What is abnormal?",
) -> str:
    """Report on a CT in TumorChain's chain: findings, then impression, then pathology."""
    return f"""\
Report on the CT {path}. Question: {question}

1. list_organs and open_scan; state modality, contrast phase, field of view and slice thickness from the gate.
2. ask the question. While its job runs, fetch it with get_job; don't call ask again.
3. Findings: organ by organ, those that the answer examined first, each with volume, mean HU and, where it has one,
   the classifier's p_abnormal. view_organ where a picture helps.
4. Impression: what the findings add up to, each sentence with the claim (explain) it rests on.
5. Pathology: the most likely diagnosis and TNM, as the answer gives it, with its notices.

{_RULES}"""


def lesion_attributes(
    path: Path, mask: Annotated[str, Field(description="Mask of the lesion, .nii.gz on the scan's grid.")]
) -> str:
    """Describe a lesion that someone has outlined: size, density, organ, contact with its neighbours."""
    return f"""\
Describe the lesion of the mask {mask} in the CT {path}.

1. open_scan, then segment_organs, so that the lesion's organ is known.
2. measure_lesions: number, volume, long and short axial diameter, mean HU and its spread, organ.
3. measure_contact of "lesion" with the organ's neighbours and great vessels; report distance and encasement.
4. Give location, size, density (hypo-, iso- or hyperdense against the organ's mean HU from measure_organs),
   homogeneity (from the HU spread) and invasion of neighbours, each with its number. What the tools can't measure
   (shape, margin) say only from view_organ's pictures, marked as an impression.

{_RULES}"""


def prompts() -> list[Prompt]:
    return [
        Prompt.from_function(tnm_staging, title="TNM staging", description=tnm_staging.__doc__),
        Prompt.from_function(cot_report, title="Chain-of-thought report", description=cot_report.__doc__),
        Prompt.from_function(
            lesion_attributes, title="Lesion attributes", description=lesion_attributes.__doc__
        ),
    ]

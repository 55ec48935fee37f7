"""What the structured feature extractor gives: typed features of a CT report and a pathology report (paper 11.1).

Each finding carries a ``quote``, the report's own words for it, so that it can be checked against the report.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, get_args

from pydantic import BeforeValidator, Field, StringConstraints

from tumorchain_agent.errors import UnknownOrganError
from tumorchain_agent.records import Record
from tumorchain_agent.tools.organs import FIVE, SUBSTRUCTURES, resolve_organ
from tumorchain_agent.training.engine.terms import TERMS, Attribute, standard

Quote = Annotated[str, StringConstraints(min_length=1, max_length=2000)]
Status = Literal["present", "none", "not stated"]
Site = Literal["liver", "lung", "bone", "peritoneum", "brain", "adrenal", "distant"]
SITES: Final[tuple[str, ...]] = get_args(Site)


def _organ(name: object) -> object:
    if not isinstance(name, str):
        return name
    try:
        return resolve_organ(name.replace("_", " "))
    except UnknownOrganError as error:
        raise ValueError(str(error)) from error


def _five(name: str) -> str:
    if name not in FIVE:
        raise ValueError(f"{name} is none of the five organs; write one of {', '.join(FIVE)}")
    return name


def _term(attribute: Attribute) -> BeforeValidator:
    def check(value: object) -> object:
        if value is None:
            return None
        found = standard(attribute, str(value))
        if found is None:
            raise ValueError(
                f"{str(value)[:60]!r} is no standard term; write {', '.join(TERMS[attribute])} or null"
            )
        return found

    return BeforeValidator(check)


OrganName = Annotated[str, BeforeValidator(_organ)]
FiveOrgan = Annotated[str, BeforeValidator(_organ), BeforeValidator(lambda name: _five(str(name)))]


class Clinical(Record):
    """Clinical information."""

    age: int | None = Field(default=None, ge=0, le=130)
    sex: Literal["female", "male"] | None = None
    history: tuple[str, ...] = ()
    """Risk factors and history, a few words each."""
    phase: str | None = None
    """Contrast phase of the CT."""


class Lesion(Record):
    """The tumor: its five attributes of the paper, and its size and enhancement."""

    organ: OrganName
    location: str | None = None
    """A standard name of the organ's parts, e.g. ``tail``."""
    shape: Annotated[str | None, _term("shape")] = None
    margin: Annotated[str | None, _term("margin")] = None
    density: Annotated[str | None, _term("density")] = None
    count: Annotated[str | None, _term("count")] = None
    size_mm: float | None = Field(default=None, gt=0, le=1000)
    """Largest diameter of the largest one."""
    enhancement: str | None = None
    quote: Quote


class Neighbors(Record):
    """What the tumor does to organs and vessels beside it."""

    invaded: tuple[OrganName, ...] = ()
    displaced: tuple[OrganName, ...] = ()
    """Pushed aside, not grown into."""
    vascular: bool | None = None
    """Whether a large vessel is grown into; ``None``: not stated."""
    quote: str = ""


class Nodes(Record):
    """Regional lymph nodes."""

    status: Status
    number: int | None = Field(default=None, ge=0)
    quote: str = ""


class Spread(Record):
    """Distant metastases."""

    status: Status
    sites: tuple[Site, ...] = ()
    number: int | None = Field(default=None, ge=0)
    quote: str = ""


class Benign(Record):
    """A finding that is no tumor."""

    organ: OrganName
    finding: str
    quote: Quote


class Features(Record):
    """Of the CT report."""

    clinical: Clinical
    lesion: Lesion | None
    """``None`` where the report sees no tumor."""
    neighbors: Neighbors
    nodes: Nodes
    spread: Spread
    benign: tuple[Benign, ...] = ()
    conclusion: Quote
    """The impression in the report's own words."""

    def known_organs(self) -> set[str]:
        """Organs that the findings are about."""
        organs = {*self.neighbors.invaded, *self.neighbors.displaced, *(each.organ for each in self.benign)}
        return organs | ({self.lesion.organ} if self.lesion else set())


class Pathology(Record):
    """Of the pathology report."""

    malignant: bool | None = None
    """``None``: the report doesn't say."""
    organ: FiveOrgan | None = None
    histology: str | None = None
    size_mm: float | None = Field(default=None, gt=0, le=1000)
    nodes: int | None = Field(default=None, ge=0)
    """Involved ones."""
    t: str | None = None
    n: str | None = None
    m: str | None = None
    stage: str | None = None
    conclusion: Quote


class Extraction(Record):
    """Both reports of a case."""

    features: Features
    pathology: Pathology | None
    """``None`` where there is no pathology report."""


def parts_of(organ: str) -> tuple[str, ...]:
    """Standard names of an organ's parts; none outside the five."""
    return SUBSTRUCTURES.get(organ, ())

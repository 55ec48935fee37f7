"""An answer as DICOM SR (TID 1500): measurements of each segment, the text of the answer, what it rests on.

The text is the model's own and unverified: the document says PRELIMINARY and UNVERIFIED in the standard's words,
and in its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, Final, NamedTuple

from tumorchain_agent.records import DISCLAIMER, Answer, Classification, Measurement
from tumorchain_agent.report_text import Section, split_sections
from tumorchain_agent.tools.dicom_frames import pydicom_or_remedy
from tumorchain_agent.tools.dicom_source import MANUFACTURER, SourceSeries, derived_uid, no_names_in_logs
from tumorchain_agent.tools.organs import display_name, organ_structures
from tumorchain_agent.tools.snomed import CODES
from tumorchain_agent.tools.write_seg import MODEL_NAME, Provenance, concept, unfit_source

OWN_SCHEME: Final = "99TUMORCHAIN"
_SR_SERIES: Final = 901


class Own(NamedTuple):
    """A concept that no standard has a code for."""

    value: str
    meaning: str


QUESTION: Final = Own("question", "Question")
TNM_TEXT: Final = Own("tnm", "TNM as the model wrote it, checked against AJCC 8")
NOTICE: Final = Own("notice", "Notice to the reader")
NOT_ASSESSED: Final = Own("not-assessed", "Organs not in the scan, not assessed")
CLASSIFIER: Final = Own("abnormality", "Abnormality classifier")
P_ABNORMAL: Final = Own("p-abnormal", "Probability of abnormality by the classifier")
CUT: Final = Own("cut-by-edge", "Cut by the edge of the scan: sizes are lower bounds")


def make_sr(
    source: SourceSeries,
    seg: Any,
    answer: Answer,
    measurements: Sequence[Measurement],
    provenance: Provenance,
) -> Any:
    """The SR (a pydicom dataset) about the segments of ``seg``. Raises OutputError for an unfit source."""
    return _Writer(seg, answer, measurements, provenance).write(source)


class _Writer:
    def __init__(
        self, seg: Any, answer: Answer, measurements: Sequence[Measurement], provenance: Provenance
    ) -> None:
        pydicom_or_remedy("DICOM SR")
        self._hd: Any = import_module("highdicom")
        self._codes: Any = import_module("pydicom.sr.codedict").codes
        self._seg = seg
        self._answer = answer
        self._measured = {each.organ: each for each in measurements if each.present}
        self._provenance = provenance
        evidence = [each for item in answer.rounds for each in item.evidence]
        self._verdicts = {each.organ: each.classification for each in evidence if each.classification}

    def write(self, source: SourceSeries) -> Any:
        with no_names_in_logs():
            try:
                return self._document(source, self._content())
            except (AttributeError, TypeError, ValueError) as cause:
                raise unfit_source(cause) from None

    def _document(self, source: SourceSeries, content: Any) -> Any:
        hd, provenance = self._hd, self._provenance
        return hd.sr.Comprehensive3DSR(
            evidence=[*source.datasets, self._seg],
            content=content,
            series_instance_uid=hd.UID(),
            series_number=_SR_SERIES,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=MODEL_NAME,
            software_versions=provenance.software,
            series_description=f"Measurements. {DISCLAIMER}",
            specific_character_set="ISO_IR 192",
            content_date=provenance.created.date(),
            content_time=provenance.created.time(),
            coding_schemes=[
                hd.coding_schemes.CodingSchemeIdentificationItem(
                    designator=OWN_SCHEME, name="tumorchain-agent", version="1"
                )
            ],
        )

    def _content(self) -> Any:
        sr = self._hd.sr
        observer = sr.ObserverContext(
            observer_type=self._codes.DCM.Device,
            observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
                uid=derived_uid("software", *self._provenance.software),
                name=MODEL_NAME,
                manufacturer_name=MANUFACTURER,
                model_name="; ".join(self._provenance.software),
            ),
        )
        report = sr.MeasurementReport(
            observation_context=sr.ObservationContext(observer_device_context=observer),
            procedure_reported=self._codes.SCT.ComputedTomography,
            imaging_measurements=[*self._segments(), *self._merged()],
        )
        report[0].ContentSequence.append(self._evaluations())
        return report

    def _segments(self) -> Iterator[Any]:
        """One group (TID 1411) for each segment."""
        for item in self._seg.SegmentSequence:
            name, number = str(item.SegmentLabel), int(item.SegmentNumber)
            organ = _organ_of(name)
            yield self._hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
                referenced_segment=self._hd.sr.ReferencedSegment.from_segmentation(
                    self._seg, segment_number=number
                ),
                tracking_identifier=self._hd.sr.TrackingIdentifier(uid=item.TrackingUID, identifier=name),
                finding_category=concept(self._hd, CODES[name].category),
                finding_type=concept(self._hd, CODES[name].type),
                finding_sites=[self._site(name)],
                algorithm_id=self._algorithm(),
                **self._findings(self._measured.get(organ or name), self._verdicts.get(organ or "")),
            )

    def _merged(self) -> Iterator[Any]:
        """One group (TID 1501) for each examined organ that several structures make up."""
        for organ in self._answer.organs_examined:
            if organ in self._measured and len(organ_structures(organ)) > 1:
                yield self._hd.sr.MeasurementsAndQualitativeEvaluations(
                    tracking_identifier=self._hd.sr.TrackingIdentifier(uid=self._hd.UID(), identifier=organ),
                    finding_sites=[self._site(name) for name in organ_structures(organ)[:1]],
                    algorithm_id=self._algorithm(),
                    **self._findings(self._measured[organ], self._verdicts.get(organ)),
                )

    def _site(self, structure: str) -> Any:
        codes = CODES[structure]
        side = concept(self._hd, codes.side) if codes.side else None
        return self._hd.sr.FindingSite(anatomic_location=concept(self._hd, codes.anatomy), laterality=side)

    def _algorithm(self) -> Any:
        info = self._provenance.segmentation
        return self._hd.sr.AlgorithmIdentification(
            name="tumorchain-agent measurements",
            version=self._answer.versions.tumorchain_agent,
            parameters=[f"label map {info.source}, task {info.task}, {info.weights_id}"],
        )

    def _findings(self, measured: Measurement | None, verdict: Classification | None) -> Mapping[str, Any]:
        evaluations = []
        if measured is not None and measured.cut_by_edge:
            evaluations.append((CUT, self._codes.SCT.Present))
        numbers = list(self._measurements(measured)) if measured is not None else []
        if verdict is not None and verdict.p_abnormal is not None:
            label = self._codes.SCT.Abnormal if verdict.label == "abnormal" else self._codes.SCT.Normal
            evaluations.append((CLASSIFIER, label))
            unit = self._codes.UCUM.NoUnits
            numbers.append(
                self._hd.sr.Measurement(name=self._own(P_ABNORMAL), value=verdict.p_abnormal, unit=unit)
            )
        return {
            "measurements": numbers or None,
            "qualitative_evaluations": [
                self._hd.sr.QualitativeEvaluation(name=self._own(name), value=value)
                for name, value in evaluations
            ]
            or None,
        }

    def _measurements(self, measured: Measurement) -> Iterator[Any]:
        codes = self._codes
        hounsfield, density = codes.UCUM.HounsfieldUnit, codes.DCM.AttenuationCoefficient
        median = (measured.percentiles_hu or {}).get("p50")
        table = (
            (codes.SCT.Volume, measured.volume_ml, codes.UCUM.CubicCentimeter, None),
            (density, measured.mean_hu, hounsfield, codes.SCT.Mean),
            (density, measured.sd_hu, hounsfield, codes.SCT.StandardDeviation),
            (density, median, hounsfield, codes.SCT.Median),
            (density, measured.min_hu, hounsfield, codes.SCT.Minimum),
            (density, measured.max_hu, hounsfield, codes.SCT.Maximum),
            (codes.SCT.Diameter, measured.largest_diameter_mm, codes.UCUM.Millimeter, codes.SCT.Maximum),
            (codes.SCT.LongAxis, measured.largest_axial_diameter_mm, codes.UCUM.Millimeter, None),
        )
        for name, value, unit, derivation in table:
            if value is not None:
                yield self._hd.sr.Measurement(name=name, value=value, unit=unit, derivation=derivation)

    def _evaluations(self) -> Any:
        """The container of texts that TID 1500 has beside the measurements."""
        sr = self._hd.sr
        contains = sr.RelationshipTypeValues.CONTAINS
        container = sr.ContainerContentItem(
            name=sr.CodedConcept("C0034375", "UMLS", "Qualitative Evaluations"), relationship_type=contains
        )
        items = [
            sr.TextContentItem(name=name, value=text, relationship_type=contains)
            for name, text in self._texts()
        ]
        container.ContentSequence = sr.ContentSequence(items)
        return container

    def _texts(self) -> Iterator[tuple[Any, str]]:
        answer, dcm = self._answer, self._codes.DCM
        names = {"Findings": dcm.Finding, "Impression": dcm.Impression}
        yield dcm.Comment, f"{DISCLAIMER} Not verified by anybody. {self._origin()}"
        yield self._own(QUESTION), answer.question
        for section in split_sections(answer.conclusion):
            if text := _plain(section):
                name = names.get(section.title or "", dcm.Conclusion)
                yield (
                    name,
                    text if section.title in names else f"{section.title}: {text}" if section.title else text,
                )
        yield self._own(TNM_TEXT), _tnm(answer)
        if answer.organs_absent:
            yield self._own(NOT_ASSESSED), ", ".join(map(display_name, answer.organs_absent))
        for notice in dict.fromkeys((*answer.notices, *answer.scan.notices)):
            if notice.severity == "warning":
                yield self._own(NOTICE), notice.message

    def _origin(self) -> str:
        versions = self._answer.versions
        checkpoint = versions.checkpoint_id or "none"
        return (
            f"Written by tumorchain-agent {versions.tumorchain_agent}, checkpoint {checkpoint}, LLM {versions.llm}, "
            f"segmentation {versions.segmentation}."
        )

    def _own(self, own: Own) -> Any:
        return self._hd.sr.CodedConcept(own.value, OWN_SCHEME, own.meaning)


def _organ_of(structure: str) -> str | None:
    """The organ that is this structure and nothing else; its measurement goes by the organ's name."""
    return _ALONE.get(structure)


def _plain(section: Section) -> str:
    lines = ["".join(piece.text for piece in item) for block in section.blocks for item in block.items]
    return "\n".join(lines).strip()


def _tnm(answer: Answer) -> str:
    tnm = answer.tnm
    stage = f"stage {tnm.stage}" if tnm.stage else "stage not determined"
    organ = f" ({display_name(tnm.primary_organ)})" if tnm.primary_organ else ""
    return " ".join((f"{tnm.t} {tnm.n} {tnm.m}{organ}, {stage}.", *tnm.reasons, *tnm.flags))


def _alone() -> dict[str, str]:
    from tumorchain_agent.tools.organs import ORGANS

    merged = {organ: organ_structures(organ) for organ in ORGANS.values()}
    return {names[0]: organ for organ, names in merged.items() if len(names) == 1}


_ALONE: Final = _alone()

"""DICOM files, by pydicom's parser and our table."""

from __future__ import annotations

from io import BytesIO

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from matl_common.phi.dicom import read_dicom, scan_dicom
from matl_common.phi.dicom_cleaning import clean_dicom
from matl_common.phi.pseudonyms import Pseudonyms
from tests.fuzz.target import Target


def _run(data: bytes) -> None:
    dataset = read_dicom(data)
    for found in scan_dicom(dataset):
        assert found.where
    clean_dicom(dataset, new_uid=Pseudonyms().uid)


def _file() -> bytes:
    inner = Dataset()
    inner.PatientID = "MRN 1234567"
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3.4"
    dataset.PatientName, dataset.StudyDate, dataset.PatientAge = "Smith^Mary", "20210314", "093Y"
    dataset.OtherPatientIDsSequence = [inner]
    dataset.ReferencedStudySequence = [inner]
    dataset.private_block(0x0009, "VENDOR", create=True).add_new(1, "LO", "secret")
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


TARGET = Target(run=_run, seeds=[_file()])

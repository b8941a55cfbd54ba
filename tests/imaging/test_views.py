import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from shared.imaging import views


def made(**attributes):
    ds = Dataset()
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def code(meaning, **attributes):
    return Sequence([made(CodeMeaning=meaning, **attributes)])


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"ImageLaterality": "L"}, "L"),
        ({"Laterality": "R"}, "R"),
        ({"ImageLaterality": "L", "Laterality": "R"}, "L"),
        ({"ImageLaterality": "", "Laterality": "R"}, "R"),
        ({"ImageLaterality": "B"}, "B"),
        ({"ImageLaterality": "left"}, "L"),
        ({"Laterality": "U"}, None),
        ({}, None),
        (
            {
                "SharedFunctionalGroupsSequence": Sequence(
                    [made(FrameAnatomySequence=Sequence([made(FrameLaterality="R")]))]
                )
            },
            "R",
        ),
    ],
)
def test_laterality_is_taken_from_the_attribute_to_trust_most(attributes, expected):
    assert views.laterality(made(**attributes)) == expected


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"ViewPosition": "CC"}, "CC"),
        ({"ViewPosition": "mlo"}, "MLO"),
        ({"ViewPosition": "CC", "ViewCodeSequence": code("medio-lateral oblique")}, "CC"),
        ({"ViewCodeSequence": code("cranio-caudal")}, "CC"),
        ({"ViewCodeSequence": code("medio-lateral oblique")}, "MLO"),
        ({"ViewCodeSequence": code("Medio-Lateral")}, "ML"),
        ({"ViewCodeSequence": code("latero-medial oblique")}, "LMO"),
        ({"ViewCodeSequence": code("exaggerated cranio-caudal")}, "XCC"),
        ({"ViewPosition": "", "ViewCodeSequence": code("cranio-caudal")}, "CC"),
        ({"ViewPosition": "MLO ID"}, "MLO"),
        ({"ViewPosition": "CC-ID"}, "CC"),
        ({"ViewPosition": "PA"}, "PA"),
        ({"ViewPosition": "oddity-of-a-vendor"}, "ODDITYOF"),
        ({"ViewCodeSequence": code("something else")}, None),
        ({}, None),
    ],
)
def test_the_view_is_a_short_upper_case_name(attributes, expected):
    assert views.view(made(**attributes)) == expected


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, ()),
        ({"ViewModifierCodeSequence": code("Spot Compression")}, ("S",)),
        ({"ViewModifierCodeSequence": code("implant displaced")}, ("ID",)),
        ({"ViewModifierCodeSequence": code("Magnification")}, ("M",)),
        ({"ViewModifierCodeSequence": code("rolled lateral")}, ("RL",)),
        (
            {"ViewCodeSequence": code("cranio-caudal", ViewModifierCodeSequence=code("axillary tail"))},
            ("AT",),
        ),
        ({"ViewPosition": "MLO ID"}, ("ID",)),
        ({"ViewPosition": "CC-ID"}, ("ID",)),
    ],
)
def test_modifiers_are_found_at_the_top_and_nested(attributes, expected):
    assert views.view_modifiers(made(**attributes)) == expected


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"PatientOrientation": ["A", "R"]}, False),
        ({"PatientOrientation": ["P", "FL"]}, True),
        ({"PatientOrientation": ["AF", "R"]}, False),
        ({"PatientOrientation": ["L", "A"]}, None),
        ({"PatientOrientation": ""}, None),
        ({}, None),
        (
            {
                "SharedFunctionalGroupsSequence": Sequence(
                    [made(PatientOrientationInFrameSequence=Sequence([made(PatientOrientation=["P", "L"])]))]
                )
            },
            True,
        ),
    ],
)
def test_the_chest_wall_is_where_the_rows_come_from(attributes, expected):
    assert views.chest_wall_at_right(made(**attributes)) is expected


@pytest.mark.parametrize(("value", "expected"), [("YES", True), ("NO", False), ("", None), ("maybe", None)])
def test_an_implant_is_known_or_unknown(value, expected):
    assert views.implant(made(BreastImplantPresent=value)) is expected


@pytest.mark.parametrize(
    ("attributes", "frames", "expected"),
    [
        ({"Modality": "MG", "ImageType": ["ORIGINAL", "PRIMARY"]}, 1, ()),
        ({"Modality": "MG"}, 60, ("TOMO",)),
        ({"Modality": "MG", "ImageType": ["DERIVED", "PRIMARY", "TOMO_2D", "GENERATED_2D"]}, 1, ("SYNTHETIC",)),
        ({"Modality": "MG", "SeriesDescription": "L CC C-View"}, 1, ("SYNTHETIC",)),
        ({"Modality": "CT"}, 60, ()),
    ],
)
def test_computed_mammograms_are_marked(attributes, frames, expected):
    assert views.synthetic_marks(made(**attributes), frames) == expected


def test_a_sequence_that_is_none_is_no_sequence():
    assert views.items(made(ViewPosition="CC"), "ViewPosition") == []

"""Spellings of sides and views in headers and label tables, with their short names. Imports no DICOM library."""

#: of a breast, in lower case
SIDES = {"l": "L", "left": "L", "r": "R", "right": "R", "b": "B", "both": "B", "bilateral": "B"}

#: CID 4014 meanings without punctuation, in lower case
VIEW_MEANINGS = {
    "craniocaudal": "CC",
    "mediolateraloblique": "MLO",
    "mediolateral": "ML",
    "lateromedial": "LM",
    "lateromedialoblique": "LMO",
    "superolateraltoinferomedialoblique": "SIO",
    "superolateraloblique": "SIO",
    "inferomedialtosuperolateraloblique": "ISO",
    "exaggeratedcraniocaudal": "XCC",
    "craniocaudalexaggeratedlaterally": "XCCL",
    "craniocaudalexaggeratedmedially": "XCCM",
    "caudocranial": "FB",
    "caudocranialfrombelow": "FB",
    "fullbodyfrombelow": "FB",
    "axillarytail": "AT",
    "cleavage": "CV",
}

#: spellings of ViewPosition without punctuation, in upper case
VIEW_ALIASES = {"LATERAL": "LL", "MLOID": "MLO", "CCID": "CC", "RCC": "CC", "LCC": "CC", "RMLO": "MLO", "LMLO": "MLO"}

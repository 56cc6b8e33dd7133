"""
Fit the calibration in the card of the ``cc0`` model and print it as TOML.

    python benchmarks/fit_cc0.py FOLDER   (with fairface-val.parquet in it)

Fitted on FairFace val alone (CC BY 4.0), whose labels are ranges: the censored likelihood and ages
drawn within the ranges need no exact age.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from agelens import Analyzer
from agelens.calibration import fit_age, fit_gender
from labelled_faces import LabelledFaces, decoded_outputs, read_faces

DATA = "FairFace val, 2,048 faces (CC BY 4.0)"
GENDER_THRESHOLD = 0.75


def main() -> None:
    folder = Path(sys.argv[1])
    faces: LabelledFaces = read_faces(folder / "fairface-val.parquet")
    age, female = decoded_outputs(Analyzer(crops=True), faces)
    ages = fit_age(age, faces.age_min, faces.age_max, data=DATA)
    gender = fit_gender(female, faces.is_female, threshold=GENDER_THRESHOLD)
    print("[calibration]")
    print(f"age_temperature = {float(ages.age_temperature)}")
    print(f"age_smoothing = {list(ages.age_smoothing)}")
    print(f"gender_temperature = {gender.gender_temperature}")
    print(f"gender_bias = {gender.gender_bias}")
    print(f"gender_threshold = {gender.gender_threshold}")
    print(f'data = "{DATA}"')
    for band in ages.coverage:
        print("\n[[calibration.coverage]]")
        print(f"low = {band.low}\nhigh = {band.high}")
        print(f"levels = {list(band.levels)}")
        print(f"masses = {[float(np.round(mass, 4)) for mass in band.masses]}")


if __name__ == "__main__":
    main()

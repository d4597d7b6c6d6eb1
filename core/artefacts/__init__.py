"""Artefacts: what is in them, what they were made from, and how one is built.

Hashes and fingerprints, each with one purpose:

    content_hash           (contents.py)         names and bytes of an artefact's files: is it the parent that was used?
    identity_hash          (identity.py)         settings and parents as JSON: a short name for a folder
    model_hash             (models/folders.py)   a model's config and the ends of its weight files: quick even for 70B
    rows_hash              (store/parts.py)      a table's rows, whatever their encoding: is a part undamaged?
    fingerprint            (records.py)          the texts of a conversation: has a model seen this pair?
    sided_fingerprint      (records.py)          the same, and which response is a: are these the stored texts?
    group_of               (data/groups.py)      a normalised first prompt: which conversations share a fold?
"""

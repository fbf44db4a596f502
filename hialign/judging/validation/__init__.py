"""How good the judge is: agreement with people, repeatability, length and injected instructions.

`validate.validate_study` runs all of it for a study's judge.
"""

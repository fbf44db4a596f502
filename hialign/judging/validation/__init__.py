"""How good the judge is: agreement with people, repeatability, length and injected instructions.

`validate.validate_study` measures all of these for a study's judge.
"""

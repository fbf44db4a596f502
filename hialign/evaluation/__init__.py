"""What a tuned model answers, and what can be measured without a judge.

`respond.respond` answers the evaluation prompts, `evaluate.evaluate` measures accuracies, margins
and divergence from base, `compare.compare` tests two strategies against each other, and
`explorer.Explorer` puts one question to all strategies of a model.
"""

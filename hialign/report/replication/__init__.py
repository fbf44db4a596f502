"""What studies of several seeds found, by the analysis that was registered before they ran.

`reading` takes margins over seeds from the records. `hypothesis` and `strategies` are the two
registered analyses, `registered` says which one a study has and which published study answers best,
and `gates` asks of any study whether anything was learned. `tables` and `figures` show them, and
`sentences` says them in words.
"""

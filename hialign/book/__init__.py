"""The HTML book: pages, the executed notebooks, the Explore page, the site, and publishing.

`build.build` makes the book of a study from its records, `publish` copies what the book needs to
where everybody can see it, and `site` builds the books of all published studies.
"""

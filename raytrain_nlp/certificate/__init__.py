"""`certify`: a job's first steps as `runs` of their own, disturbed by `kills`, read as `evidence`, compared (`checks`,
`states`) and written down as a signed `page`.
"""

"""SFM-Defence: a learned sparse feature masker in front of a classifier, attacked and audited.

Packages, lowest layer first; a lower layer never imports a higher one: `errors`, `settings`,
`artifacts`, `records`, `datasets`, `preprocessors`, `models`, `attacks`, `training`, `defences`,
`evaluation`, `audit`, `tuning`, `report`, `serving`, `experiments`. The programs in `pipelines` put
them together.

Every image tensor is float32 in [0, 1], channels last, of shape `(batch, height, width, channels)`.
"""
